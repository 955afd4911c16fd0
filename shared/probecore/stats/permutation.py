"""p-values from statistics of many labelings: one test, and families of tests with their maximum.

Conventions. `statistics` is (tests, labelings) or (labelings,), larger means more effect, column 0 is the observed
labelling. p = (b + 1) / (m + 1), where b of the m other labelings reach the observed value up to a relative tolerance:
equal labelings do not always give bit-equal statistics in one matrix product. p is never 0.

>>> float(p_value([3.0, 1.0, 2.0, 0.5]))
0.25
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError

TOLERANCE = 1e-9


def p_value(statistics: ArrayLike) -> NDArray[np.float64]:
    """Return (b + 1) / (m + 1) for each test, (tests,) or a scalar array; NaN where a statistic is NaN."""
    values = _checked(statistics)
    reached = values[..., 1:] >= _less(values)[..., None]
    p = (1 + reached.sum(-1)) / values.shape[-1]
    out: NDArray[np.float64] = np.where(np.isnan(values).any(-1), np.nan, p)
    return out


def standardise(statistics: ArrayLike) -> NDArray[np.float64]:
    """Return z = (statistic - mean) / sd over all labelings, observed included; 0 where all are equal."""
    values = _checked(statistics)
    mean, sd = values.mean(-1, keepdims=True), values.std(-1, keepdims=True)
    flat: NDArray[np.bool_] = sd <= TOLERANCE * np.abs(values).max(-1, keepdims=True)
    z: NDArray[np.float64] = np.where(flat, 0.0, (values - mean) / np.where(flat, 1.0, sd))
    return z


def max_t(statistics: ArrayLike, *, step_down: bool = True) -> NDArray[np.float64]:
    """Return p-values adjusted for the family of tests, (tests,): max-T of z (Westfall & Young 1993).

    Single step compares each z with the maximum over all tests in each labelling; step-down with the maximum over
    this and all weaker tests, made monotone. Tests that are NaN are left out and stay NaN.
    """
    values = np.atleast_2d(_checked(statistics))
    out = np.full(len(values), np.nan)
    tested = np.flatnonzero(~np.isnan(values).any(1))
    if not len(tested):
        return out
    z = standardise(values[tested])
    order = np.argsort(-z[:, 0], kind="stable")
    ranked = z[order]
    best = np.maximum.accumulate(ranked[::-1], 0)[::-1] if step_down else np.broadcast_to(ranked.max(0), ranked.shape)
    p = (1 + (best[:, 1:] >= _less(ranked)[:, None]).sum(1)) / z.shape[1]
    out[tested[order]] = np.maximum.accumulate(p) if step_down else p
    return out


def _less(values: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = values[..., 0] - TOLERANCE * np.abs(values).max(-1)
    return out


def _checked(statistics: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(statistics, dtype=np.float64)
    if values.ndim not in (1, 2) or values.shape[-1] < 1:
        raise InputError(f"statistics must have shape (tests, labelings); got {values.shape}")
    return values
