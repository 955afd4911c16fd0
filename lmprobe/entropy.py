"""Next-token entropy of prompts in three modes, and every statistic of it between two categories.

Conventions. H[i, t] is in nats, from raw logits, for prompt i at generated step t: t = 0 is the prompt's end. A row is
valid up to and including its first end token; what follows is NaN and never enters a mean. m[i], the mean over the
valid steps, is the value of a prompt. Modes:

* prompt end    H[i, 0] alone
* own text      the model's own greedy continuation
* common text   one continuation forced on every prompt: the state differs, the text does not

Gaps are risk - safe: negative where risk prompts leave less open. alpha = 1 - var_safe / var_risk in three readings of
the variance: A1 between prompts (of m), A2 pooled over tokens, A3 within prompts; LVR = 0.5 log(var_risk / var_safe).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.contrast_statistics import (
    adjusted_gap,
    alpha,
    between_variance,
    gap,
    log_variance_ratio,
    pooled_variance,
    standardised_gap,
    within_variance,
)
from lmprobe.contrasts import NO_INTERVAL, Contrast
from probecore.errors import DesignError
from probecore.results import Row
from probecore.stats.effects import cohen_d, hedges_g, welch
from probecore.stats.multiple import holm
from probecore.stats.variance_ratio import variance_ratio

Floats = NDArray[np.float64]
MODES = ("prompt end", "own text", "common text")
SAME_QUESTION = "no p of its own: the test of the gap answers the same question"
FIRST_MODE = "own text"  # the mode shown first and used where one mode must be named


@dataclass(frozen=True)
class Entropies:
    """Entropies of N prompts by mode: traces[mode] is (N, steps), NaN where not valid; log_vocabulary is log V."""

    traces: Mapping[str, Floats] = field(repr=False)
    log_vocabulary: float

    def mean(self, mode: str) -> Floats:
        """Return the mean entropy of each prompt, (N,) nats."""
        return np.asarray(np.nanmean(self.traces[mode], axis=1))

    def n_tokens(self, mode: str) -> NDArray[np.int64]:
        """Return the valid steps of each prompt, (N,)."""
        return np.asarray((~np.isnan(self.traces[mode])).sum(1))


def gap_rows(
    entropies: Entropies, contrast: Contrast, planted: Entropies | None = None, *, detail: bool = False
) -> list[Row]:
    """Return the gap in each mode with interval, label-permutation p and Welch's p; Holm over the modes.

    planted : the exact entropies of an organism on these prompts; its gap stands beside the measured one.
    """
    rows: list[Row] = []
    for mode in MODES:
        values = entropies.mean(mode)[contrast.items]
        first, second = contrast.split(values)
        row = _row(contrast, f"gap, {mode} (nats)", "entropy gap", mode, detail=detail)
        row |= _estimate(contrast, contrast.observed(gap(values)), contrast.interval(gap(values)))
        row |= _p(contrast, contrast.p_value(gap(values)))
        row["p_welch"] = _or_none(lambda a=first, b=second: welch(a, b).p_value)  # type: ignore[misc]
        row[f"mean_{contrast.first}"], row[f"mean_{contrast.second}"] = float(first.mean()), float(second.mean())
        row["n_tokens"] = int(entropies.n_tokens(mode)[contrast.items].sum())
        if planted is not None:
            row["planted"] = _exact(contrast.observed(gap(planted.mean(mode)[contrast.items])))
        rows.append(row)
    tested = [row["p_value"] if row["p_value"] is not None else np.nan for row in rows]
    for row, adjusted in zip(rows, holm(tested), strict=True):
        row["p_adjusted"] = None if np.isnan(adjusted) else float(adjusted)
    return rows


def adjusted_rows(
    entropies: Entropies, contrast: Contrast, covariates: Mapping[str, Mapping[str, Floats]], *, shown: bool
) -> list[Row]:
    """Return the gap in each mode given sets of covariates: words -> {name: (prompts of the set,)}.

    Inside families where they hold both categories. Holm over the modes of a set. shown : whether the own text's rows
    are in the printed table.
    """
    rows: list[Row] = []
    for words, given in covariates.items():
        z = np.column_stack([values[contrast.items] for values in given.values()])
        found: list[Row] = []
        for mode in MODES:
            coefficient, t = adjusted_gap(entropies.mean(mode)[contrast.items], z, contrast.crossed)
            metric = f"gap given {words}, {mode} (nats)"
            row = _row(contrast, metric, "adjusted gap", mode, detail=not (shown and mode == FIRST_MODE))
            row |= _estimate(contrast, contrast.observed(coefficient), contrast.interval(coefficient))
            row |= _p(contrast, _finite(contrast.p_value(t))) | {"covariates": list(given)}
            if row["p_value"] is None and not contrast.reason:
                row["p_note"] = "no p: the entropies do not vary beyond the covariates"
            found.append(row)
        tested = [row["p_value"] if row["p_value"] is not None else np.nan for row in found]
        for row, adjusted in zip(found, holm(tested), strict=True):
            row["p_adjusted"] = None if np.isnan(adjusted) else float(adjusted)
        rows += found
    return rows


def effect_rows(entropies: Entropies, contrast: Contrast, planted: Entropies | None = None) -> list[Row]:
    """Return Cohen's d and Hedges' g of the prompts' mean entropies, with noncentral-t intervals, in each mode.

    These take prompts for independent; family_low, family_high are the interval of d over resampled families.
    """
    rows: list[Row] = []
    for mode in MODES:
        values = entropies.mean(mode)[contrast.items]
        first, second = contrast.split(values)
        ends = contrast.interval(standardised_gap(values))
        for name, function in (("Cohen's d", cohen_d), ("Hedges' g", hedges_g)):
            row = _row(contrast, f"{name}, {mode}", name, mode, detail=mode != FIRST_MODE)
            try:
                found = function(first, second)
            except DesignError as error:
                row |= {"value": None, "ci_low": None, "ci_high": None, "value_note": str(error)}
            else:
                row |= {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}
                if name == "Cohen's d" and ends is not None:
                    row |= {"family_low": ends[0], "family_high": ends[1]}
            if planted is not None:
                exact = contrast.split(planted.mean(mode)[contrast.items])
                row["planted"] = _exact(_or_none(lambda f=function, e=exact: f(*e).value))  # type: ignore[misc]
            rows.append(row | {"p_value": None, "p_note": SAME_QUESTION})
    return rows


def variance_rows(
    entropies: Entropies, contrast: Contrast, planted: Entropies | None = None, *, seed: int = 0
) -> list[Row]:
    """Return alpha and LVR in their readings and modes, each with its null, p and the coupling flag.

    p is that of |LVR| under exchange of categories, on values whose category means were removed; null_low, null_high
    are the range of alpha (or LVR) under that exchange; p_adjusted is Holm's over all readings and modes. Rows of A1
    add the F null of normal samples (null_f_*), the Brown-Forsythe p and `mean_coupled`.
    """
    rows: list[Row] = []
    for mode in MODES:
        means, traces = entropies.mean(mode)[contrast.items], entropies.traces[mode][contrast.items]
        flat = contrast.centred(means)
        level = traces - (means - flat)[:, None]  # every token minus the mean of its category's prompts
        readings = _readings(means, traces)
        centres = _readings(flat, level)
        exact = (
            {}
            if planted is None
            else _readings(*(x[contrast.items] for x in (planted.mean(mode), planted.traces[mode])))
        )
        for (name, words), own in readings.items():
            if mode == "prompt end" and name != "A1":
                continue  # one token: nothing to pool
            centred = centres[name, words]
            extra = _single_reading(contrast, means, entropies.log_vocabulary, seed) if name == "A1" else {}
            p = _finite(contrast.p_value(log_variance_ratio(centred)))
            for metric, statistic in (("alpha", alpha), ("LVR", log_variance_ratio)):
                shown = mode == FIRST_MODE and (name == "A1" or metric == "alpha")
                row = _row(
                    contrast,
                    f"{metric} {name}, {words}" + ("" if mode == FIRST_MODE else f", {mode}"),
                    metric,
                    mode,
                    detail=not shown,
                )
                value = contrast.observed(statistic(own))
                if exact:
                    row["planted"] = _exact(_finite(contrast.observed(statistic(exact[name, words]))))
                if not np.isfinite(value):
                    row |= {"value": None, "ci_low": None, "ci_high": None, "p_value": None}
                    row["p_note"] = "not defined: the entropies of a category do not vary"
                    rows.append(row | {"reading": name})
                    continue
                row |= _estimate(contrast, value, contrast.interval(statistic(own)))
                null = contrast.null_interval(statistic(centred))
                row |= {"null_low": _finite(null[0]), "null_high": _finite(null[1])} if null else {}
                row |= _p(contrast, p) | extra | {"reading": name}
                rows.append(row)
    tested = {(r["mode"], r["reading"]): r["p_value"] for r in rows if r["p_value"] is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())).tolist(), strict=True)) if tested else {}
    for row in rows:
        row["p_adjusted"] = adjusted.get((row["mode"], row["reading"])) if row["p_value"] is not None else None
    return rows


def _readings(means: Floats, traces: Floats) -> dict[tuple[str, str], Callable[[Floats], Floats]]:
    """Return the variance in each reading, by name and words."""
    return {
        ("A1", "between prompts"): between_variance(means),
        ("A2", "all tokens"): pooled_variance(traces),
        ("A3", "within prompts"): within_variance(traces),
    }


def _exact(value: float | None) -> float | None:
    """Return a planted value without the rounding error of its sums."""
    return None if value is None else round(value, 12) + 0.0


def _single_reading(contrast: Contrast, means: Floats, upper: float, seed: int) -> Row:
    """Return what the F null, Brown-Forsythe and the coupling flag say about A1."""
    first, second = contrast.split(means)
    try:
        found = variance_ratio(second, first, upper=upper, seed=seed)
    except DesignError:
        return {}
    return {
        "null_f_low": found.null_low,
        "null_f_high": found.null_high,
        "p_f": found.p_f,
        "p_brown_forsythe": found.p_brown_forsythe,
        "alpha_swapped": found.swapped,
        "mean_coupled": found.mean_coupled,
    }


def _row(contrast: Contrast, metric: str, measure: str, mode: str, *, detail: bool) -> Row:
    row: Row = {"metric": metric, "measure": measure, "mode": mode, "contrast": f"{contrast.first} - {contrast.second}"}
    return row | {"n_prompts": contrast.n_prompts, "n_families": contrast.n_families, "detail": detail}


def _estimate(contrast: Contrast, value: float, interval: tuple[float, float] | None) -> Row:
    if interval is not None:
        return {"value": value, "ci_low": interval[0], "ci_high": interval[1]}
    absent = not contrast.resamples.shape[1]
    note = NO_INTERVAL if absent else "no interval: the statistic is undefined in some resamples"
    return {"value": value, "ci_low": None, "ci_high": None, "ci_note": note}


def _p(contrast: Contrast, p: float | None) -> Row:
    return {"p_value": p} | ({"p_note": contrast.reason} if p is None else {})


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _or_none(compute: Any) -> float | None:  # noqa: ANN401
    try:
        return float(compute())
    except DesignError:
        return None
