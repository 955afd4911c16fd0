"""Many tests at once: family-wise error by Holm, false discovery rate by Benjamini and Hochberg.

p-values are (tests,) arrays; NaN marks a test that was not made: it stays NaN and does not count.

>>> holm([0.01, 0.04, 0.03]).round(3).tolist()
[0.03, 0.06, 0.06]
>>> benjamini_hochberg([0.01, 0.04, 0.03]).round(3).tolist()
[0.03, 0.04, 0.04]
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return step-down Bonferroni adjusted p-values (Holm 1979), valid under any dependence."""
    p, index = _tested(p_values)
    m = len(index)
    order = index[np.argsort(p[index], kind="stable")]
    out = np.full(len(p), np.nan)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * (m - np.arange(m))), 1.0)
    return out


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return q-values (Benjamini & Hochberg 1995): false discovery rate under positive dependence."""
    p, index = _tested(p_values)
    m = len(index)
    order = index[np.argsort(p[index], kind="stable")]
    out = np.full(len(p), np.nan)
    raw = p[order] * m / (np.arange(m) + 1)
    out[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return out


def _tested(p_values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p = np.asarray(p_values, dtype=np.float64)
    index = np.flatnonzero(~np.isnan(p))
    if p.ndim != 1 or ((p[index] < 0) | (p[index] > 1)).any():
        raise InputError(f"p-values must be a list of numbers between 0 and 1; got shape {p.shape}")
    return p, index
