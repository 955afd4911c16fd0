"""Randomisation tests and bootstrap intervals of any statistic of one or two samples.

Samples are arrays (n,) with one value per independent unit; a statistic is "mean-difference" (first minus second,
vectorised) or a function of the two samples. p = (b + 1) / (m + 1) from m random exchanges, or the share of all
exchanges (the observed one among them) when there are at most 10,000. Ties count as at least as extreme, to a
relative tolerance of 1e-9.

>>> test = exchange_test([5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0])
>>> test.p_value == 2 / 70, test.exhaustive
(True, True)
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from probecore.errors import DesignError, InputError
from probecore.seeds import generator
from probecore.stats.effects import sample
from probecore.validation import at_least, one_of, one_per_item

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]
Statistic = Literal["mean-difference"] | Callable[[Floats, Floats], float]

EXHAUSTIVE_UP_TO = 10_000


@dataclass(frozen=True)
class ExchangeTest:
    """A randomisation test: the statistic, its p, the smallest p this design can give and what the null looked like."""

    statistic: float
    p_value: float
    smallest_p: float
    n_exchanges: int
    exhaustive: bool
    null_mean: float
    null_sd: float
    alternative: Alternative


def exchange_test(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic = "mean-difference",
    *,
    alternative: Alternative = "two-sided",
    n_exchanges: int = 9999,
    seed: int = 0,
) -> ExchangeTest:
    """Test whether the labels of two samples are exchangeable, by permuting them over all units.

    "two-sided" compares absolute values of the statistic, which must then be centred at 0 under the null.
    """
    a, b = sample(first, "first", 1), sample(second, "second", 1)
    values = np.concatenate([a, b])
    n, k = len(values), len(a)
    total = math.comb(n, k)
    exhaustive = total <= EXHAUSTIVE_UP_TO
    if exhaustive:
        chosen = np.array(list(itertools.combinations(range(n), k)), dtype=np.intp)  # the observed one comes first
        in_first = np.zeros((total, n), dtype=bool)
        in_first[np.arange(total)[:, None], chosen] = True
    else:
        rng = generator(seed, "exchange test")
        at_least(n_exchanges, 1, "n_exchanges")
        observed = np.arange(n)[None] < k
        in_first = np.concatenate([observed, rng.permuted(np.repeat(observed, n_exchanges, axis=0), axis=1)])
    if callable(statistic):
        outcome = np.array([statistic(values[row], values[~row]) for row in in_first], dtype=np.float64)
    else:
        one_of(statistic, ("mean-difference",), "statistic")
        centred = values - values.mean()
        outcome = (in_first @ centred) * (n / (k * (n - k)))
    same = total == 1 or (alternative == "two-sided" and len(a) == len(b))
    smallest = min(1.0, (2 if same else 1) / total) if exhaustive else 1.0 / len(in_first)
    return _judge(outcome, alternative, exhaustive, smallest, _scale(values))


def sign_flip_test(
    differences: ArrayLike,
    *,
    alternative: Alternative = "two-sided",
    n_exchanges: int = 9999,
    seed: int = 0,
) -> ExchangeTest:
    """Test whether the mean of paired differences (pairs,) is zero, by flipping their signs (Fisher 1935)."""
    values = sample(differences, "differences", 1)
    n = len(values)
    exhaustive = 2**n <= EXHAUSTIVE_UP_TO
    if exhaustive:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))  # all plus, the observed one, comes first
        smallest = (1 if alternative != "two-sided" else 2) / 2**n
    else:
        at_least(n_exchanges, 1, "n_exchanges")
        signs = np.ones((n_exchanges + 1, n))
        signs[1:] = generator(seed, "sign flips").choice((1.0, -1.0), size=(n_exchanges, n))
        smallest = 1.0 / (n_exchanges + 1)
    return _judge(signs @ values / n, alternative, exhaustive, smallest, _scale(values))


def bootstrap_interval(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    clusters: Sequence[ArrayLike | None] | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    method: Literal["percentile", "bca"] = "percentile",
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap interval of `statistic(*samples)`; whole clusters are drawn, separately in each sample.

    clusters : for each sample the cluster (n_i,) of each value, or None where every value is its own cluster.
    "bca" corrects bias and skewness with a delete-one-cluster jackknife (Efron 1987). Raises `DesignError` when a
    sample has fewer than 2 clusters.
    """
    one_of(method, ("percentile", "bca"), "method")
    data = [sample(values, f"sample {i}", 1) for i, values in enumerate(samples)]
    given = clusters if clusters is not None else [None] * len(data)
    if len(given) != len(data):
        raise InputError(f"clusters must name one array per sample; got {len(given)} for {len(data)} samples")
    members = [_members(values, of) for values, of in zip(data, given, strict=True)]
    for i, parts in enumerate(members):
        if len(parts) < 2:
            raise DesignError(f"a bootstrap interval needs at least 2 clusters in each sample; sample {i} has 1")
    rng = generator(seed, "bootstrap interval")
    outcome = np.empty(at_least(n_resamples, 2, "n_resamples"))
    for i in range(n_resamples):
        drawn = (np.concatenate([parts[j] for j in rng.integers(0, len(parts), len(parts))]) for parts in members)
        outcome[i] = statistic(*drawn)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        tails = _bca_tails(statistic, data, members, outcome, tails)
    low, high = np.quantile(outcome, tails)
    return float(low), float(high)


