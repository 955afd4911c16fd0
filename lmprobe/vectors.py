"""Vectors and subspaces of the residual stream, in float64, as interventions and edits of weights take them.

Conventions. A vector has shape (d,), a basis (d, k) with one direction a column, or (d,) for one. Only the span of a
basis matters. What numpy or torch can make an array of is accepted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from probecore.errors import InputError

Vectors = Any  # what numpy or torch can make an array of
DEPENDENT = 1e-6  # unit columns whose smallest singular value is below this are one direction too many


def orthonormal(basis: Vectors) -> Tensor:
    """Return orthonormal columns (d, k) in float64 that span the columns of a basis, (d,) or (d, k).

    Raises `InputError` for columns that are not finite, zero, or not linearly independent: QR would fill up the span
    with a direction nobody asked for.
    """
    columns = torch.as_tensor(np.asarray(plain(basis)), dtype=torch.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or not bool(torch.isfinite(columns).all()) or columns.shape[1] > columns.shape[0]:
        raise InputError(
            f"a basis must be finite, (features,) or (features, directions) with no more directions than features; "
            f"got shape {tuple(columns.shape)}"
        )
    norms = columns.norm(dim=0)
    if bool((norms == 0).any()):
        raise InputError("the directions of a basis must not be zero; at least one is: leave it out")
    unit = columns / norms
    if unit.shape[1] and float(torch.linalg.svdvals(unit)[-1]) < DEPENDENT:
        rank = int((torch.linalg.svdvals(unit) >= DEPENDENT).sum())
        raise InputError(
            f"the directions of a basis must be linearly independent; {unit.shape[1]} span {rank} dimensions: "
            "leave out the repeated ones"
        )
    frame: Tensor = torch.linalg.qr(unit)[0]
    return frame


def vector(values: Vectors, name: str) -> Tensor:
    """Return a vector (d,) in float64; raises `InputError` where it is none or not finite."""
    found = torch.as_tensor(np.asarray(plain(values)), dtype=torch.float64)
    if found.ndim != 1 or not bool(torch.isfinite(found).all()):
        raise InputError(f"{name} must be finite with shape (features,); got shape {tuple(found.shape)}")
    return found


def plain(values: Vectors) -> Any:  # noqa: ANN401
    """Return values as numpy can take them."""
    return values.detach().double().cpu().numpy() if isinstance(values, Tensor) else values


class Constant:
    """A float64 tensor and its copies in the dtypes and on the devices where it was wanted."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, hidden: Tensor) -> Tensor:
        """Return the copy in the dtype and on the device of `hidden`."""
        key = (hidden.dtype, hidden.device)
        if key not in self._copies:
            self._copies[key] = self.value.to(hidden.dtype).to(hidden.device)
        return self._copies[key]
