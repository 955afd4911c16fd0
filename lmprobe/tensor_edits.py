"""Edits of one tensor: a subspace is taken out of every vector along the axis that writes into the residual stream.

Conventions. Q (d, k) orthonormal in float64. Each vector w along the axis of width d becomes v = w - s Q Q^T w with
strength s; norm-preserving it becomes ||w|| v / ||v||. Arithmetic is float64, rounded once to the tensor's dtype, a
part of a large tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lmprobe.edit_report import TensorEdit, tensor_hash
from lmprobe.writers import Writer

AT_ONCE = 2**22  # numbers that are float64 at one time


def edit_tensor(
    writer: Writer, frame: Tensor, strength: float = 1.0, *, norm_preserving: bool = False, shift: Tensor | None = None
) -> TensorEdit:
    """Edit one writer in place.

    frame : (d, k) float64, orthonormal. Behind a norm with gain g the basis of diag(g) Q is taken out instead.
    norm_preserving : vectors keep their length; a bias is projected, and a vector that lies in the subspace becomes 0.
    shift : (d,) added to every vector in the size in which it reaches the stream.
    """
    parameter = writer.parameter
    q = behind(frame, writer.gain)
    before = tensor_hash(parameter)
    gram = torch.zeros(q.shape[1], q.shape[1], dtype=torch.float64)
    total, emptied = 0.0, 0
    for matrix in _matrices(parameter.data, writer.axis):
        for part in matrix.split(max(1, AT_ONCE // matrix.shape[1])):
            device = torch.device("cpu") if part.device.type == "mps" else part.device
            w, basis = part.to(device, torch.float64), q.to(device)
            along = w @ basis
            new = w - strength * (along @ basis.T)
            if norm_preserving and writer.layout != "bias":
                norms, left = w.norm(dim=1, keepdim=True), new.norm(dim=1, keepdim=True)
                gone = left <= 2 * torch.finfo(part.dtype).eps * norms  # what is left is rounding, no direction
                emptied += int((gone & (norms > 0)).sum())
                new = torch.where(gone, 0.0, new * norms / left.clamp(min=1e-300))
            if shift is not None:
                new = new + shift.to(device) / writer.scale
            gram += (along.T @ along).cpu()
            total += float(w.square().sum())
            part.copy_(new.to(part.dtype))
    found = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt() if len(gram) else torch.zeros(1)
    rank = int((found > 1e-7 * found.max()).sum()) if strength and float(found.max()) > 0 else 0
    return TensorEdit(
        name=writer.name, site=writer.site, layout=writer.layout, shape=tuple(parameter.shape),
        removed=float(gram.trace().sqrt()) / max(total, 1e-300) ** 0.5,
        rank=None if norm_preserving or shift is not None else rank,
        emptied=emptied, before=before, after=tensor_hash(parameter),
    )  # fmt: skip


def behind(frame: Tensor, gain: Tensor | None) -> Tensor:
    """Return what to take out of the input of a norm with gain g (None is no norm): a basis of diag(g) Q."""
    if gain is None or not frame.shape[1]:
        return frame
    u, sizes, _ = torch.linalg.svd(gain[:, None] * frame, full_matrices=False)
    kept: Tensor = u[:, sizes > 1e-10 * sizes.max()]
    return kept


def _matrices(tensor: Tensor, axis: int) -> Iterator[Tensor]:
    """Yield a tensor as matrices (vectors, d) that share its memory: one, or one per expert."""
    view = tensor.movedim(axis, -1)
    if view.ndim <= 2:
        yield view[None] if view.ndim == 1 else view
    else:
        yield from view
