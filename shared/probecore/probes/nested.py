"""Ridge probes whose penalty is chosen again inside every training fold, for every labelling.

Inner criteria, all in closed form from one eigendecomposition per fold (no refit):

    "group-loo"  squared error when each whole group of the training fold is left out: (I - H_gg)^-1 r_g. The default
                 for grouped data; leaving out single items would leak the group.
    "loo"        leave one item out: r_i / (1 - h_ii)
    "gcv"        generalised cross-validation: mean r^2 / (1 - tr(H) / n)^2

Targets are -1 / +1 (all classes of a labelling share one penalty) or real. H includes the free intercept.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from probecore.errors import DesignError, InputError
from probecore.probes.coordinates import Coordinates, chunks, coordinates, prepare
from probecore.probes.solvers import CHOSEN_INSIDE, Fold
from probecore.validation import one_of

GRID = tuple(np.logspace(-3, 3, 10).tolist())  # times tr(S_t) / n


def nested_ridge_decisions(
    x: Tensor,
    folds: Sequence[Fold],
    labels: Tensor,
    n_classes: int,
    *,
    alpha: float | str,
    standardize: str,
    groups: Tensor | None = None,
    alphas: Sequence[float] | None = None,
) -> list[Tensor]:
    """Return out-of-fold ridge decisions with `alpha` = "group-loo", "loo" or "gcv" (shapes: `probes.solvers`).

    alphas : penalties to choose from; None means 10 from .001 to 1000 times tr(S_t) / n of the training fold.
    """
    return nested_ridge(x, folds, labels, n_classes, str(alpha), standardize, groups, alphas)[0]


def nested_ridge(
    x: Tensor,
    folds: Sequence[Fold],
    labels: Tensor,
    n_classes: int,
    criterion: str,
    standardize: str,
    groups: Tensor | None = None,
    alphas: Sequence[float] | None = None,
) -> tuple[list[Tensor], NDArray[np.float64]]:
    """Return the decisions of each fold and the chosen penalties (folds, labelings)."""
    one_of(criterion, CHOSEN_INSIDE, "alpha")
    x = prepare(x, standardize)
    targets = ridge_targets(labels, n_classes)
    decisions, chosen = [], []
    for train, test in folds:
        fold = coordinates(x[train], standardize == "fold")
        grid = penalty_grid(fold, alphas)
        inner = groups[train] if groups is not None else None
        projected = fold.project(x[test])
        parts, picks = [], []
        for columns in chunks(len(train), targets.shape[1], targets.shape[2]):
            y = targets[train][:, columns]
            mean = y.mean(0)
            z = fold.left.T @ (y - mean).flatten(1)
            best = grid[inner_errors(fold, y - mean, grid, criterion, inner).argmin(0)]
            shrink = fold.strength.sqrt()[:, None] / (fold.strength[:, None] + best)
            weights = shrink[:, :, None] * z.unflatten(1, y.shape[1:])
            parts.append((projected @ weights.flatten(1)).unflatten(1, y.shape[1:]) + mean)
            picks.append(best)
        decision = torch.cat(parts, 1)
        decisions.append(decision if n_classes > 2 else decision[..., 0])
        chosen.append(torch.cat(picks))
    return decisions, torch.stack(chosen).cpu().numpy()


def inner_errors(fold: Coordinates, centred: Tensor, grid: Tensor, criterion: str, groups: Tensor | None) -> Tensor:
    """Return the criterion of each penalty and labelling, (alphas, P). centred (n, P, c): targets minus their mean."""
    n, _, c = centred.shape
    y = centred.flatten(1)
    z = fold.left.T @ y
    blocks = _groups(groups, n) if criterion == "group-loo" else []
    errors = []
    for alpha in grid:
        shrink = fold.strength / (fold.strength + alpha)
        if criterion == "gcv":
            lost = y.square().sum(0) - z.square().sum(0) + ((1 - shrink).square()[:, None] * z.square()).sum(0)
            error = lost / (1 - (1 + shrink.sum()) / n) ** 2 / n
            errors.append(error.unflatten(0, (-1, c)).sum(-1))
            continue
        residual = y - fold.left @ (shrink[:, None] * z)
        if criterion == "loo":
            left_out = residual / (1 - fold.left.square() @ shrink - 1 / n)[:, None]
        else:
            left_out = torch.empty_like(residual)
            for block in blocks:
                u = fold.left[block]
                hat = (u * shrink) @ u.T + 1 / n
                left_out[block] = torch.linalg.solve(
                    torch.eye(len(block), dtype=y.dtype, device=y.device) - hat, residual[block]
                )
        errors.append(left_out.square().mean(0).unflatten(0, (-1, c)).sum(-1))
    return torch.stack(errors)


def ridge_targets(labels: Tensor, n_classes: int) -> Tensor:
    """Return targets (n, P, c): -1 / +1 for classes (c = 1 for two), the values themselves for regression."""
    if n_classes == 0:
        return labels.to(torch.float64)[..., None]
    if n_classes == 2:
        return (2 * labels - 1).to(torch.float64)[..., None]
    return 2 * one_hot(labels.long(), n_classes).to(torch.float64) - 1


def penalty_grid(fold: Coordinates, alphas: Sequence[float] | None) -> Tensor:
    """Return the penalties to choose from, (alphas,)."""
    if alphas is None:
        return torch.tensor(GRID, dtype=torch.float64, device=fold.left.device) * fold.penalty("trace")
    grid = torch.tensor(list(alphas), dtype=torch.float64, device=fold.left.device)
    if len(grid) == 0 or not bool(((grid > 0) & torch.isfinite(grid)).all()):
        raise InputError(f"alphas must be positive numbers; got {list(alphas)}")
    return grid


def _groups(groups: Tensor | None, n: int) -> list[Tensor]:
    if groups is None or len(groups) != n:
        raise InputError("alpha = 'group-loo' needs the group of each item: give groups, or choose alpha = 'loo'")
    distinct = groups.unique()
    if len(distinct) < 2:
        raise DesignError("alpha = 'group-loo' needs at least 2 groups in each training fold; got 1: use alpha = 'loo'")
    return [(groups == g).nonzero().squeeze(1) for g in distinct]
