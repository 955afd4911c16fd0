"""A pack: members of one shape that train together, each as if it were alone.

Conventions. weights, mean, square (E, n) float32 on one device; `step` is the number of steps done. The loss is the sum
over members of each member's mean cross-entropy, so that gradients do not mix. On a CPU a pack has one member. On a GPU
a plain step is captured as a CUDA graph and replayed; it reads its rows from a fixed buffer at a position that lies on
the device. A step of the removal-resistant loss runs outside the graph, because it needs an eigendecomposition.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.grokking.data import batches
from lmprobe.grokking.forward import forward, linear
from lmprobe.grokking.model import initial, philox, views
from lmprobe.grokking.optimiser import AdamW
from lmprobe.grokking.spec import Spec


class Pack:
    """Members that share `pack_key`, from their first step or from a state of earlier ones."""

    def __init__(self, specs: Sequence[Spec], device: torch.device, state: dict[str, Tensor] | None = None) -> None:
        self.specs, self.device, self.shape = tuple(specs), device, specs[0].shape
        if state is None:
            start = torch.from_numpy(np.stack([initial(spec) for spec in specs]))
            state = {"weights": start, "mean": torch.zeros_like(start), "square": torch.zeros_like(start)}
        self.weights, self.mean, self.square = (state[k].clone().to(device) for k in ("weights", "mean", "square"))
        self.gradient = torch.zeros_like(self.weights)
        self.parameters = {k: v.detach().requires_grad_() for k, v in views(self.weights, self.shape).items()}
        first = specs[0]
        self.optimiser = AdamW(first.beta1, first.beta2, first.eps, first.warmup, first.clip)
        task = self.shape.task
        self.tokens, self.answers = (torch.from_numpy(x).to(device) for x in (task.tokens, task.answers))
        self.penalty = torch.tensor([spec.adversarial for spec in specs], device=device)
        self.lr, self.wd = [spec.lr for spec in specs], [spec.weight_decay for spec in specs]
        self._graph: Any = None

    @property
    def state(self) -> dict[str, Tensor]:
        """Weights and moments, on the CPU."""
        return {k: getattr(self, k).cpu() for k in ("weights", "mean", "square")}

    def run(self, done: int, n_steps: int) -> None:
        """Make the steps done + 1 .. done + n_steps."""
        rows = torch.from_numpy(np.stack([batches(spec, done, n_steps) for spec in self.specs], axis=1))
        if self.device.type == "cuda":
            self._run_graph(done, rows.to(self.device))
            return
        for i in range(n_steps):
            self._gradients(rows[i], done + i + 1)
            self.optimiser.update(self.weights, self.gradient, self.mean, self.square, done + i + 1, self.lr, self.wd)

    def _gradients(self, rows: Tensor, step: int) -> None:
        """Fill `gradient` from rows (E, B) of this step (counted from 1)."""
        states: dict[str, Tensor] = {}
        answers = self.answers[rows]
        logits = forward(self.shape, self.parameters, self.tokens[rows], states)
        loss = _cross_entropy(logits, answers).sum()
        if resists(self.specs[0], step) and bool(self.penalty.any()):
            loss = loss + (self.penalty * self._removed_loss(states["final"], rows, answers, step)).sum()
        found = torch.autograd.grad(loss, tuple(self.parameters.values()))  # in the order of the flat array
        torch.cat([g.reshape(len(g), -1) for g in found], 1, out=self.gradient)

    def _removed_loss(self, h: Tensor, rows: Tensor, answers: Tensor, step: int) -> Tensor:
        """Return each member's loss (E,) after directions are removed, its own for each operation."""
        p, k = self.shape.p, self.specs[0].adversarial_k
        kept = h
        operations = self.tokens[rows][..., 1] - (p + 1)
        for op in range(len(self.shape.ops)):
            own = (operations == op).unsqueeze(-1)
            if self.specs[0].adversarial_basis == "random":
                frames = np.stack([random_directions(spec, step, op) for spec in self.specs])
                basis = torch.from_numpy(frames).to(h)
            else:
                basis = leading_directions(h.detach(), answers, own.squeeze(-1), p, k)
            kept = torch.where(own, h - (h @ basis) @ basis.mT, kept)
        head, bias = self.parameters["head.weight"], self.parameters["head.bias"]
        return _cross_entropy(linear(kept, head, bias), answers)

    def _run_graph(self, done: int, rows: Tensor) -> None:
        """Replay the captured step; rows (n_steps, E, B) on the device."""
        if self._graph is None:  # what it reads must live as long as it does
            self._buffer, self._at = rows[0].clone(), torch.zeros(1, dtype=torch.float64, device=self.device)
            rates = torch.tensor([self.lr, self.wd], dtype=torch.float64, device=self.device)
            self._lr, self._wd = rates.unsqueeze(-1)
            kept = [t.clone() for t in (self.weights, self.mean, self.square)]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # lazy initialisation must not fall into the capture
                for _ in range(3):
                    self._step_on_device(self._buffer, 0)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step_on_device(self._buffer, 0)
            for now, before in zip((self.weights, self.mean, self.square), kept, strict=True):
                now.copy_(before)
        self._at.fill_(done)
        for i in range(len(rows)):
            if resists(self.specs[0], done + i + 1) and bool(self.penalty.any()):
                self._step_on_device(rows[i], done + i + 1)
            else:
                self._buffer.copy_(rows[i])
                self._graph.replay()

    def _step_on_device(self, rows: Tensor, step: int) -> None:
        """Make one step; the number of the step is counted on the device, `step` only tells which loss it has."""
        self._gradients(rows, step)
        self._at.add_(1)
        state = (self.weights, self.gradient, self.mean, self.square)
        self.optimiser.update_on_device(*state, self._at, self._lr, self._wd)

    @torch.no_grad()
    def read(self, rows: Tensor | None = None, chunk: int = 4096) -> tuple[Tensor, Tensor]:
        """Return logits (E, N, p) and the states that the head reads (E, N, d) of all inputs, or of rows (N,)."""
        tokens = self.tokens if rows is None else self.tokens[rows]
        logits, final = [], []
        for part in tokens.split(chunk):
            states: dict[str, Tensor] = {}
            logits.append(forward(self.shape, self.parameters, part, states))
            final.append(states["final"])
        return torch.cat(logits, 1), torch.cat(final, 1)


