"""Is one class of items more variable than another? alpha = 1 - var_reference / var_other, and what it needs.

alpha is no index on [0, 1]: its range is (-inf, 1], its null interval is wide (n = 20 and 20: [-1.53, .60]), and a
difference of means alone moves it wherever spread depends on the mean. So it comes with its exact normal-theory null
(1 - F), an empirical null (random splits), LVR = log of the SD ratio (0 = equal, antisymmetric), lnCVR (the same for
coefficients of variation), LVR on the logit scale for a bounded quantity, and the flag `mean_coupled`.
Samples are arrays (n,), one value per independent unit. LVR, lnCVR: Nakagawa et al. 2015.

>>> low, high = alpha_null_interval(20, 20)
>>> round(low, 3), round(high, 3)
(-1.526, 0.604)
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from probecore.errors import DesignError, InputError
from probecore.seeds import generator
from probecore.stats.effects import brown_forsythe, sample, welch
from probecore.validation import at_least

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LogRatio:
    """A log ratio of spreads, other over reference, and its normal-theory interval."""

    value: float
    ci_low: float
    ci_high: float

    @property
    def sign(self) -> int:
        """+1 or -1 when the interval leaves out 0, else 0."""
        return int(self.ci_low > 0) - int(self.ci_high < 0)


@dataclass(frozen=True)
class VarianceRatio:
    """alpha and everything needed to judge it.

    swapped : alpha with the roles of the classes exchanged. null_low, null_high : exact null interval of alpha for
    normal samples of these sizes; p_f its two-sided p. split_low, split_high : null interval from random splits of the
    pooled, mean-centred values; p_split the p of |LVR| in them, (b + 1) / (m + 1). p_brown_forsythe : robust to
    non-normal values. lvr, lncvr, lvr_logit : log ratios (None where not defined). mean_coupled : the means differ and
    not every mean-adjusted reading confirms the direction of LVR, so the difference of spread may be the shadow of the
    difference of means.
    """

    alpha: float
    swapped: float
    null_low: float
    null_high: float
    p_f: float
    split_low: float
    split_high: float
    p_split: float
    p_brown_forsythe: float
    lvr: LogRatio
    lncvr: LogRatio | None
    lvr_logit: LogRatio | None
    mean_coupled: bool
    n_reference: int
    n_other: int


def variance_ratio(
    reference: ArrayLike,
    other: ArrayLike,
    *,
    upper: float | None = None,
    level: float = 0.95,
    n_splits: int = 1000,
    seed: int = 0,
) -> VarianceRatio:
    """Compare the spread of two classes of items; see the module for what is reported and why.

    upper : the largest value the quantity can take when it lies between 0 and a bound (entropy: log V). Without it the
    bound cannot be corrected for, and `mean_coupled` rests on lnCVR alone.
    Raises `DesignError` when a sample does not vary (alpha is then 0/0 or 1 by construction).
    """
    a, b = sample(reference, "reference", 3), sample(other, "other", 3)
    var_a, var_b = float(a.var(ddof=1)), float(b.var(ddof=1))
    floor = 1e-24 * max(np.abs(a).max(), np.abs(b).max()) ** 2
    for values, name in ((var_a, "reference"), (var_b, "other")):
        if not values > floor:
            raise DesignError(
                f"a variance ratio needs values that vary; all values of {name} are equal: report the SDs"
            )
    alpha = 1.0 - var_a / var_b
    null = alpha_null_interval(len(a), len(b), level)
    split_alpha = _split_null(a, b, at_least(n_splits, 1, "n_splits"), seed)
    tails = np.quantile(split_alpha, [(1 - level) / 2, (1 + level) / 2])
    extreme = int((np.abs(np.log1p(-split_alpha)) >= abs(math.log(var_a / var_b)) * (1 - 1e-9)).sum())
    lvr = _log_ratio(a, b, level)
    positive = a.min() > 0 and b.min() > 0
    lncvr = _log_ratio(a, b, level, per_mean=True) if positive else None
    lvr_logit = None
    if upper is not None:
        least, most = min(a.min(), b.min()), max(a.max(), b.max())
        if least < 0 or most > upper:
            raise InputError(f"values must lie between 0 and upper = {upper:g}; got {least:g} to {most:g}")
        u, v = _logit(a / upper), _logit(b / upper)
        lvr_logit = _log_ratio(u, v, level)
    readings = [r for r in (lncvr, lvr_logit) if r is not None]
    confirmed = bool(readings) and all(r.sign == np.sign(lvr.value) for r in readings)
    return VarianceRatio(
        alpha=alpha,
        swapped=1.0 - var_b / var_a,
        null_low=null[0],
        null_high=null[1],
        p_f=alpha_p_value(alpha, len(a), len(b)),
        split_low=float(tails[0]),
        split_high=float(tails[1]),
        p_split=(extreme + 1) / (n_splits + 1),
        p_brown_forsythe=brown_forsythe(a, b)[1],
        lvr=lvr,
        lncvr=lncvr,
        lvr_logit=lvr_logit,
        mean_coupled=bool(welch(a, b).p_value < 0.05 and not confirmed),
        n_reference=len(a),
        n_other=len(b),
    )


def alpha_null_interval(n_reference: int, n_other: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of alpha for two normal samples of equal variance: 1 - F(n_ref - 1, n_other - 1)."""
    low, high = stats.f.ppf([(1 - level) / 2, (1 + level) / 2], n_reference - 1, n_other - 1)
    return 1.0 - float(high), 1.0 - float(low)


