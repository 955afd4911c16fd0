"""Given text under removal: what a model expects of it, untouched and without each of several directions.

Conventions. A batch holds each text once untouched and once per direction; the rows differ in the direction that is
taken out of every write, which is zero for the untouched ones, so they are what the plain model gives.
Log-probabilities are float64, nats, of the raw distribution before each scored token, as in `lmprobe.score`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.candidate_scores import RemoveEach
from lmprobe.inputs import accepts, forward_arguments, length_batches, pad, run_batches
from lmprobe.interventions import intervened
from lmprobe.models import LanguageModel
from lmprobe.score import LOGITS_AT_ONCE, log_softmax
from probecore.errors import InputError
from probecore.validation import at_least

Floats = NDArray[np.float64]
Keep = Callable[[int, Tensor, Tensor], None]


def removal_log_probs(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    vectors: Floats,
    keep: Keep,
    *,
    batch_tokens: int = 4096,
) -> None:
    """Call `keep(i, log_p, tokens)` for every text: log_p (1 + K, n, vocabulary), the untouched model first.

    rows : texts as token ids. starts : where the scored tokens of each begin, at least 1. vectors : (K, d) directions.
    Raises `InputError` for vectors that are zero.
    """
    lm.certificate.require("causal")
    raw = np.asarray(vectors, dtype=np.float64).reshape(-1, lm.certificate.width)
    norms = np.linalg.norm(raw, axis=1)
    if not (norms > 0).all():
        raise InputError(f"a direction to remove must not be zero; {(norms == 0).sum()} of {len(raw)} are")
    units = torch.from_numpy(np.concatenate([np.zeros((1, raw.shape[1])), raw / norms[:, None]]))
    copies = len(units)
    budget = min(at_least(batch_tokens, 1, "batch_tokens"), max(1, LOGITS_AT_ONCE // lm.vocabulary)) // copies

    def run(batch: NDArray[np.int64]) -> None:
        ids, mask = pad([rows[i] for i in batch], lm.pad_id, "left")
        n_scored = [len(rows[i]) - starts[i] for i in batch.tolist()]
        last = {"logits_to_keep": max(n_scored) + 1} if accepts(lm.model, "logits_to_keep") else {}
        each = units.repeat_interleave(len(batch), dim=0).to(lm.device)
        arguments = forward_arguments(
            lm.model, ids.repeat(copies, 1), mask.repeat(copies, 1), use_cache=lm.certificate.cached, **last
        )
        with torch.no_grad(), intervened(lm, RemoveEach(each)):
            logits = lm.model(**arguments).logits
        logits = logits.unflatten(0, (copies, len(batch)))
        for k, (i, n) in enumerate(zip(batch.tolist(), n_scored, strict=True)):
            own = logits[:, k, logits.shape[2] - 1 - n : logits.shape[2] - 1]  # the last logits are about what follows
            keep(i, log_softmax(own, i).cpu(), ids[k, ids.shape[1] - n :])

    lengths = [len(row) for row in rows]
    padded = lm.certificate.holds("left padding")
    run_batches(length_batches(lengths, max(1, budget), padded=padded), run, len(rows))
