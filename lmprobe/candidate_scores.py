"""Candidate scores: bypass, induce and KL of many directions, several of them in one forward pass.

Conventions. A batch holds some prompts once per direction; each row has its own direction, which one intervention
takes out of, or adds to, that row. The result is that of one run per direction up to rounding (the slow form is in the
tests), at a fraction of the time on small models and no more on large ones. Scores are those of the first answer token
(see `lmprobe.refusal_score`); arrays are (directions, prompts) float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.inputs import Progress, accepts, forward_arguments, length_batches, pad, run_batches
from lmprobe.interventions import Intervention, Moment, ProjectOut, intervened
from lmprobe.models import LanguageModel
from lmprobe.refusal_score import first_token_kl, refusal_log_odds
from lmprobe.score import LOGITS_AT_ONCE, log_softmax
from lmprobe.token_positions import Positions
from probecore.errors import InputError
from probecore.validation import at_least

Floats = NDArray[np.float64]
Reduce = Callable[[int, NDArray[np.int64], Tensor], None]  # direction, prompts of the batch, log-probabilities


@dataclass(frozen=True)
class CandidateScores:
    """Scores of N directions. bypass : (N, harmful). induce, kl : (N, harmless)."""

    bypass: Floats = field(repr=False)
    induce: Floats = field(repr=False)
    kl: Floats = field(repr=False)


@dataclass(eq=False)
class RemoveEach:
    """Take a direction of its own out of each row of a batch, at every write. directions : (rows, d), unit."""

    directions: Tensor
    positions: Positions | None = field(default=None, init=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites of directional ablation."""
        return ProjectOut(torch.ones(self.directions.shape[1])).sites(lm)  # any direction: a row's own may be zero

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the states of each row without its direction."""
        q = self.directions.to(hidden)[:, None]
        return hidden - (hidden * q).sum(dim=-1, keepdim=True) * q


@dataclass(eq=False)
class AddEach:
    """Add a vector of its own to each row of a batch at the input of a block of its own.

    vectors : (rows, d). blocks : (rows,).
    """

    vectors: Tensor
    blocks: Tensor
    positions: Positions | None = field(default=None, init=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the inputs of the blocks that occur."""
        return tuple(f"input {i}" for i in sorted(set(self.blocks.tolist())))

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the states of each row with its vector, where this is its block."""
        here = (self.blocks == int(moment.site.split(" ")[1])).to(hidden)
        return hidden + (self.vectors.to(hidden) * here[:, None])[:, None]


def candidate_scores(
    lm: LanguageModel,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    vectors: Floats,
    blocks: Sequence[int],
    tokens: Sequence[int],
    base: Tensor,
    *,
    arditi_eps: bool = False,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> CandidateScores:
    """Return the scores of raw vectors (N, d), each read at the input of its block.

    harmful, harmless : formatted prompts. tokens : refusal tokens. base : log-probabilities (harmless, vocabulary) of
    the untouched model. progress : called with (done, all) prompt runs of each of the two passes.
    Raises `InputError` for shapes that do not fit and for vectors that are zero.
    """
    raw = np.asarray(vectors, dtype=np.float64)
    if raw.ndim != 2 or len(raw) != len(blocks) or len(base) != len(harmless):
        raise InputError(
            f"candidates need (directions, features) with a block each, and the base of every harmless prompt; got "
            f"{raw.shape}, {len(blocks)} blocks, {len(base)} of {len(harmless)} prompts"
        )
    bypass = np.full((len(raw), len(harmful)), np.nan)
    induce, kl = (np.full((len(raw), len(harmless)), np.nan) for _ in range(2))
    n_harmful = len(harmful)

    def removed(n: int, prompts: NDArray[np.int64], log_p: Tensor) -> None:
        bad = prompts < n_harmful
        if bad.any():
            bypass[n, prompts[bad]] = refusal_log_odds(log_p[torch.from_numpy(bad)], tokens, arditi_eps=arditi_eps)
        if not bad.all():
            good = prompts[~bad] - n_harmful
            kl[n, good] = first_token_kl(base[good], log_p[torch.from_numpy(~bad)], arditi_eps=arditi_eps)

    def added(n: int, prompts: NDArray[np.int64], log_p: Tensor) -> None:
        induce[n, prompts] = refusal_log_odds(log_p, tokens, arditi_eps=arditi_eps)

    removed_runs(lm, [*harmful, *harmless], raw, removed, batch_tokens=batch_tokens, progress=progress)
    at = torch.tensor(list(blocks), dtype=torch.long)
    moved = torch.from_numpy(raw)

    def adding(chosen: Tensor) -> Intervention:
        return AddEach(moved[chosen].to(lm.device), at[chosen].to(lm.device))

    _runs(lm, harmless, len(raw), adding, added, batch_tokens, progress)
    return CandidateScores(bypass, induce, kl)


def removed_runs(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    vectors: Floats,
    reduce: Reduce,
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> None:
    """Call `reduce(n, prompts, log_p)` with first-token log-probabilities under the removal of each vector (N, d)."""
    raw = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(raw, axis=1)
    if not (norms > 0).all():
        raise InputError(f"a direction to remove must not be zero; {(norms == 0).sum()} of {len(raw)} are")
    units = torch.from_numpy(raw / norms[:, None])

    def removing(chosen: Tensor) -> Intervention:
        return RemoveEach(units[chosen].to(lm.device))

    _runs(lm, rows, len(raw), removing, reduce, batch_tokens, progress)


def _runs(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    n_directions: int,
    make: Callable[[Tensor], Intervention],
    reduce: Reduce,
    batch_tokens: int,
    progress: Progress | None,
) -> None:
    lm.certificate.require("causal")
    budget = at_least(batch_tokens, 1, "batch_tokens")
    most_rows = max(1, LOGITS_AT_ONCE // lm.vocabulary)
    padded = lm.certificate.holds("left padding")
    selects = {"logits_to_keep": 1} if accepts(lm.model, "logits_to_keep") else {}

    def run(batch: NDArray[np.int64]) -> None:
        ids, mask = pad([rows[i] for i in batch], lm.pad_id, "left")
        for part in _parts(n_directions, max(1, min(most_rows, budget // ids.shape[1]) // len(batch))):
            chosen = torch.arange(part.start, part.stop)
            each = chosen.repeat_interleave(len(batch))
            arguments = forward_arguments(
                lm.model, ids.repeat(len(chosen), 1), mask.repeat(len(chosen), 1), use_cache=lm.certificate.cached,
                **selects,
            )  # fmt: skip
            with torch.no_grad(), intervened(lm, make(each)):
                logits = lm.model(**arguments).logits[:, -1]
            log_p = log_softmax(logits, int(batch[0])).cpu()
            for k, n in enumerate(chosen.tolist()):
                reduce(n, batch, log_p[k * len(batch) : (k + 1) * len(batch)])

    lengths = [len(row) for row in rows]
    run_batches(length_batches(lengths, budget, padded=padded), run, len(rows), progress)


def _parts(n: int, size: int) -> Iterator[range]:
    return (range(start, min(n, start + size)) for start in range(0, n, size))
