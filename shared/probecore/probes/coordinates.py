"""Singular coordinates of one training fold: the label-free work that LDA, logistic and tuned probes share.

The training items, centred (and scaled) by their own statistics, are rotated to F = U S with orthogonal columns. In
these coordinates a ridge solve is a division and the Hessian of a logistic loss is nearly diagonal, for every
labelling at once. One eigendecomposition of the smaller Gram per fold; all tensors float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probecore.errors import InputError


@dataclass(frozen=True)
class Coordinates:
    """Singular coordinates of n training items with d features, rank r.

    left (n, r) : orthonormal U. strength (r,) : squared singular values, ascending. mean, scale (d,) : of the training
    items. rotation : V (d, r) when d < n, else U / s (n, r) with `scaled` (n, d), the scaled training items.
    """

    left: Tensor
    strength: Tensor
    mean: Tensor
    scale: Tensor
    rotation: Tensor
    scaled: Tensor | None

    @property
    def train(self) -> Tensor:
        """Return F = U S (n, r)."""
        return self.left * self.strength.sqrt()

    def project(self, x: Tensor) -> Tensor:
        """Return items (m, d) in these coordinates, (m, r)."""
        scaled = (x - self.mean) / self.scale
        return scaled @ self.rotation if self.scaled is None else (scaled @ self.scaled.T) @ self.rotation

    def weights(self, w: Tensor) -> Tensor:
        """Return weights (r, k) as weights on the raw features, (d, k); the offset is -mean @ weights."""
        on_scaled = self.rotation @ w if self.scaled is None else self.scaled.T @ (self.rotation @ w)
        return on_scaled / self.scale[:, None]

    def penalty(self, alpha: float | str) -> float:
        """Return alpha, or for "trace" the mean squared norm of the scaled training items, tr(S_t) / n."""
        if not isinstance(alpha, str):
            return float(alpha)
        if alpha != "trace":
            raise InputError(f"alpha must be a positive number or 'trace' for this probe; got {alpha!r}")
        return float(self.strength.sum()) / len(self.left) or 1.0  # features without spread need any penalty


def scale_of(x: Tensor) -> Tensor:
    """Return the standard deviation (ddof 0) of each feature, (d,); constant features keep scale 1."""
    mean = x.mean(0)
    sd = (x - mean).square().mean(0).sqrt()
    noise = 10 * torch.finfo(x.dtype).eps * (mean.abs() + x.abs().amax(0))
    return torch.where(sd <= noise, torch.ones_like(sd), sd)


def prepare(x: Tensor, standardize: str) -> Tensor:
    """Return a layer (n, d) centred, and for "global" scaled, by all items (label-blind)."""
    x = x.to(torch.float64)
    if standardize == "global":
        x = x / scale_of(x)
    return x - x.mean(0)


def coordinates(x: Tensor, standardize: bool, weights: Tensor | None = None) -> Coordinates:
    """Return the singular coordinates of training items (n, d); `weights` (n,) only move the centre."""
    n, d = x.shape
    mean = x.mean(0) if weights is None else weights @ x / weights.sum()
    scale = scale_of(x) if standardize else torch.ones_like(mean)
    scaled = (x - mean) / scale
    strength, vectors = torch.linalg.eigh(scaled.T @ scaled if d < n else scaled @ scaled.T)
    floor = max(n, d) * torch.finfo(x.dtype).eps * float(strength[-1].clamp_min(0.0))
    keep = strength > max(floor, torch.finfo(x.dtype).tiny)
    strength, vectors = strength[keep], vectors[:, keep]
    if d < n:
        return Coordinates(scaled @ vectors / strength.sqrt(), strength, mean, scale, vectors, None)
    return Coordinates(vectors, strength, mean, scale, vectors / strength.sqrt(), scaled)


def chunks(n_items: int, n_columns: int, width: int, most: int = 1 << 22) -> list[slice]:
    """Return slices of the columns such that items x columns x width stays below `most` numbers."""
    step = max(1, most // max(1, n_items * width))
    return [slice(i, min(i + step, n_columns)) for i in range(0, n_columns, step)]
