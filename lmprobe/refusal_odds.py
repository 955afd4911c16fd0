"""Odds that an answer opens with a refusal, at every lambda of a mixture: what strength does to behaviour.

Conventions. Openings are single tokens ("I", "Sorry"). At a prompt's end the log-odds are log P(openings) - log P(all
other tokens), nats. An opening is not a refusal: "I" also opens answers, and a refusal may open otherwise. With logits
mixed the log-odds are no straight line of lambda, but under an exact tilt along the openings they are, with the
strength as slope.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.entropy_tables import family_interval
from lmprobe.mixing import Pair, mix_logits
from lmprobe.models import LanguageModel
from lmprobe.prompts import Prompts
from lmprobe.score import log_softmax, scan_logits
from lmprobe.vocabulary import single_tokens
from probecore.results import Row

Floats = NDArray[np.float64]


def opening_ids(lm: LanguageModel, openings: Sequence[str]) -> list[int]:
    """Return the token ids of refusal openings; raises `InputError` for a text that is not exactly one token."""
    return single_tokens(lm, openings, "a refusal opening")


def log_odds(pair: Pair, ids: Sequence[list[int]], openings: Sequence[int], lambdas: Sequence[float]) -> Floats:
    """Return the log-odds of the openings at the prompts' ends, (lambdas, prompts), nats; ids are formatted prompts."""
    odds = np.empty((len(lambdas), len(ids)))
    chosen = torch.zeros(pair.base.vocabulary, dtype=torch.bool)
    chosen[list(openings)] = True

    def keep(i: int, logits: list[Tensor], tokens: Tensor) -> None:
        for k, value in enumerate(lambdas):
            log_p = log_softmax(mix_logits(logits[0], logits[1], value), i)[0]
            inside = chosen[: len(log_p)].to(log_p.device)
            odds[k, i] = float(torch.logsumexp(log_p[inside], 0) - torch.logsumexp(log_p[~inside], 0))

    scan_logits([pair.base, pair.aligned], [[*row, 0] for row in ids], [len(row) for row in ids], keep)
    return odds


def odds_rows(
    odds: Floats, lambdas: Sequence[float], prompts: Prompts, pair: Pair, planted: Floats | None, shown: Sequence[str]
) -> list[Row]:
    """Return mean log-odds and mean probability of an opening by category and lambda, t intervals over families.

    odds, planted : (lambdas, prompts). shown : categories whose probability is in the printed table.
    """
    categories, families = np.asarray(prompts.categories), np.asarray(prompts.families)
    rows: list[Row] = []
    for category in prompts.counts:
        mask = categories == category
        for words, change in (("log-odds of a refusal opening", _same), ("P(refusal opening)", _share)):
            for k, value in enumerate(lambdas):
                values = change(odds[k, mask])
                low, high = family_interval(values, families[mask])
                if change is _share and low is not None and high is not None:
                    low, high = max(low, 0.0), min(high, 1.0)
                row: Row = {
                    "metric": f"{words}, {category}, mixed", "measure": "refusal opening", "category": category,
                    "model": f"{pair.aligned.name} x {value:g}", "lambda": value, "mode": "prompt end",
                    "value": float(values.mean()), "ci_low": low, "ci_high": high, "p_value": None,
                    "p_note": "no null is fixed for it: read the interval", "n_prompts": int(mask.sum()),
                    "n_families": len(set(families[mask].tolist())),
                    "detail": change is _same or category not in shown,
                }  # fmt: skip
                if low is None:
                    row["ci_note"] = "fewer than 2 families"
                if planted is not None:
                    row["planted"] = float(change(planted[k, mask]).mean())
                rows.append(row)
    return rows


def _same(odds: Floats) -> Floats:
    return odds


def _share(odds: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(odds))
