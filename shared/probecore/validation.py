"""The checks at the door: public functions call these once, inner functions trust their arguments.

Every check raises `InputError` with the rule, the value met and the next step.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError, shorten


def finite_matrix(values: ArrayLike, name: str) -> NDArray[Any]:
    """Return `values` as a float array (items, features) without NaN or infinity."""
    array = np.asarray(values)
    if array.ndim != 2:
        raise InputError(f"{name} must have shape (items, features); got shape {array.shape}")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold numbers; got dtype {array.dtype}")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise InputError(
            f"{name} must be finite; items {shorten(bad.tolist(), most=5)} hold NaN or infinity: "
            "leave them out or repair them"
        )
    return array


def one_per_item(values: ArrayLike, n_items: int, name: str) -> NDArray[Any]:
    """Return `values` as an array (n_items,) without missing entries."""
    array = np.asarray(values)
    if array.shape != (n_items,):
        raise InputError(f"{name} must have one entry per item, shape ({n_items},); got {array.shape}")
    missing = [
        i
        for i, value in enumerate(array.tolist())
        if value is None or (isinstance(value, float) and not np.isfinite(value)) or value == ""
    ]
    if missing:
        raise InputError(f"{name} is missing for items {shorten(missing, most=5)}: give each item one")
    return array


def at_least(value: int, least: int, name: str) -> int:
    """Return `value` when it is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} must be an int of at least {least}; got {value!r}")
    return int(value)


def one_of(value: str, choices: Collection[str], name: str) -> str:
    """Return `value` when it is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")
    return value


def codes_of(values: ArrayLike) -> tuple[NDArray[np.int64], list[Any]]:
    """Return integer codes (items,) and the sorted distinct values they stand for.

    >>> codes_of(["b", "a", "b"])
    (array([1, 0, 1]), ['a', 'b'])
    """
    distinct, codes = np.unique(np.asarray(values), return_inverse=True)
    return codes.astype(np.int64), distinct.tolist()


def constant_inside(values: Sequence[Any] | NDArray[Any], units: NDArray[Any]) -> bool:
    """Tell whether `values` has one value inside every unit."""
    first: dict[Any, Any] = {}
    return all(first.setdefault(u, v) == v for u, v in zip(units.tolist(), np.asarray(values).tolist(), strict=True))
