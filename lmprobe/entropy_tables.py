"""Next-token entropies as they are: means of categories by mode and by token, and the value of every prompt.

Conventions. Entropies in nats (`lmprobe.entropy`). A mean over prompts has a t interval whose independent units are the
prompt families; nothing is tested here.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmprobe.entropy import FIRST_MODE, MODES, Entropies
from lmprobe.prompts import Prompts
from probecore.results import Row

Floats = NDArray[np.float64]


def category_rows(entropies: Entropies, categories: Sequence[str], families: Sequence[str]) -> list[Row]:
    """Return mean entropy and number of tokens of each category and mode, with a t interval over families."""
    rows: list[Row] = []
    labels, blocks = np.asarray(categories), np.asarray(families)
    for mode in MODES:
        means, lengths = entropies.mean(mode), entropies.n_tokens(mode)
        for category in dict.fromkeys(categories):
            mask = labels == category
            low, high = family_interval(means[mask], blocks[mask])
            row: Row = {"metric": f"mean entropy of {category}, {mode} (nats)", "measure": "entropy", "mode": mode}
            row |= {"category": category, "value": float(means[mask].mean()), "ci_low": low, "ci_high": high}
            row |= {"p_value": None, "p_note": "a mean has no null", "n_prompts": int(mask.sum())}
            row |= {"n_tokens": int(lengths[mask].sum()), "tokens_per_prompt": float(lengths[mask].mean())}
            rows.append(row | {"detail": True})
    return rows


def token_table(traces: Floats, categories: Sequence[str], families: Sequence[str], *, fewest: int = 3) -> list[Row]:
    """Return the mean entropy of each category at each step, with a t interval over families.

    A step is shown while at least `fewest` prompts of the category are still running.
    """
    labels, blocks = np.asarray(categories), np.asarray(families)
    rows: list[Row] = []
    for category in dict.fromkeys(categories):
        for t in range(traces.shape[1]):
            mask = (labels == category) & ~np.isnan(traces[:, t])
            if mask.sum() < fewest:
                continue
            low, high = family_interval(traces[mask, t], blocks[mask])
            row: Row = {"category": category, "token": t + 1, "entropy": float(traces[mask, t].mean())}
            low = None if low is None else max(low, 0.0)  # an entropy is never below 0
            rows.append(row | {"ci_low": low, "ci_high": high, "n_prompts": int(mask.sum())})
    return rows


def prompt_table(entropies: Entropies, prompts: Prompts) -> list[Row]:
    """Return the value of every prompt in every mode: mean entropy and number of tokens."""
    rows: list[Row] = []
    for mode in MODES:
        columns = zip(
            prompts.ids, prompts.categories, prompts.families, entropies.mean(mode).tolist(),
            entropies.n_tokens(mode).tolist(), strict=True,
        )  # fmt: skip
        rows += [
            {"item": item, "category": category, "family": family, "mode": mode, "entropy": value, "n_tokens": n}
            for item, category, family, value, n in columns
        ]
    return rows


def trace_table(entropies: Entropies, prompts: Prompts) -> list[Row]:
    """Return the entropy of every valid token of the own text."""
    traces = entropies.traces[FIRST_MODE]
    return [
        {"item": prompts.ids[i], "category": prompts.categories[i], "token": t + 1, "entropy": float(traces[i, t])}
        for i in range(len(prompts)) for t in range(traces.shape[1]) if not np.isnan(traces[i, t])
    ]  # fmt: skip


def family_interval(
    values: ArrayLike, families: ArrayLike, level: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """Return the t interval of a mean over prompts whose families are the independent units (linearised clusters)."""
    from scipy import stats

    x = np.asarray(values, dtype=np.float64)
    codes = np.unique(np.asarray(families), return_inverse=True)[1]
    n = int(codes.max()) + 1
    if n < 2:
        return None, None
    sums = np.bincount(codes, weights=x - x.mean())
    error = float(np.sqrt(n / (n - 1) * (sums**2).sum())) / len(x)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error
    return float(x.mean()) - half, float(x.mean()) + half
