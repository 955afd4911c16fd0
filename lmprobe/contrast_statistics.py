"""Statistics of a contrast: gaps, standardised and adjusted ones, and ratios of variances in three readings.

Conventions. Each is made of values of the contrast's prompts, (n,) or (n, T), and is a function of two weight matrices
(n, K), the prompts of the first and of the second category in K resamples or labelings, that returns (K,); see
`lmprobe.contrasts`, which draws them. A variance is a function of one such matrix.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.validation import one_per_item

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]


def gap(values: ArrayLike) -> Statistic:
    """Return the statistic mean(first) - mean(second) of values (n,)."""
    array = np.asarray(values, dtype=np.float64)
    one_per_item(array, len(array), "values")

    def statistic(first: Floats, second: Floats) -> Floats:
        return np.asarray((array @ first) / first.sum(0) - (array @ second) / second.sum(0))

    return statistic


def standardised_gap(values: ArrayLike) -> Statistic:
    """Return Cohen's d as a statistic: the gap over the pooled standard deviation (ddof 1) of values (n,)."""
    difference, variance = gap(values), between_variance(values)

    def statistic(first: Floats, second: Floats) -> Floats:
        n, m = first.sum(0), second.sum(0)
        pooled = ((n - 1) * variance(first) + (m - 1) * variance(second)) / (n + m - 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(difference(first, second) / np.sqrt(pooled))

    return statistic


def log_variance_ratio(variance: Callable[[Floats], Floats]) -> Statistic:
    """Return the statistic 0.5 log(variance(first) / variance(second)): LVR of a reading of the variance."""

    def statistic(first: Floats, second: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(0.5 * np.log(variance(first) / variance(second)))

    return statistic


def alpha(variance: Callable[[Floats], Floats]) -> Statistic:
    """Return the statistic alpha = 1 - variance(second) / variance(first), with risk first and safe second."""

    def statistic(first: Floats, second: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1.0 - variance(second) / variance(first))

    return statistic


def between_variance(means: ArrayLike) -> Callable[[Floats], Floats]:
    """Return reading A1: the variance over prompts of their mean entropy (n,), ddof 1."""
    given = np.asarray(means, dtype=np.float64)
    values = given - given.mean()

    def variance(weights: Floats) -> Floats:
        n = weights.sum(0)
        return _without_rounding(((values**2) @ weights - (values @ weights) ** 2 / n) / (n - 1), given)

    return variance


def pooled_variance(traces: ArrayLike) -> Callable[[Floats], Floats]:
    """Return reading A2: the variance over all valid tokens of traces (n, T), NaN where not valid; ddof 0."""
    given = np.asarray(traces, dtype=np.float64)
    values = given - np.nanmean(given)
    n_tokens, sums, squares = (~np.isnan(values)).sum(1), np.nansum(values, 1), np.nansum(values**2, 1)

    def variance(weights: Floats) -> Floats:
        n = n_tokens @ weights
        return _without_rounding((squares @ weights) / n - ((sums @ weights) / n) ** 2, given)

    return variance


def within_variance(traces: ArrayLike) -> Callable[[Floats], Floats]:
    """Return reading A3: the mean over prompts of the variance over their valid tokens, traces (n, T); ddof 0."""
    given = np.asarray(traces, dtype=np.float64)
    own = np.nanvar(given, axis=1)

    def variance(weights: Floats) -> Floats:
        return _without_rounding((own @ weights) / weights.sum(0), given)

    return variance


def _without_rounding(variance: Floats, values: Floats) -> Floats:
    """Return variances with those that are rounding error of the values set to 0, so that their ratio is undefined."""
    floor = (1e-12 * np.nanmax(np.abs(values))) ** 2
    return np.where(variance > floor, variance, 0.0)


def adjusted_gap(
    values: ArrayLike, covariates: ArrayLike, families: ArrayLike | None = None
) -> tuple[Statistic, Statistic]:
    """Return the gap that covariates (n, c) leave, and its t: coefficient of the category in a linear regression.

    values = a + gap x [first] + covariates b + error, fitted to the weighted prompts. families : (n,) codes where they
    hold both categories; then a is one of each family, so that a topic that moves both covariate and value is no part
    of b. Resamples draw whole families, so their members have one weight.

    The t (least squares, weighted prompts as repeats) is what an exchange of categories compares: an exchanged category
    is no longer correlated with the covariates, so the coefficient alone varies less there than it does as observed.
    """
    y, z = np.asarray(values, dtype=np.float64), np.asarray(covariates, dtype=np.float64)
    member = np.ones((1, len(y))) if families is None else _members(families)
    y, z = y - y.mean(), z - z.mean(axis=0)
    if families is not None:
        y = y - member.T @ ((member @ y) / member.sum(1))
        z = z - member.T @ ((member @ z) / member.sum(1)[:, None])
    spread = z.std(axis=0)
    z = z[:, spread > 1e-12] / spread[spread > 1e-12]

    def fit(first: Floats, second: Floats) -> tuple[Floats, Floats]:
        w, size = first + second, z.shape[1] + 2
        d = np.where(w > 0, first / np.maximum(w, 1e-300), 0.0)
        n_families = np.ones(w.shape[1])
        if families is not None:
            inside = member @ w
            d = d - member.T @ ((member @ first) / np.where(inside > 0, inside, 1.0))
            n_families = (inside / member.sum(1)[:, None]).sum(0)
        wd = w * d
        normal, right = np.zeros((w.shape[1], size, size)), np.zeros((w.shape[1], size))
        normal[:, 0, 0], normal[:, 0, 1], normal[:, 1, 1] = w.sum(0), wd.sum(0), (wd * d).sum(0)
        normal[:, 0, 2:], normal[:, 1, 2:] = w.T @ z, wd.T @ z
        normal[:, 2:, 2:] = np.einsum("nk,na,nb->kab", w, z, z, optimize=True)
        upper = np.triu(np.ones((size, size), dtype=bool))
        normal = np.where(upper, normal, normal.transpose(0, 2, 1))
        right[:, 0], right[:, 1], right[:, 2:] = y @ w, y @ wd, (w * y[:, None]).T @ z
        inverse = np.linalg.pinv(normal, hermitian=True)
        beta = np.einsum("kab,kb->ka", inverse, right)
        left = np.maximum((y**2) @ w - (beta * right).sum(1), 0.0)
        freedom = np.maximum(w.sum(0) - z.shape[1] - 1 - n_families, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return beta[:, 1], beta[:, 1] / np.sqrt(left / freedom * inverse[:, 1, 1])

    return (lambda a, b: fit(a, b)[0]), (lambda a, b: fit(a, b)[1])


def _members(families: ArrayLike) -> Floats:
    """Return which prompt belongs to which family, (families, prompts) of 0 and 1."""
    codes = np.asarray(families)
    return np.asarray(np.unique(codes)[:, None] == codes[None], dtype=np.float64)
