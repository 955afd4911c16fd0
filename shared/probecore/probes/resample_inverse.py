"""The precision matrix G of a ridge probe on resampled items, for many resamples at once, in the form that costs least.

Conventions. x (items, features) standardised, kernel K = X X' (items, items), r (resamples, items) roots of the
weights, A = (diag(r) K diag(r) + alpha I)^-1 and G = A - A r r' A / (r' A r). Only products with G and its diagonal
blocks are asked for. An item of weight 0 stands alone: products are 0 there, and it is decoupled in every block, where
its diagonal entry means nothing.

drawn items        the kernel of the items drawn at least once (.63 of n in a bootstrap), one factor of that size
features < items   A = (I - V'V) / alpha with V = L^-1 X' diag(r), L a factor of X' diag(r)^2 X + alpha I (Woodbury)
dense              all of G, one factor of (items, items)

All are exact. The second subtracts: of an item of weight w and leverage h, 1 - h is at least alpha / (alpha + w trace
K), so it is used only where that leaves about 9 digits.
"""

from typing import Protocol

import torch

from probecore.probes.ridge import factor

Tensor = torch.Tensor
LEAST_ALPHA = 1e-6  # of the trace of K: below it, 1 - h would lose more than 6 of 16 digits


class Precision(Protocol):
    """G of every resample."""

    def times(self, columns: Tensor) -> Tensor:
        """Return G m for m (resamples, items, columns) that is 0 at items of weight 0, in the same shape."""

    def block(self, items: Tensor) -> Tensor:
        """Return the rows and columns of some items, (resamples, t, t)."""


def cheapest_precision(x: Tensor, kernel: Tensor, alpha: float, root: Tensor) -> Precision:
    """Return G without writing all of it down; raises `DesignError` where a matrix is not positive definite."""
    n, d = x.shape
    if 3 * d < n and alpha >= LEAST_ALPHA * float(kernel.trace()):
        return WithoutMean(ByFeatures(x, alpha, root), root)
    return WithoutMean(ByDrawnItems(kernel, alpha, root), root)


class DensePrecision:
    """G from a factor of (items, items)."""

    def __init__(self, kernel: Tensor, alpha: float, root: Tensor) -> None:
        scaled = root[:, :, None] * kernel * root[:, None, :]
        scaled.diagonal(dim1=-2, dim2=-1).add_(alpha)
        a = torch.cholesky_inverse(factor(scaled))
        ar = a @ root[:, :, None]
        self.g = a - ar @ (ar / (root[:, None, :] @ ar)).mT

    def times(self, columns: Tensor) -> Tensor:
        """See `Precision`."""
        return self.g @ columns

    def block(self, items: Tensor) -> Tensor:
        """See `Precision`."""
        return self.g[:, items[:, None], items]


class WithoutMean:
    """G from products with A and blocks of A."""

    def __init__(self, a: "ByFeatures | ByDrawnItems", root: Tensor) -> None:
        self.a, self.ar = a, a.times(root[:, :, None])
        self.share = self.ar / (root[:, None, :] @ self.ar)

    def times(self, columns: Tensor) -> Tensor:
        """See `Precision`."""
        return self.a.times(columns) - self.share @ (self.ar.mT @ columns)

    def block(self, items: Tensor) -> Tensor:
        """See `Precision`."""
        return self.a.block(items) - self.ar[:, items] @ self.share[:, items].mT


class ByFeatures:
    """A from a factor of (features, features)."""

    def __init__(self, x: Tensor, alpha: float, root: Tensor) -> None:
        z = root[:, :, None] * x
        gram = z.mT @ z
        gram.diagonal(dim1=-2, dim2=-1).add_(alpha)
        self.alpha, self.v = alpha, torch.linalg.solve_triangular(factor(gram), z.mT, upper=False)

    def times(self, columns: Tensor) -> Tensor:
        """Return A m, as `Precision.times` returns G m."""
        out: Tensor = (columns - self.v.mT @ (self.v @ columns)) / self.alpha
        return out

    def block(self, items: Tensor) -> Tensor:
        """Return a block of A."""
        part = self.v[:, :, items]
        out: Tensor = -(part.mT @ part)
        out.diagonal(dim1=-2, dim2=-1).add_(1)
        return out.div_(self.alpha)


class ByDrawnItems:
    """A from a factor of (m, m), m the most items drawn in one resample."""

    def __init__(self, kernel: Tensor, alpha: float, root: Tensor) -> None:
        drawn = root > 0
        m = int(drawn.sum(1).max())
        order = torch.sort(drawn.to(torch.int8), dim=1, descending=True, stable=True).indices
        self.order, self.drawn = order[:, :m], drawn
        self.place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).to(order).expand_as(order))
        self.place.clamp_(max=m - 1)  # of an item beyond m: it is not drawn, and what is read for it is masked
        own = root.gather(1, self.order)
        scaled = kernel[self.order[:, :, None], self.order[:, None, :]]
        scaled.mul_(own[:, :, None]).mul_(own[:, None, :])
        scaled.diagonal(dim1=-2, dim2=-1).add_(alpha)
        self.a = torch.cholesky_inverse(factor(scaled))

    def times(self, columns: Tensor) -> Tensor:
        """Return A m, as `Precision.times` returns G m."""
        wide = self.order[:, :, None].expand(-1, -1, columns.shape[2])
        return torch.zeros_like(columns).scatter_(1, wide, self.a @ columns.gather(1, wide))

    def block(self, items: Tensor) -> Tensor:
        """Return a block of A."""
        place, drawn = self.place[:, items], self.drawn[:, items].to(self.a.dtype)
        of_resample = torch.arange(len(place)).to(place)[:, None, None]
        out = self.a[of_resample, place[:, :, None], place[:, None, :]]
        out.mul_(drawn[:, :, None]).mul_(drawn[:, None, :])
        out.diagonal(dim1=-2, dim2=-1).add_(1 - drawn)
        return out
