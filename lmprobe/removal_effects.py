"""What removals do to written answers: many of them at once, and at the price of one pass where nothing changes.

Conventions. The untouched model's greedy answers, of at most `tokens` tokens, are kept once (`Answers`). Under an
intervention every prompt is run together with its own untouched answer: `kept` is the share of the answer's tokens that
are still the most probable one where they stand (1 for the untouched model), `ce_rise` by how many nats per token the
answer became less probable. Where all tokens are kept, the greedy answer is the same token for token, and so is the
verdict on it; only the other prompts are answered anew. (Up to ties: with and without the cache logits differ by
rounding.)

A removal is a frame (k, d) of orthonormal rows, k = 0 removes nothing. A batch holds prompts of several removals; each
row loses its own subspace. The slow form, one removal and one whole answer at a time, is in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.detectors import Detector
from lmprobe.generate import generate
from lmprobe.inputs import accepts, forward_arguments, length_batches, pad
from lmprobe.interventions import Moment, ProjectOut, intervened
from lmprobe.models import LanguageModel
from lmprobe.score import LOGITS_AT_ONCE, log_softmax
from lmprobe.token_positions import Positions
from probecore.errors import InputError
from probecore.validation import at_least

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
BATCH = 8192  # padded tokens in a batch


@dataclass(frozen=True, eq=False)
class Answers:
    """Prompts and what the untouched model answers.

    rows : formatted prompts. texts : the prompts as written, for judges. answers : token ids. refused : verdicts.
    ce : (prompts,) nats per token of the answer.
    """

    rows: list[list[int]] = field(repr=False)
    texts: list[str] = field(repr=False)
    answers: list[list[int]] = field(repr=False)
    refused: Flags
    ce: Floats = field(repr=False)
    tokens: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Effects:
    """What each removal did to each prompt: (removals, prompts) each. refused is as untouched where none was asked."""

    refused: Flags
    kept: Floats
    ce_rise: Floats


@dataclass(eq=False)
class RemoveFrames:
    """Take a subspace of its own out of each row of a batch. frames : (rows, d, K), unused columns are zero."""

    frames: Tensor
    at: str = "writes"
    positions: Positions | None = field(default=None, init=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites of `ProjectOut` at "writes", or the one asked for."""
        return ProjectOut(torch.ones(self.frames.shape[1]), at=self.at).sites(lm)

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the states of each row without its subspace."""
        q = self.frames.to(hidden)
        if len(q) != len(hidden):
            raise InputError(f"a batch of {len(q)} prompts was split into {len(hidden)}: take a smaller batch_tokens")
        return hidden - (hidden @ q) @ q.mT


def untouched(
    lm: LanguageModel, rows: Sequence[Sequence[int]], texts: Sequence[str], detector: Detector, tokens: int
) -> Answers:
    """Answer formatted prompts with the model as it is."""
    prompts = [list(row) for row in rows]
    found = generate(lm, prompts, max_new_tokens=tokens, layers=(), template="raw")
    answers = [list(answer) for answer in found.tokens]
    refused = _refused(detector, texts, [lm.text(answer) for answer in answers])
    known = Answers(prompts, list(texts), answers, refused, np.zeros(len(prompts)), tokens)
    none = torch.zeros((1, lm.certificate.width, 1), dtype=torch.float64)
    return replace(known, ce=_along(lm, known, none, "writes", BATCH)[1][0])


def effects(
    lm: LanguageModel,
    known: Answers,
    removals: Sequence[Floats],
    detector: Detector | None,
    *,
    at: str = "writes",
    batch_tokens: int = BATCH,
) -> Effects:
    """Return what the removal of each frame (k, d) does to the answers; without a detector none is written.

    at : "writes" or a site, see `ProjectOut`.
    """
    refused, kept = np.tile(known.refused, (len(removals), 1)), np.ones((len(removals), len(known)))
    rise = np.zeros_like(kept)
    some = [i for i, frame in enumerate(removals) if len(frame)]  # nothing removed is the untouched model
    if not some:
        return Effects(refused, kept, rise)
    most = max(len(removals[i]) for i in some)
    frames = torch.zeros((len(some), lm.certificate.width, most), dtype=torch.float64)
    for out, i in zip(frames, some, strict=True):
        out[:, : len(removals[i])] = torch.from_numpy(np.ascontiguousarray(removals[i].T))
    kept[some], ce = _along(lm, known, frames, at, batch_tokens)
    rise[some] = ce - known.ce
    if detector is not None:
        which, prompt = np.nonzero(kept[some] < 1)
        texts = _answered(lm, known, frames, at, which, prompt, batch_tokens)
        refused[np.asarray(some)[which], prompt] = _refused(detector, [known.texts[i] for i in prompt], texts)
    return Effects(refused, kept, rise)


def _along(lm: LanguageModel, known: Answers, frames: Tensor, at: str, batch_tokens: int) -> tuple[Floats, Floats]:
    """Return the share of answer tokens that are most probable where they stand, and nats per token."""
    kept, ce = (np.full((len(frames), len(known)), np.nan) for _ in range(2))
    rows = [[*row, *answer] for row, answer in zip(known.rows, known.answers, strict=True)]

    def run(which: Ints, prompt: Ints) -> None:
        ids, mask = pad([rows[i] for i in prompt], lm.pad_id, "left")
        n = torch.tensor([len(known.answers[i]) for i in prompt])
        most = int(n.max())
        last = {"logits_to_keep": most + 1} if accepts(lm.model, "logits_to_keep") else {}
        arguments = forward_arguments(lm.model, ids, mask, use_cache=lm.certificate.cached, **last)
        with torch.no_grad(), intervened(lm, RemoveFrames(frames[which].to(lm.device), at)):
            logits = lm.model(**arguments).logits[:, -most - 1 : -1]
        log_p = log_softmax(logits, int(prompt[0])).cpu()
        tokens = ids[:, -most:]
        there = torch.arange(most)[None] >= most - n[:, None]
        own = log_p.gather(2, tokens[..., None])[..., 0]
        kept[which, prompt] = (((log_p.argmax(dim=2) == tokens) & there).sum(dim=1) / n.double()).numpy()
        ce[which, prompt] = (-torch.where(there, own, 0.0).sum(dim=1) / n).numpy()

    which, prompt = (part.ravel() for part in np.indices((len(frames), len(known))))
    budget = min(at_least(batch_tokens, 1, "batch_tokens"), max(1, LOGITS_AT_ONCE // lm.vocabulary))
    _batched(lm, [len(rows[i]) for i in prompt], which, prompt, run, budget)
    return kept, ce


def _answered(
    lm: LanguageModel, known: Answers, frames: Tensor, at: str, which: Ints, prompt: Ints, batch_tokens: int
) -> list[str]:
    """Return the greedy answer to each pair of a removal and a prompt."""
    texts = np.empty((len(frames), len(known)), dtype=object)

    def run(removal: Ints, some: Ints) -> None:
        with intervened(lm, RemoveFrames(frames[removal].to(lm.device), at)):
            # rows come longest first and fit together, so that all stand in one batch in this order
            found = generate(
                lm, [known.rows[i] for i in some], max_new_tokens=known.tokens, layers=(), template="raw",
                batch_tokens=2 * batch_tokens + max(len(known.rows[i]) for i in some) + known.tokens,
            )  # fmt: skip
        texts[removal, some] = [lm.text(answer) for answer in found.tokens]

    _batched(lm, [len(known.rows[i]) + known.tokens for i in prompt], which, prompt, run, batch_tokens)
    return [str(text) for text in texts[which, prompt]]


def _batched(
    lm: LanguageModel,
    lengths: Sequence[int],
    which: Ints,
    prompt: Ints,
    run: Callable[[Ints, Ints], None],
    budget: int,
) -> None:
    padded = lm.certificate.holds("left padding")
    for batch in length_batches(lengths, budget, padded=padded):
        run(which[batch], prompt[batch])


def _refused(detector: Detector, prompts: Sequence[str], texts: Sequence[str]) -> Flags:
    return np.array([verdict == "refusal" for verdict in detector.verdicts(list(prompts), list(texts))], dtype=bool)
