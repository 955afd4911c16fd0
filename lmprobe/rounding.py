"""Rounding: when two states of one text count as the same, so that a model can be certified.

Conventions. A gap is the largest absolute difference over a tensor; it counts as rounding up to `limit_of(dtype)` times
the tensor's root mean square. A quantised model computes in fewer bits than its states have: there up to 0.1 of it
counts between texts, because 8-bit kernels choose scales and outliers over all tokens of a pass; the noise floor says
how much it is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOST = 0.1  # of a state's root mean square: more is never called rounding


def eps_of(states: Tensor) -> float:
    """Return the relative resolution of a tensor's dtype."""
    return float(torch.finfo(states.dtype).eps)


def limit_of(dtype: torch.dtype) -> float:
    """Return the largest relative change that still counts as rounding: 1000 units in the last place, at most 0.1.

    Sums over a few thousand terms in another order move a result by tens of units; a wrong position or a visible pad
    moves it by a good part of its size.
    """
    return min(MOST, 1000 * torch.finfo(dtype).eps)


def is_quantised(model: Any) -> bool:  # noqa: ANN401
    """Tell whether a model's weights are quantised: its arithmetic is then coarser than the dtype of its states."""
    return getattr(model, "hf_quantizer", None) is not None or bool(getattr(model, "is_quantized", False))


def gap_of(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference of two tensors, infinite where it is no number."""
    if torch.equal(a, b):
        return 0.0
    gap = (a.cpu().double() - b.cpu().double()).abs().max()
    return float(gap) if torch.isfinite(gap) else float("inf")


def scale_of(reference: Tensor) -> float:
    """Return the root mean square of a tensor, never 0."""
    return max(float(reference.cpu().double().square().mean().sqrt()), 1e-30)


def is_rounding(gap: float, reference: Tensor, at_least: float = 0.0) -> bool:
    """Tell whether a gap from `reference` is rounding; at_least : share of its size that is rounding in any dtype."""
    return gap <= max(limit_of(reference.dtype), at_least) * scale_of(reference)


def worst_gap(a: Sequence[Tensor], b: Sequence[Tensor], model: nn.Module) -> tuple[float, bool]:
    """Return the largest gap over layers, and whether every layer's gap is rounding, or that of 8 bits."""
    limit = MOST if is_quantised(model) else 0.0
    gaps = [gap_of(x, y) for x, y in zip(a, b, strict=True)]
    return max(gaps), all(is_rounding(gap, x, limit) for gap, x in zip(gaps, a, strict=True))
