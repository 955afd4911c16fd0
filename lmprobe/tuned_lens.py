"""Tuned lens: an affine translator per layer, trained so that the layer says what the model will say.

Conventions. The translator of layer l maps a state h to h + W_l h + b_l, with W_l (features, features) and b_l 0 at the
start, so that training begins at the plain lens; the last layer has none. The loss is KL(p_final || p_l), nats, mean
over positions (Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned lens", eq. 8 and 9),
minimised with Adam and a rate that falls to 0 in a straight line. States, final norm and head are the model's own and
stay as they are. Whole texts are held out; nothing is chosen on them.

A tuned lens is of one model: its file carries the hash of the weights, and a lens of other weights is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.lens_reading import run_text
from lmprobe.models import LanguageModel
from lmprobe.readout import tail_of
from probecore.errors import DesignError, InputError
from probecore.provenance import digest
from probecore.seeds import generator
from probecore.validation import at_least

WEIGHTS, RECORD, FORMAT = "tuned_lens.safetensors", "tuned_lens.json", 1
ROWS = 64  # states in a step
SHARE_HELD_OUT = 0.25


@dataclass(frozen=True, eq=False)
class TunedLens:
    """The translators of one model.

    matrices : (layers - 1, features, features) W; biases : (layers - 1, features), float32 on the CPU.
    info : the model, the hash of its weights, the texts and settings of training; JSON types only.
    held_out : (2, layers - 1, texts) KL to the final distribution on held-out texts, nats, mean over a text's
        positions, of the plain lens and of this one.
    """

    matrices: Tensor = field(repr=False)
    biases: Tensor = field(repr=False)
    info: dict[str, Any]
    held_out: NDArray[np.float64] = field(repr=False)

    def translate(self, layer: int, states: Tensor) -> Tensor:
        """Return states (rows, features) of a layer (0 is "embed") as the last layer would hold them."""
        if layer >= len(self.matrices):
            return states
        matrix, bias = self.matrices[layer].to(states.device), self.biases[layer].to(states.device)
        h = states.float()
        return (h + h @ matrix.T + bias).to(states.dtype)

    def require(self, lm: LanguageModel) -> None:
        """Raise `InputError` unless this lens was trained on that very model."""
        if self.info["weights_hash"] != lm.info["weights_hash"]:
            raise InputError(
                f"a tuned lens belongs to the weights it was trained on ({self.info['model']}, hash "
                f"{self.info['weights_hash']}); {lm.name} has {lm.info['weights_hash']}: train one for it with --tune"
            )

    def save(self, folder: str | Path) -> Path:
        """Write `tuned_lens.safetensors` and `tuned_lens.json` into a folder and return it."""
        from safetensors.torch import save

        from probecore.store import write_bytes

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        write_bytes(place / WEIGHTS, save({"matrices": self.matrices, "biases": self.biases}))
        record = {"format": FORMAT, **self.info, "held_out": self.held_out.tolist()}
        write_bytes(place / RECORD, (json.dumps(record, indent=1) + "\n").encode())
        return place


def load_tuned_lens(folder: str | Path) -> TunedLens:
    """Read what `TunedLens.save` wrote; raises `InputError` when the folder holds no tuned lens."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = Path(folder)
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        tensors = load_file(place / WEIGHTS)
        held_out = np.asarray(record.pop("held_out"), dtype=np.float64)
        matrices, biases = tensors["matrices"], tensors["biases"]
        fits = record.pop("format") == FORMAT and matrices.shape[:2] == biases.shape
    except (OSError, json.JSONDecodeError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{place.name!r} holds no tuned lens ({type(error).__name__}): give the folder that --save wrote"
        ) from error
    if not fits:
        raise InputError(f"{place.name!r} holds a tuned lens of another format: train it again")
    return TunedLens(matrices, biases, record, held_out)


