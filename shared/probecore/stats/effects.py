"""Effect sizes and two-sample tests, each with its interval; differences are always first minus second.

Samples are arrays (n,) with one value per independent unit (prompt, speaker): dependent values (tokens, frames) are
averaged inside their unit first (`unit_means`), because the unit is the n. Intervals are two-sided at `level`.

>>> d = cohen_d([2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0])
>>> round(d.value, 3), d.n_first, d.ci_low < 0 < d.ci_high
(0.775, 4, True)
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from scipy.special import ndtr

from probecore.errors import DesignError, InputError
from probecore.validation import one_per_item

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """An effect size, its interval and the number of units of each sample."""

    value: float
    ci_low: float
    ci_high: float
    n_first: int
    n_second: int
    level: float = 0.95


@dataclass(frozen=True)
class Welch:
    """Welch's test: `difference` of the means with its interval, t, df and the two-sided p."""

    difference: float
    ci_low: float
    ci_high: float
    t: float
    df: float
    p_value: float
    n_first: int
    n_second: int


def cohen_d(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Effect:
    """Return Cohen's d = (mean first - mean second) / pooled SD (ddof 1), sign kept, with its noncentral-t interval.

    The interval inverts t = d sqrt(n1 n2 / (n1 + n2)), which is noncentral t with n1 + n2 - 2 degrees of freedom for
    normal samples of equal variance (Hedges and Olkin 1985, ch. 5). Raises `DesignError` when nothing varies.
    """
    a, b = sample(first, "first"), sample(second, "second")
    df = len(a) + len(b) - 2
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / df)
    if not pooled > 1e-12 * max(np.abs(a).max(), np.abs(b).max()):
        raise DesignError("an effect size needs values that vary inside the samples; all are equal: report the means")
    return effect_from_d(float(a.mean() - b.mean()) / pooled, len(a), len(b), level)


def effect_from_d(d: float, n_first: int, n_second: int, level: float = 0.95) -> Effect:
    """Return a published Cohen's d with its noncentral-t interval.

    >>> e = effect_from_d(1.36, 20, 20)
    >>> round(e.ci_low, 2), round(e.ci_high, 2)
    (0.66, 2.04)
    """
    low, high = (n * _per_noncentrality(n_first, n_second) for n in _noncentrality(d, n_first, n_second, level))
    return Effect(d, low, high, n_first, n_second, level)


