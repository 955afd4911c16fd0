"""Attacks on the input of a member: how far embeddings must move until half of the answers are wrong.

Conventions. An attack adds to the embeddings of one input (all four positions, before positions are added) a
perturbation of L2 norm r; radii are relative to the mean norm of the number embeddings, so that they compare between
members. The attack is projected gradient descent (Madry et al. 2018) on the margin, the largest wrong logit minus the
right one, which does not saturate as the cross-entropy of a sure model does; steps have the length of the normalised
gradient, an input is broken when any step broke it, and each radius starts from the attack at the smaller one.

    epsilon50   smallest radius at which accuracy is .5, between radii of a grid by interpolation of their logarithms
    alpha50     for two operations: smallest share of the way from one operation's embedding to the other's at which
                half of the inputs get the other's answer (inputs with equal answers left out)

`embedded_forward` is the plain transformer on embeddings, without the tables of `forward`.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.grokking.data import training_mask
from lmprobe.grokking.members import Member
from lmprobe.grokking.spec import Shape
from probecore.errors import DesignError
from probecore.seeds import generator

RADII = tuple(0.05 * 2 ** (i / 2) for i in range(13))  # .05 to 3.2 mean norms
N_STEPS, N_INPUTS = 10, 512
ALPHAS = tuple(i / 20 for i in range(21))


@dataclass(frozen=True)
class Attack:
    """Accuracy (radii,) under attack and under random perturbations of the same norm, and the radius that halves it."""

    accuracy: NDArray[np.float64] = field(repr=False)
    random: NDArray[np.float64] = field(repr=False)
    epsilon50: float
    censored: bool
    alpha50: float | None


def embedded_forward(shape: Shape, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the logits (B, p) at "=" of embeddings x (B, 4, d), positions not yet added.

    parameters : of one member, (1, *shape) each.
    """
    w = {name: value[0] for name, value in parameters.items()}
    pre, d, heads = shape.norm == "pre", shape.width, shape.heads
    x = x + w["position"]
    n, length, _ = x.shape
    hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (d,), w[f"{name}.gain"], w[f"{name}.bias"])

    for i in range(shape.layers):
        h = norm(f"{i}.norm1", x) if pre else x
        q, k, v = (
            part.view(n, length, heads, d // heads).transpose(1, 2)
            for part in (h @ w[f"{i}.qkv.weight"] + w[f"{i}.qkv.bias"]).split(d, dim=-1)
        )
        scores = (q @ k.transpose(2, 3) / math.sqrt(d // heads)).masked_fill(hidden, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, d)
        x = x + mixed @ w[f"{i}.out.weight"] + w[f"{i}.out.bias"]
        x = x if pre else norm(f"{i}.norm1", x)
        h = norm(f"{i}.norm2", x) if pre else x
        h = h @ w[f"{i}.up.weight"] + w[f"{i}.up.bias"]
        h = F.gelu(h) if shape.activation == "gelu" else F.relu(h)
        x = x + h @ w[f"{i}.down.weight"] + w[f"{i}.down.bias"]
        x = x if pre else norm(f"{i}.norm2", x)
    last = x[:, -1]
    return (norm("norm", last) if pre else last) @ w["head.weight"] + w["head.bias"]


def attack(member: Member, step: int | None = None, *, n_inputs: int = N_INPUTS, seed: int = 0) -> Attack:
    """Return how a member answers held-out inputs under attack; at most `n_inputs` of them, drawn by `seed`.

    Raises `DesignError` for a member whose accuracy is at or below .5 without attack.
    """
    shape = member.spec.shape
    parameters = member.parameters(step)
    held = np.flatnonzero(~training_mask(member.spec))
    rng = generator(seed, "attacked inputs")
    picked = torch.from_numpy(np.sort(rng.permutation(held)[:n_inputs]))
    tokens, answers = (torch.from_numpy(a)[picked] for a in (shape.task.tokens, shape.task.answers))
    embed = parameters["embed"][0]
    x, unit = embed[tokens], float(embed[: shape.p].norm(dim=1).mean())
    broken = _wrong(shape, parameters, x, answers)
    if float(broken.float().mean()) >= 0.5:
        raise DesignError(f"an attack needs answers that are right; {100 * float(broken.float().mean()):.0f} % are not")
    delta = torch.zeros_like(x)
    accuracy, random = [], []
    noise = torch.from_numpy(rng.standard_normal(tuple(x.shape))).to(x.dtype)
    noise = noise / _norm(noise)
    for radius in RADII:
        delta, found = _descend(shape, parameters, x, answers, delta, radius * unit)
        broken = broken | found
        accuracy.append(1 - float(broken.float().mean()))
        off = _wrong(shape, parameters, x + radius * unit * noise, answers)
        random.append(1 - float(off.float().mean()))
    curve = np.array(accuracy)
    value, censored = _crossing(curve)
    return Attack(curve, np.array(random), value, censored, _alpha(member, parameters, picked))


def _descend(
    shape: Shape, parameters: dict[str, Tensor], x: Tensor, answers: Tensor, delta: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Return the perturbation after `N_STEPS` steps inside the ball, and which inputs any step broke."""
    broken = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(N_STEPS):
        at = delta.clone().requires_grad_()
        margin = _margin(embedded_forward(shape, parameters, x + at), answers)
        broken = broken | (margin.detach() >= 0)
        gradient: Tensor = torch.autograd.grad(margin.sum(), at)[0]
        delta = delta + 2.5 * radius / N_STEPS * gradient / _norm(gradient)
        delta = delta * (radius / _norm(delta)).clamp(max=1.0)
    return delta, broken | _wrong(shape, parameters, x + delta, answers)


def _margin(logits: Tensor, answers: Tensor) -> Tensor:
    right = logits.gather(1, answers[:, None])[:, 0]
    others = logits.scatter(1, answers[:, None], -math.inf).amax(1)
    return others - right


@torch.no_grad()
def _wrong(shape: Shape, parameters: dict[str, Tensor], x: Tensor, answers: Tensor) -> Tensor:
    return _margin(embedded_forward(shape, parameters, x), answers) >= 0


def _norm(x: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return size.clamp(min=1e-12)


def _crossing(accuracy: NDArray[np.float64]) -> tuple[float, bool]:
    """Return where a falling curve over `RADII` crosses .5; the last radius and True where it does not."""
    below = np.flatnonzero(accuracy < 0.5)
    if not len(below):
        return RADII[-1], True
    i = int(below[0])
    if i == 0:
        return RADII[0], False
    share = (accuracy[i - 1] - 0.5) / (accuracy[i - 1] - accuracy[i])
    return float(RADII[i - 1] * (RADII[i] / RADII[i - 1]) ** share), False


@torch.no_grad()
def _alpha(member: Member, parameters: dict[str, Tensor], picked: Tensor) -> float | None:
    """Return the share of the way to the other operation's embedding at which half of the inputs get its answer."""
    shape = member.spec.shape
    task: Any = shape.task
    if len(task.ops) != 2:
        return None
    tokens = torch.from_numpy(task.tokens)[picked]
    squares = task.p**2
    other = torch.from_numpy(task.answers)[(picked + squares) % (2 * squares)]
    own = torch.from_numpy(task.answers)[picked]
    embed = parameters["embed"][0]
    x, first = embed[tokens], shape.p + 1
    swapped = embed[first + (1 - (tokens[:, 1] - first))]
    for alpha in ALPHAS:
        moved = x.clone()
        moved[:, 1] = (1 - alpha) * x[:, 1] + alpha * swapped
        given = embedded_forward(shape, parameters, moved).argmax(1)
        if float((given == other)[own != other].float().mean()) >= 0.5:
            return alpha
    return None