def train_tuned_lens(
    lm: LanguageModel,
    texts: Sequence[str],
    *,
    steps: int = 300,
    rate: float = 0.05,
    max_tokens: int = 256,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> TunedLens:
    """Train the translators of all layers on texts, tokenized as they are, without a chat template.

    steps : steps of `ROWS` states, for every layer. rate : size of the first of them, in standard deviations.
    max_tokens : tokens taken of each text; the states of all layers of all texts are held in memory.
    advance : told when a layer is done. Raises `DesignError` for fewer than 4 texts, `InputError` for texts that cannot
    be used, `CertificateError` where the read-out is not certified.
    """
    at_least(steps, 1, "steps")
    at_least(max_tokens, 1, "max_tokens")
    if len(set(texts)) < 4:
        raise DesignError(f"a tuned lens needs at least 4 different texts, some to be held out; got {len(set(texts))}")
    texts = list(dict.fromkeys(texts))
    most = min(max_tokens, lm.context or max_tokens)
    rows = [lm.format(text, template="raw")[:most] for text in texts]
    order = generator(seed, "tuned lens", "held out").permutation(len(rows))
    n_held = max(2, round(SHARE_HELD_OUT * len(rows)))
    held, train = order[:n_held], order[n_held:]
    lm.certificate.require("taps", "causal", "read-out")
    runs = [[state.cpu() for state in run_text(lm, row)[0]] for row in rows]
    n_layers = len(lm.layers) - 1
    matrices, biases = [], []
    losses = np.empty((2, n_layers, n_held))
    final = torch.cat([runs[i][-1] for i in train])
    for layer in range(n_layers):
        states = torch.cat([runs[i][layer] for i in train])
        w, b = _fit(lm, states, final, steps, rate, seed, layer)
        matrices.append(w)
        biases.append(b)
        one = TunedLens(w[None], b[None], {}, losses)
        for k, i in enumerate(held):
            for kind, given in enumerate((runs[i][layer], one.translate(0, runs[i][layer]))):
                parts = zip(given.split(ROWS), runs[i][-1].split(ROWS), strict=True)
                sums = [float(_kl(lm, a, b, gradients=False)) * len(a) for a, b in parts]
                losses[kind, layer, k] = sum(sums) / len(given)
        if advance is not None:
            advance(1)
    info = {
        "model": lm.name, "weights_hash": lm.info["weights_hash"], "texts_hash": digest(*texts), "n_texts": len(texts),
        "n_held_out": n_held, "n_states": len(final), "steps": steps, "rate": rate, "max_tokens": max_tokens,
        "seed": seed, "loss": "KL(final || layer), nats",
    }  # fmt: skip
    return TunedLens(torch.stack(matrices), torch.stack(biases), info, losses)


def _fit(
    lm: LanguageModel, states: Tensor, final: Tensor, steps: int, rate: float, seed: int, layer: int
) -> tuple[Tensor, Tensor]:
    """Return W and b of one layer.

    The optimisation sees features with mean 0 and standard deviation 1, and writes in units of the same deviations, so
    that one rate suits every layer and a few massive features do not rule it: W = diag(s) V diag(1 / s), with s the
    deviations. A step of Adam moves an entry by up to its rate; that of V is divided by the width, over which it sums.
    """
    d = states.shape[1]
    mean, deviation = states.double().mean(dim=0), states.double().std(dim=0)
    deviation = deviation.clamp(min=max(1e-3 * float(deviation.median()), 1e-12))
    m, s = mean.float().to(lm.device), deviation.float().to(lm.device)
    v = torch.zeros(d, d, device=lm.device, requires_grad=True)
    c = torch.zeros(d, device=lm.device, requires_grad=True)
    optimiser = torch.optim.Adam([{"params": [v], "lr": rate / d}, {"params": [c], "lr": rate}])
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    chance = generator(seed, "tuned lens", layer)
    for _ in range(steps):
        pick = torch.from_numpy(chance.integers(0, len(states), size=min(ROWS, len(states))))
        h = states[pick].to(lm.device).float()
        moved = h + s * (((h - m) / s) @ v.T + c)
        loss = _kl(lm, moved.to(lm.dtype), final[pick], gradients=True)
        v.grad, c.grad = torch.autograd.grad(loss, [v, c])
        optimiser.step()
        falling.step()
    w = (s[:, None] * v.detach() / s).cpu()
    return w, (s * c.detach()).cpu() - w @ m.cpu()


def _kl(lm: LanguageModel, states: Tensor, final: Tensor, *, gradients: bool) -> Tensor:
    """Return the mean KL(p_final || p_states) over rows, float64, nats."""
    tail = tail_of(lm)
    with torch.no_grad():
        target = torch.log_softmax(tail(final).double(), dim=-1)
    said = torch.log_softmax(tail(states, gradients=gradients).double(), dim=-1)
    return (target.exp() * (target - said)).sum(dim=-1).mean()