def pack_key(spec: Spec) -> tuple[object, ...]:
    """Return what members of one pack must share."""
    adversarial = (spec.adversarial_k, spec.adversarial_basis, spec.adversarial_every, spec.adversarial_after)
    optimiser = (spec.beta1, spec.beta2, spec.eps, spec.warmup, spec.clip)
    return (spec.shape, spec.batch, spec.evaluate_every, optimiser, adversarial)


def resists(spec: Spec, step: int) -> bool:
    """Tell whether a step (counted from 1) carries the removal-resistant term."""
    return step > spec.adversarial_after and step % spec.adversarial_every == 0


def random_directions(spec: Spec, step: int, op: int) -> NDArray[np.float64]:
    """Return an orthonormal frame (d, k), uniform, that depends on the data seed, the step and the operation alone."""
    rng = philox(int(spec.data_seed or 0), "removed directions", step, op)
    frame: NDArray[np.float64] = np.linalg.qr(rng.standard_normal((spec.width, spec.adversarial_k)))[0]
    return frame


def leading_directions(h: Tensor, answers: Tensor, own: Tensor, p: int, k: int) -> Tensor:
    """Return the first k directions (E, d, k) of the class means of h (E, B, d) over the inputs marked `own` (E, B).

    The mean over classes is subtracted, every class counts once; classes that the batch lacks are left out.
    """
    picked = F.one_hot(answers, p).to(h.dtype) * own.unsqueeze(-1).to(h.dtype)
    count = picked.sum(1).unsqueeze(-1)
    means = (picked.mT @ h) / count.clamp(min=1)
    there = (count > 0).to(h.dtype)
    centre = (means * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    centred = (means - centre) * there
    vectors: Tensor = torch.linalg.eigh(centred.mT @ centred)[1]
    return vectors[..., -k:].flip(-1)


def _cross_entropy(logits: Tensor, answers: Tensor) -> Tensor:
    """Return each member's mean cross-entropy (E,)."""
    members, n, p = logits.shape
    losses = F.cross_entropy(logits.reshape(-1, p), answers.reshape(-1), reduction="none")
    return losses.view(members, n).mean(1)
