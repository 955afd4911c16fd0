"""Score: what a model expects of given text, read in one forward pass without choosing anything.

Conventions. Entropies and log-probabilities are in nats, float64, of the raw next-token distribution. Row i of
`Scores.entropy` starts with the distribution at the end of prompt i (before the first scored token is seen). Rows are
padded on the left, so that what is scored lies at the end of every row and the head runs on nothing else, and logits
are reduced row by row: (batch, time, vocabulary) is held in the model's own dtype only, never in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.capture import model_record
from lmprobe.generate import continuation_ids
from lmprobe.inputs import Progress, accepts, forward_arguments, length_batches, pad, run_batches
from lmprobe.models import LanguageModel, Prompt, Template
from probecore.errors import InputError
from probecore.validation import at_least

LOGITS_AT_ONCE = 2**27  # half a GiB in float32


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model expects of one common continuation of C tokens after each of N prompts.

    entropy, log_prob : (N, C) entropy before each token, log-probability of each token. tokens : the C token ids.
    """

    entropy: NDArray[np.float64] = field(repr=False)
    log_prob: NDArray[np.float64] = field(repr=False)
    tokens: tuple[int, ...]
    info: Mapping[str, Any] = field(repr=False)


def score(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    continuation: str | Sequence[int],
    *,
    system: str | None = None,
    template: Template = "auto",
    batch_tokens: int = 4096,
    deterministic: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Return entropy and log-probability along one common continuation (teacher forcing) of every prompt.

    The text is common to all prompts, so that a difference between prompts is one of the model's state, not of what
    it wrote. Raises `InputError` for prompts or a continuation that cannot be used.
    """
    forced = continuation_ids(lm, continuation)
    rows = lm.format_all(prompts, system, template, room=len(forced))
    entropy, log_prob = (np.empty((len(rows), len(forced))) for _ in range(2))

    def keep(i: int, logits: list[Tensor], tokens: Tensor) -> None:
        entropy[i], log_prob[i] = _measure(logits, tokens, i)

    whole, starts = [[*row, *forced] for row in rows], [len(row) for row in rows]
    scan_logits([lm], whole, starts, keep, batch_tokens=batch_tokens, deterministic=deterministic, progress=progress)
    info = {**model_record(lm), "decoding": "forced", "template": template, "deterministic": deterministic}
    return Scores(entropy, log_prob, tuple(forced), info)


def prompt_log_prob(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    system: str | None = None,
    template: Template = "auto",
    batch_tokens: int = 4096,
    deterministic: bool = False,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Return the mean log-probability per token (N,), in nats, of each formatted prompt after its first token.

    exp of its negative is the prompt's perplexity. NaN for a prompt of one token, which has nothing to predict.
    """
    rows = lm.format_all(prompts, system, template)
    means = np.full(len(rows), np.nan)

    def keep(i: int, logits: list[Tensor], tokens: Tensor) -> None:
        means[i] = _measure(logits, tokens, i)[1].mean() if len(tokens) else np.nan

    starts = [1] * len(rows)
    scan_logits([lm], rows, starts, keep, batch_tokens=batch_tokens, deterministic=deterministic, progress=progress)
    return means


def scan_logits(
    lms: Sequence[LanguageModel],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    keep: Callable[[int, list[Tensor], Tensor], None],
    *,
    batch_tokens: int = 4096,
    deterministic: bool = False,
    progress: Progress | None = None,
) -> None:
    """Call `keep(i, logits, tokens)` for every row of token ids, in any order.

    logits : of each model, (n, vocabulary) in its own dtype on the first model's device, the distributions of tokens
        starts[i], starts[i] + 1, ...
    tokens : (n,) those tokens. Several models are given the same ids, so they must share a vocabulary.
    """
    for lm in lms:
        lm.certificate.require("causal")
    most = max(lm.vocabulary for lm in lms)
    budget = min(at_least(batch_tokens, 1, "batch_tokens"), max(1, LOGITS_AT_ONCE // (most * len(lms))))
    padded = all(lm.certificate.holds("left padding") for lm in lms)

    def run(batch: NDArray[np.int64]) -> None:
        ids, mask = pad([rows[i] for i in batch], lms[0].pad_id, "left")
        n_scored = [len(rows[i]) - starts[i] for i in batch.tolist()]
        found: list[Tensor] = []
        for lm in lms:
            last = {"logits_to_keep": max(n_scored) + 1} if accepts(lm.model, "logits_to_keep") else {}
            with torch.no_grad():
                arguments = forward_arguments(lm.model, ids, mask, use_cache=lm.certificate.cached, **last)
                found.append(lm.model(**arguments).logits.to(lms[0].device))
        for k, (i, n) in enumerate(zip(batch.tolist(), n_scored, strict=True)):
            # the last logits are about what follows the text
            own = [logits[k, logits.shape[1] - 1 - n : logits.shape[1] - 1] for logits in found]
            keep(i, own, ids[k, ids.shape[1] - n :])

    lengths = [len(row) for row in rows]
    run_batches(length_batches(lengths, 1 if deterministic else budget, padded=padded), run, len(rows), progress)


def log_softmax(logits: Tensor, prompt: int) -> Tensor:
    """Return log-probabilities in float64; raises `InputError` where logits are no numbers."""
    log_p = torch.log_softmax((logits.cpu() if logits.device.type == "mps" else logits).double(), dim=-1)
    if torch.isnan(log_p).any():
        raise InputError(
            f"next-token logits must be numbers; those of prompt {prompt} are NaN or infinite: "
            "load the model in float32 or bfloat16"
        )
    return log_p


def _measure(logits: list[Tensor], tokens: Tensor, prompt: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return entropies and log-probabilities (tokens,) from logits (tokens, vocabulary)."""
    log_p = log_softmax(logits[0], prompt)
    entropy = torch.special.entr(log_p.exp()).sum(dim=-1).cpu().numpy()
    return entropy, log_p.gather(1, tokens.to(log_p.device)[:, None])[:, 0].cpu().numpy()
