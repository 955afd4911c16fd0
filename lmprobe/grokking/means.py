"""Means over seeds: one value a member, the mean with its interval, and what a missing or censored value does to it.

Conventions. Intervals are 95 % t intervals over seeds (mean +- t sd / sqrt(n)); they speak of seeds, not of other
sizes or tasks. A number that is censored (k@95 above k_max) enters as the least it can be, and then there is no upper
end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from probecore.stats.bootstrap import t_p_value, t_quantile


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; None where there is none, with the reason. p : of t against 0, for differences."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    lowest: float | None = None
    highest: float | None = None
    n: int = 0
    n_censored: int = 0
    p_value: float | None = None
    note: str = ""


def mean_over_seeds(values: Sequence[float], *, n_censored: int = 0, logarithm: bool = False) -> Mean:
    """Return the mean of one value per seed with its t interval, or of their logarithms.

    n_censored : how many of the values are only the least they can be; the mean is then a lower bound, its interval
    has no upper end.

    >>> m = mean_over_seeds([1.0, 2.0, 3.0])
    >>> (m.value, round(m.low, 3), round(m.high, 3), m.n)
    (2.0, -0.484, 4.484, 3)
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return Mean(note="no member of this condition has the number")
    ends = float(x.min()), float(x.max())
    if logarithm:
        x = np.log(x)
    back: Callable[[float], float] = math.exp if logarithm else float
    centre = float(x.mean())
    bound = (
        f"{n_censored} of {len(x)} values are the least they can be: the mean is a lower bound" if n_censored else ""
    )
    if len(x) < 2:
        alone = "one seed has no interval"
        return Mean(back(centre), None, None, *ends, 1, n_censored, None, f"{bound}; {alone}" if bound else alone)
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    if error == 0:  # counts that happen to agree are no proof that all seeds would
        alike = f"{len(x)} seeds agree exactly: no spread to make an interval of"
        note = f"{bound}; {alike}" if bound else alike
        return Mean(back(centre), None, None, *ends, len(x), n_censored, None, note)
    half = t_quantile(len(x) - 1) * error
    p = None if n_censored else t_p_value(centre / error, len(x) - 1)
    high = None if n_censored else back(centre + half)
    return Mean(back(centre), back(centre - half), high, *ends, len(x), n_censored, p, bound)
