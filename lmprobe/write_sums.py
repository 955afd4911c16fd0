"""Sums of writes: what a block's output is made of, fitted to a probe and held to rounding.

Conventions. Tensors are (tokens, width). A fit is accepted only when every factor is one of the numbers the block
holds and the sum equals the output element by element within the rounding of its dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

SMALLEST = 0.005  # no block multiplies what it adds by less; the small numbers a block holds are epsilons


@dataclass
class Output:
    """One module inside a block: how often and when it ran, copies of its output and its input (tokens, width)."""

    path: str
    module: nn.Module
    runs: int = 0
    order: int = 0
    value: Tensor | None = None
    source: Tensor | None = None


def scalars_of(block: nn.Module) -> list[float]:
    """Return the numbers a block may multiply a write by: 1, its float attributes, its tensors of one element."""
    tensors = [t for t in (*block.parameters(recurse=False), *block.buffers(recurse=False)) if t.numel() == 1]
    numbers = [*(v for v in vars(block).values() if isinstance(v, float)), *(float(t) for t in tensors)]
    return [1.0, *(number for number in numbers if abs(number) > SMALLEST)]


def fitted_sum(
    entry: Tensor, out: Tensor, candidates: Sequence[Output], scalars: Sequence[float]
) -> tuple[float, list[tuple[Output, float]]] | None:
    """Return the factor of the entry and the candidates with theirs such that their sum is `out`, else None."""
    distinct: list[Output] = []
    for output in sorted(
        candidates, key=lambda o: isinstance(o.module, (nn.Dropout, nn.Identity))
    ):  # these only pass on
        assert output.value is not None
        if not any(torch.equal(output.value, other.value) for other in distinct if other.value is not None):
            distinct.append(output)
    columns = [entry, *(o.value for o in distinct if o.value is not None)]
    design = torch.stack([c.cpu().double().flatten() for c in columns], dim=1)
    size = design.square().mean(dim=0).sqrt().clamp(min=1e-300)
    target = out.cpu().double().flatten()
    fit = torch.linalg.lstsq(design / size, target[:, None]).solution[:, 0] / size
    kept = [j for j in range(len(columns)) if abs(float(fit[j])) > 0.5 * min(map(abs, scalars))]
    if 0 not in kept or len(kept) < 2:
        return None
    again = torch.linalg.lstsq(design[:, kept] / size[kept], target[:, None]).solution[:, 0] / size[kept]
    factors = [scalars[int(np.argmin([abs(s - c) for s in scalars]))] for c in again.tolist()]
    if not sum_holds(target, [design[:, j] for j in kept], factors, out.dtype):
        return None
    return factors[0], [(distinct[j - 1], factor) for j, factor in zip(kept[1:], factors[1:], strict=True)]


def sum_holds(target: Tensor, columns: Sequence[Tensor], factors: Sequence[float], dtype: torch.dtype) -> bool:
    """Tell whether the sum equals the target element by element.

    Each product and each addition rounds by half a unit in the last place of something no larger than the sum of
    absolute values; 2 (n + 1) such roundings bound the difference for n terms.
    """
    terms = [factor * column for factor, column in zip(factors, columns, strict=True)]
    bound = sum(term.abs() for term in terms) * torch.finfo(dtype).eps * (len(terms) + 1)
    return bool(((target - sum(terms)).abs() <= bound).all())