def alpha_p_value(alpha: float, n_reference: int, n_other: int) -> float:
    """Return the two-sided F p of a published alpha (a reference only: F is not robust to non-normal values).

    >>> [round(alpha_p_value(a, 20, 20), 3) for a in (0.096, 0.674, 0.462)]
    [0.828, 0.019, 0.186]
    """
    ratio = 1.0 - alpha
    tails = stats.f.cdf(ratio, n_reference - 1, n_other - 1), stats.f.sf(ratio, n_reference - 1, n_other - 1)
    return 2.0 * float(min(tails))


def _log_ratio(a: Floats, b: Floats, level: float, *, per_mean: bool = False) -> LogRatio:
    """Return log(sd_b) - log(sd_a), or of sd / mean, corrected for sample size, with its delta-method interval.

    Var log(sd) = 1 / (2 (n - 1)); a coefficient of variation adds CV^2 / n (normal samples).
    """
    value, variance = 0.0, 0.0
    for x, sign in ((b, 1.0), (a, -1.0)):
        n, spread = len(x), float(x.std(ddof=1))
        if per_mean:
            spread /= float(x.mean())
            variance += spread**2 / n
        value += sign * (math.log(spread) + 1 / (2 * (n - 1)))
        variance += 1 / (2 * (n - 1))
    half = float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt(variance)
    return LogRatio(value, value - half, value + half)


def _split_null(a: Floats, b: Floats, n_splits: int, seed: int) -> Floats:
    """Return alpha (n_splits,) of random splits of the pooled, mean-centred values into samples of the same sizes."""
    pooled = np.concatenate([a - a.mean(), b - b.mean()])
    rng = generator(seed, "variance ratio", "splits")
    drawn = rng.permuted(np.broadcast_to(pooled, (n_splits, len(pooled))), axis=1)
    var_b = drawn[:, len(a) :].var(axis=1, ddof=1)
    return np.asarray(1.0 - drawn[:, : len(a)].var(axis=1, ddof=1) / np.maximum(var_b, np.finfo(float).tiny))


def _logit(share: Floats) -> Floats:
    inside = np.clip(share, 1e-12, 1 - 1e-12)
    return np.log(inside) - np.log1p(-inside)
