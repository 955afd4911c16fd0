"""Linear discriminant analysis with covariance (S_w + alpha I) / n and any priors, for many labelings at once, exactly.

The within-class scatter S_w depends on the labels, but S_w = S_t minus a matrix of rank c - 1, and S_t does not. With
U, s of the training fold (`coordinates`), one-hot labels Y, class counts N and D = diag(1 / N):

    M = D Y' (I - X (S_t + alpha I)^-1 X' - 11'/n) Y D + 11'/n          (classes x classes, positive definite)
    t = x' (S_t + alpha I)^-1 V,  V = class means minus the mean
    x' (S_w + alpha I)^-1 V = t M^-1 D,   V' (S_w + alpha I)^-1 V = D M^-1 D - D          (Woodbury)

so that a labelling costs two products and one c x c inverse. In these coordinates I - X(..)X' is diag(alpha / (s^2 +
alpha)), which loses no digits for small alpha. alpha is on the scale of S_t (a sum over items), not of a covariance;
scikit-learn's shrinkage gamma is alpha = gamma mu n / (1 - gamma) with mu = tr(S_w) / (n d).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from probecore.errors import InputError
from probecore.probes.coordinates import Coordinates, chunks, coordinates, prepare
from probecore.probes.solvers import Fold

Priors = str | Sequence[float]


def lda_decisions(
    x: Tensor,
    folds: Sequence[Fold],
    labels: Tensor,
    n_classes: int,
    *,
    alpha: float | str,
    standardize: str,
    groups: Tensor | None = None,
    priors: Priors = "empirical",
) -> list[Tensor]:
    """Return out-of-fold LDA discriminants of one layer for many labelings (shapes: `probecore.probes.solvers`).

    priors : "empirical" (share in the training fold), "equal", or one number per class.
    Two classes: log-odds of class 1. More: log joint densities up to a constant per item; a class missing from a
    training fold has -inf. Raises `InputError` for regression labels.
    """
    if n_classes < 2:
        raise InputError(f"LDA needs class labels with at least 2 classes; got n_classes = {n_classes}: use ridge")
    x = prepare(x, standardize)
    log_prior = log_priors(priors, n_classes)
    out = []
    for train, test in folds:
        fold = coordinates(x[train], standardize == "fold")
        projected, penalty = fold.project(x[test]), fold.penalty(alpha)
        parts = []
        for columns in chunks(max(len(train), len(test)), labels.shape[1], n_classes):
            onehot = one_hot(labels[train][:, columns].long(), n_classes).to(x.dtype)
            weights, offset = discriminants(fold, onehot, penalty, log_prior)
            score = (projected @ weights.flatten(1)).unflatten(1, onehot.shape[1:]) + offset
            parts.append(_binary(score) if n_classes == 2 else score)
        out.append(torch.cat(parts, 1))
    return out


def discriminants(fold: Coordinates, onehot: Tensor, alpha: float, log_prior: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weights (r, P, c) and offsets (P, c) of the discriminants in the coordinates of `fold`.

    onehot (n, P, c). log_prior (c,) or None for the share of each class. A missing class has weight 0, offset -inf.
    """
    n, _, c = onehot.shape
    count = onehot.sum(0)
    present = count > 0
    inverse = 1 / count.clamp_min(1)
    z = (fold.left.T @ onehot.flatten(1)).unflatten(1, onehot.shape[1:])
    by_labelling = z.permute(1, 2, 0)
    within = (by_labelling * (alpha / (fold.strength + alpha))) @ by_labelling.mT
    if len(fold.strength) < n - 1:  # directions in which no training item varies carry no shrinkage at all
        spread = torch.diag_embed(count) - count[:, :, None] * count[:, None, :] / n
        within = within + spread - by_labelling @ by_labelling.mT
    m = within * inverse[:, :, None] * inverse[:, None, :] + 1 / n
    both = present[:, :, None] & present[:, None, :]
    m = torch.where(both, m, torch.eye(c, dtype=m.dtype, device=m.device))
    solved = torch.linalg.inv(m) * inverse[:, None, :]  # M^-1 D
    ridge = z * (fold.strength.sqrt() / (fold.strength + alpha))[:, None, None] * inverse
    weights = n * torch.einsum("rpc,pce->rpe", ridge, solved)
    squared = inverse * torch.diagonal(solved, dim1=-2, dim2=-1) - inverse
    prior = torch.log(count / n) if log_prior is None else log_prior.to(m)
    offset = torch.where(present, prior - n * squared / 2, torch.full_like(squared, -torch.inf))
    return weights * present, offset


def log_priors(priors: Priors, n_classes: int) -> Tensor | None:
    """Return log priors (c,), or None for "empirical"."""
    if isinstance(priors, str):
        if priors not in ("empirical", "equal"):
            raise InputError(f"priors must be 'empirical', 'equal' or one number per class; got {priors!r}")
        return None if priors == "empirical" else torch.zeros(n_classes, dtype=torch.float64)
    values = torch.as_tensor(priors, dtype=torch.float64)
    if values.shape != (n_classes,) or not bool((values > 0).all()):
        raise InputError(f"priors must hold a positive number for each of the {n_classes} classes; got {priors!r}")
    return torch.log(values / values.sum())


def _binary(score: Tensor) -> Tensor:
    """Return class 1 minus class 0, (items, P); where a class is missing, the sign of the other."""
    decision = score[..., 1] - score[..., 0]
    return decision.nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0)