def hedges_g(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Effect:
    """Return Hedges' g = J d, J = 1 - 3 / (4 df - 1) (Hedges 1981), interval of d scaled by the same J."""
    d = cohen_d(first, second, level)
    j = small_sample_factor(d.n_first + d.n_second - 2)
    return Effect(j * d.value, j * d.ci_low, j * d.ci_high, d.n_first, d.n_second, level)


def small_sample_factor(df: int) -> float:
    """Return J, Hedges' factor that removes the small-sample bias of d."""
    return 1.0 - 3.0 / (4.0 * df - 1.0)


def welch(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Welch:
    """Return Welch's test of equal means (unequal variances, Satterthwaite df) and the interval of the difference."""
    a, b = sample(first, "first"), sample(second, "second")
    share_a, share_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    variance = share_a + share_b
    if not variance > 0:
        raise DesignError("Welch's test needs values that vary inside a sample; all are equal: report the means")
    df = variance**2 / (share_a**2 / (len(a) - 1) + share_b**2 / (len(b) - 1))
    difference, error = float(a.mean() - b.mean()), math.sqrt(variance)
    half = float(stats.t.ppf(0.5 + level / 2, df)) * error
    p = 2.0 * float(stats.t.sf(abs(difference) / error, df))
    return Welch(difference, difference - half, difference + half, difference / error, float(df), p, len(a), len(b))


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a proportion of n independent trials (Wilson 1927); never for clips of few speakers.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if not 0 <= successes <= n or n < 1:
        raise InputError(f"a proportion needs 0 <= successes <= n and n >= 1; got {successes} of {n}")
    z2 = float(stats.norm.ppf(0.5 + level / 2)) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def brown_forsythe(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Return F and p of Brown and Forsythe's test of equal spread (1974): ANOVA of distances from the median."""
    a, b = sample(first, "first"), sample(second, "second")
    x, y = np.abs(a - np.median(a)), np.abs(b - np.median(b))
    if not x.var() + y.var() > 0:
        raise DesignError("equal spread cannot be tested: all distances from the medians are equal")
    result = stats.f_oneway(x, y)
    return float(result.statistic), float(result.pvalue)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test from the two discordant counts of independent pairs."""
    if only_first < 0 or only_second < 0:
        raise InputError(f"discordant counts must be at least 0; got {only_first} and {only_second}")
    n = only_first + only_second
    return 1.0 if n == 0 else float(stats.binomtest(only_first, n, 0.5).pvalue)


def paired_difference_interval(
    both: int, only_first: int, only_second: int, neither: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of a difference of paired proportions, first - second (Newcombe 1998, method 10).

    It is made of the Wilson intervals of both and their correlation, and has a width also where all pairs agree.

    >>> low, high = paired_difference_interval(36, 12, 2, 0)
    >>> round(low, 4), round(high, 4)
    (0.0569, 0.3404)
    """
    if min(both, only_first, only_second, neither) < 0 or both + only_first + only_second + neither < 1:
        raise InputError(
            f"pairs must be counted, at least 1 of them; got {both}, {only_first}, {only_second}, {neither}"
        )
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    (low1, high1), (low2, high2) = wilson_interval(first, n, level), wilson_interval(second, n, level)
    p1, p2 = first / n, second / n
    margins = first * (n - first) * second * (n - second)
    cross = float(both * neither - only_first * only_second)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)  # continuity, as published
    phi = cross / math.sqrt(margins) if margins else 0.0
    down = math.sqrt(max(0.0, (p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2))
    up = math.sqrt(max(0.0, (high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2))
    return max(-1.0, p1 - p2 - down), min(1.0, p1 - p2 + up)


def unit_means(values: ArrayLike, units: ArrayLike) -> tuple[Floats, NDArray[np.generic]]:
    """Return the mean of each unit, (units,), and the sorted units: many tokens of a prompt become one value.

    >>> means, units = unit_means([1.0, 3.0, 5.0], ["p", "p", "q"])
    >>> means.tolist(), units.tolist()
    ([2.0, 5.0], ['p', 'q'])
    """
    array = np.asarray(values, dtype=np.float64)
    names, codes = np.unique(one_per_item(units, len(array), "units"), return_inverse=True)
    array = one_per_item(array, len(codes), "values")
    return np.bincount(codes, weights=array) / np.bincount(codes), names


def sample(values: ArrayLike, name: str, least: int = 2) -> Floats:
    """Return `values` as finite float64 (n,) with at least `least` entries, else raise `InputError`."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise InputError(f"{name} must hold at least {least} values, one per unit; got shape {array.shape}")
    return one_per_item(array, len(array), name)


def _per_noncentrality(n_first: int, n_second: int) -> float:
    return math.sqrt(1.0 / n_first + 1.0 / n_second)


def _noncentrality(d: float, n_first: int, n_second: int, level: float) -> tuple[float, float]:
    """Return the two noncentralities at which the observed t is the upper and the lower quantile."""
    t, df = d / _per_noncentrality(n_first, n_second), n_first + n_second - 2
    s, density = _scaled_chi(df)
    spread = 10.0 + 10.0 * abs(t) / math.sqrt(2.0 * df)

    def solve(tail: float) -> float:
        def excess(noncentrality: float) -> float:
            return float(density @ ndtr(t * s - noncentrality)) - tail

        return float(optimize.brentq(excess, t - spread, t + spread, xtol=1e-10))

    return solve(0.5 + level / 2), solve(0.5 - level / 2)


@functools.cache
def _scaled_chi(df: int) -> tuple[Floats, Floats]:
    """Return nodes and weights of s with s^2 df ~ chi2(df): P(T <= t) = E Phi(t s - noncentrality).

    A smooth integral (Gauss-Legendre, 200 nodes), exact to 1e-12 where scipy's nct gives NaN far from the centre.
    """
    low, high = np.sqrt(stats.chi2.ppf(1e-15, df) / df), np.sqrt(stats.chi2.isf(1e-15, df) / df)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    s = low + (high - low) * (nodes + 1) / 2
    density = weights * stats.chi.pdf(s * math.sqrt(df), df)
    return s, density / density.sum()
