"""Metrics of an ablation: how far the next-token distributions of a text move, and what becomes likelier.

Conventions. The texts are prompts with, in span "answer", the tokens the intact model itself writes after them; all
are given, none is chosen again. Metrics, per text, nats, float64:

KL to intact          KL(intact || changed), mean over the span: 0 for no change, positive under any
loss                  - log p of the text's own next tokens, mean over the span (not in span "end")
entropy               of the next-token distribution, mean over the span
log p of TOKEN        at the prompt's end
refusal log-odds      log P(openings) - log P(all other tokens) at the prompt's end

Spans: "end", the distribution after the prompt; "answer", those before each token of the answer; "prompt", those before
each token of the prompt but the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.refusal_score import refusal_log_odds
from lmprobe.score import log_softmax

Floats = NDArray[np.float64]
SPANS = ("end", "answer", "prompt")
KL, LOSS, ENTROPY, REFUSAL = "KL to intact", "loss", "entropy", "refusal log-odds"


@dataclass(frozen=True)
class Text:
    """Token ids that are run; distributions are read at positions start .. stop - 1, before `tokens` (none in "end").

    end : position of the last token of the prompt.
    """

    ids: tuple[int, ...]
    start: int
    stop: int
    tokens: tuple[int, ...]
    end: int

    @property
    def kept(self) -> int:
        """Number of last positions that hold all that is read."""
        return len(self.ids) - min(self.start, self.end)


@dataclass(frozen=True)
class Meter:
    """What is measured. targets, openings : token ids; target_names : as asked for."""

    span: str
    targets: tuple[int, ...] = ()
    target_names: tuple[str, ...] = ()
    openings: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics, in the order of the rows."""
        loss = (LOSS,) if self.span != "end" else ()
        odds = (REFUSAL,) if self.openings else ()
        return (KL, *loss, ENTROPY, *(f"log p of {name!r}" for name in self.target_names), *odds)

    def text(self, prompt: Sequence[int], answer: Sequence[int]) -> Text:
        """Return a prompt, with its answer in span "answer", as it is run and read."""
        ids, end = [int(i) for i in prompt], len(prompt) - 1
        if self.span == "answer" and len(answer):
            tokens = tuple(int(i) for i in answer)
            return Text((*ids, *tokens[:-1]), end, end + len(tokens), tokens, end)
        if self.span == "prompt":
            return Text(tuple(ids), 0, end, tuple(ids[1:]), end)
        return Text(tuple(ids), end, end + 1, (), end)

    def read(self, logits: Tensor, texts: Sequence[Text]) -> list[tuple[Tensor, Tensor]]:
        """Return of each row the log-probabilities over the span (n, vocabulary) and at the prompt's end.

        logits : (rows, kept, vocabulary), the last positions of left-padded rows.
        """
        found = []
        for k, text in enumerate(texts):
            shift = logits.shape[1] - len(text.ids)
            span = log_softmax(logits[k, text.start + shift : text.stop + shift], k)
            same = text.start == text.end and text.stop == text.end + 1
            found.append((span, span[0] if same else log_softmax(logits[k, text.end + shift][None], k)[0]))
        return found

    def measure(
        self, read: Sequence[tuple[Tensor, Tensor]], intact: Sequence[tuple[Tensor, Tensor]], texts: Sequence[Text]
    ) -> Floats:
        """Return the metrics (metrics, rows) of what was read, beside what was read of the intact model."""
        out = np.full((len(self.names), len(texts)), np.nan)
        ends = torch.stack([end for _, end in read]).cpu()
        odds = refusal_log_odds(ends, self.openings) if self.openings else None
        for k, ((span, _), (own, _), text) in enumerate(zip(read, intact, texts, strict=True)):
            values = []
            if len(span):
                terms = torch.where(own > -torch.inf, own.exp() * (own - span), 0.0)
                values.append(float(terms.sum(dim=-1).clamp(min=0).mean()))
            else:
                values.append(float("nan"))  # a prompt of one token has no span
            if self.span != "end":
                tokens = torch.tensor(text.tokens, device=span.device, dtype=torch.long)
                loss = -span[: len(tokens)].gather(1, tokens[:, None]).mean() if len(tokens) else float("nan")
                values.append(float(loss))
            values.append(float(torch.special.entr(span.exp()).sum(dim=-1).mean()) if len(span) else float("nan"))
            values += [float(ends[k, i]) for i in self.targets]
            if odds is not None:
                values.append(float(odds[k]))
            out[:, k] = values
        return out