def _bca_tails(
    statistic: Callable[..., float],
    data: Sequence[Floats],
    members: Sequence[Sequence[Floats]],
    outcome: Floats,
    tails: Floats,
) -> Floats:
    """Return the quantiles BCa takes: bias z0 from the share below the estimate, acceleration from a jackknife."""
    estimate = statistic(*data)
    below = (outcome < estimate).mean() + (outcome == estimate).mean() / 2
    if not 0 < below < 1:
        return tails  # a degenerate bootstrap has no bias correction
    cubes = squares = 0.0
    for i, parts in enumerate(members):
        left_out = []
        for j in range(len(parts)):
            rest = np.concatenate([*parts[:j], *parts[j + 1 :]])
            left_out.append(statistic(*data[:i], rest, *data[i + 1 :]))
        u = (len(parts) - 1) * (np.mean(left_out) - np.array(left_out))
        cubes += float((u**3).sum()) / len(parts) ** 3
        squares += float((u**2).sum()) / len(parts) ** 2
    acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
    z0 = float(ndtri(below))
    z = z0 + ndtri(tails)
    return np.asarray(ndtr(z0 + z / (1 - acceleration * z)))


def _members(values: Floats, clusters: ArrayLike | None) -> list[Floats]:
    if clusters is None:
        return [values[i : i + 1] for i in range(len(values))]
    codes = np.unique(one_per_item(clusters, len(values), "clusters"), return_inverse=True)[1]
    return [values[codes == c] for c in range(codes.max() + 1)]


def _judge(outcome: Floats, alternative: Alternative, exhaustive: bool, smallest: float, scale: float) -> ExchangeTest:
    """Count exchanges at least as extreme as the observed one, which is entry 0 and always among them."""
    one_of(alternative, ("two-sided", "greater", "less"), "alternative")
    side = {"two-sided": np.abs(outcome), "greater": outcome, "less": -outcome}[alternative]
    extreme = int((side >= side[0] - 1e-9 * max(abs(float(side[0])), scale)).sum())
    return ExchangeTest(
        float(outcome[0]),
        extreme / len(outcome),
        smallest,
        len(outcome) if exhaustive else len(outcome) - 1,
        exhaustive,
        float(outcome.mean()),
        float(outcome.std()),
        alternative,
    )


def _scale(values: Floats) -> float:
    """Return the size below which differences of means are rounding error, times 1e9."""
    return 1e-3 * float(np.abs(values - values.mean()).max())
