"""Running the arms of a layer ablation: every batch is recorded once, every arm is replayed from its block.

Conventions. Measures are (metrics, texts); controls (replicates, metrics, texts). A replay starts at the block an arm
acts in, so a sweep over L blocks runs L (L + 1) / 2 of them where full runs would take L^2; the numbers are those of
full runs bit for bit (`lmprobe.replay`). Several random directions share one pass, each on a copy of the batch's rows.

The noise floor of a metric is its mean absolute change where nothing is done: by padding (each text alone against the
batch) and by rounding (the state after a block multiplied by 1 + eps z, eps the resolution of the model's dtype).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.ablation_arms import CONTROLS, Arm, Fitted, controls, flags_of, interventions
from lmprobe.ablation_metrics import Meter, Text
from lmprobe.inputs import accepts, length_batches, pad
from lmprobe.interventions import intervened
from lmprobe.models import LanguageModel
from lmprobe.replay import Recording, record, replay, resume_points
from lmprobe.score import LOGITS_AT_ONCE
from probecore.seeds import generator

Floats = NDArray[np.float64]
ALONE = 8  # texts of a batch that are run alone for the floor of padding


@dataclass(frozen=True, eq=False)
class Swept:
    """What was measured. intact : (metrics, texts). arms : arm -> (metrics, texts).

    controls : control -> arm -> (replicates, metrics, texts). padding : (metrics,); rounding : (blocks, metrics).
    """

    intact: Floats = field(repr=False)
    arms: Mapping[Arm, Floats] = field(repr=False)
    controls: Mapping[str, Mapping[Arm, Floats]] = field(repr=False)
    padding: Floats = field(repr=False)
    rounding: Floats = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """What is run. weights : control -> (replicates, n) random weights; donors : fit prompt of each text."""

    arms: tuple[Arm, ...]
    positions: str
    scale: float
    donors: NDArray[np.int64]
    weights: Mapping[str, Floats]
    seed: int
    batch_tokens: int = 4096


def run_sweep(
    lm: LanguageModel,
    texts: Sequence[Text],
    meter: Meter,
    fitted: Fitted,
    plan: Plan,
    *,
    advance: Callable[[int], None] | None = None,
    replayed: bool = True,
) -> Swept:
    """Run all arms and their controls on texts.

    advance : told how many arms are done. replayed : False runs the whole model for every arm, which is the slow form
    that the tests hold the other against.
    """
    n, m, n_blocks = len(texts), len(meter.names), len(lm.sites.blocks)
    replicates = len(next(iter(plan.weights.values()))) if plan.weights else 0
    intact = np.full((m, n), np.nan)
    found = {arm: np.full((m, n), np.nan) for arm in plan.arms}
    random: dict[str, dict[Arm, Floats]] = {
        name: {arm: np.full((replicates, m, n), np.nan) for arm in plan.arms} for name in plan.weights
    }
    padding, rounding = np.full((m, n), np.nan), np.full((n_blocks, m, n), np.nan)
    lengths = [len(text.ids) for text in texts]
    batches = length_batches(lengths, plan.batch_tokens, padded=lm.certificate.holds("left padding"))
    for number, index in enumerate(batches):
        batch = _Batch(lm, [texts[i] for i in index], meter, replayed)
        intact[:, index] = batch.intact
        for k, i in enumerate(index[:ALONE].tolist()):
            padding[:, i] = np.abs(batch.alone(k) - batch.intact[:, k])
        for block in range(n_blocks):
            rounding[block][:, index] = np.abs(batch.rounded(block, plan.seed) - batch.intact)
        flags = flags_of(plan.positions, [text.end for text in batch.texts])
        for arm in plan.arms:
            made = interventions(
                arm, fitted, n_blocks, donors=plan.donors[index].tolist(), lengths=[len(t.ids) for t in batch.texts],
                ends=[t.end for t in batch.texts], scale=plan.scale, flags=flags,
            )  # fmt: skip
            start = 0 if arm.block is None else arm.block
            found[arm][:, index] = batch.under(made, start)
            for name, weights in plan.weights.items():
                per_pass = batch.copies(plan.batch_tokens)
                for first in range(0, replicates, per_pass):
                    part = weights[first : first + per_pass]
                    repeated = _repeated(arm, fitted, plan, batch, index, flags, n_blocks, len(part))
                    moved = controls(arm, repeated, fitted, n_blocks, name, part, len(index))
                    values = batch.under(moved, start, copies=len(part))
                    random[name][arm][first : first + per_pass][:, :, index] = values.reshape(
                        m, len(part), len(index)
                    ).transpose(1, 0, 2)
            if advance is not None and number == len(batches) - 1:
                advance(1)
    return Swept(intact, found, random, np.nanmean(padding, axis=1), np.nanmean(rounding, axis=2))


def draw_weights(n_random: int, width: int, n_states: int, seed: int) -> dict[str, Floats]:
    """Return the random weights of both controls: isotropic directions, and weights of fit states."""
    if not n_random:
        return {}
    sizes = {"random": width, "covariance": n_states}
    return {
        name: generator(seed, "ablation control", name).standard_normal((n_random, sizes[name])) for name in CONTROLS
    }


def _repeated(
    arm: Arm, fitted: Fitted, plan: Plan, batch: _Batch, index: NDArray[np.int64], flags: Any, n_blocks: int,  # noqa: ANN401
    copies: int,
) -> list[Any]:  # fmt: skip
    """Return the interventions of an arm on a batch whose rows stand there several times."""
    return interventions(
        arm, fitted, n_blocks, donors=plan.donors[index].tolist() * copies,
        lengths=[len(t.ids) for t in batch.texts] * copies, ends=[t.end for t in batch.texts] * copies,
        scale=plan.scale, flags=flags,
    )  # fmt: skip


class _Batch:
    """One batch of texts: its recording, what the intact model says, and runs under interventions."""

    def __init__(self, lm: LanguageModel, texts: Sequence[Text], meter: Meter, replayed: bool) -> None:
        self.lm, self.texts, self.meter, self.replayed = lm, list(texts), meter, replayed
        ids, mask = pad([text.ids for text in texts], lm.pad_id, "left")
        kept = max(text.kept for text in texts)
        self.more: dict[str, Any] = {"logits_to_keep": kept} if accepts(lm.model, "logits_to_keep") else {}
        self.recording = record(lm, ids, mask, **self.more)
        self.read = meter.read(self.recording.logits, texts)
        self.intact = meter.measure(self.read, self.read, texts)
        self.legal = resume_points(lm).legal

    def under(self, made: Sequence[Any], start: int, *, copies: int = 1) -> Floats:
        """Return the metrics (metrics, copies x texts) under interventions at block `start` or later."""
        recording = self.recording if copies == 1 else _copied(self.recording, copies)
        first = max(k for k in range(start + 1) if self.legal[k]) if self.replayed else 0
        with intervened(self.lm, *made):
            logits = replay(self.lm, recording, first, **self.more)
        texts = self.texts * copies
        return self.meter.measure(self.meter.read(logits, texts), self.read * copies, texts)

    def alone(self, k: int) -> Floats:
        """Return the metrics (metrics,) of one text that is run alone."""
        text = self.texts[k]
        ids, mask = pad([text.ids], self.lm.pad_id, "left")
        logits = record(self.lm, ids, mask, **self.more).logits
        return self.meter.measure(self.meter.read(logits, [text]), [self.read[k]], [text])[:, 0]

    def rounded(self, block: int, seed: int) -> Floats:
        """Return the metrics (metrics, texts) with the state after a block rounded at random."""
        state = self.recording.states[block]
        chance = torch.Generator().manual_seed(int(generator(seed, "ablation rounding", block).integers(2**31)))
        noise = torch.randn(state.shape, generator=chance, dtype=torch.float32).to(state.device)
        moved = (state.float() * (1 + torch.finfo(state.dtype).eps * noise)).to(state.dtype)
        if state.dtype == torch.float64:
            moved = state * (1 + torch.finfo(state.dtype).eps * noise.double())
        if not self.legal[block + 1]:
            return np.full(self.intact.shape, np.nan)
        logits = replay(self.lm, self.recording, block + 1, moved, **self.more)
        return self.meter.measure(self.meter.read(logits, self.texts), self.read, self.texts)

    def copies(self, batch_tokens: int) -> int:
        """Return how many copies of the batch may run at once."""
        tokens = self.recording.ids.numel()
        logits = self.recording.logits.numel()
        return max(1, min(batch_tokens // tokens, LOGITS_AT_ONCE // max(1, logits)))


def _copied(recording: Recording, copies: int) -> Recording:
    def repeat(tensor: Tensor) -> Tensor:
        return tensor.repeat(*(1,) * (tensor.ndim - 3), copies, 1, 1)

    return Recording(
        recording.ids.repeat(copies, 1), recording.mask.repeat(copies, 1), tuple(map(repeat, recording.states)),
        recording.logits,
    )  # fmt: skip
