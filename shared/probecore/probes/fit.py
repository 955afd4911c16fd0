"""One linear probe fitted to all items given: the weights, in units of the raw features.

x (items, features) float64; codes (items,) class codes 0..n_classes-1, or real values when n_classes is 0.
`LinearFit.coef` is (1, features) for two classes (positive for class 1) and for regression, else (classes, features).

kind             what it is
ridge            least squares on -1 / +1 with penalty alpha |w|^2 (alpha may be chosen: "group-loo", "loo", "gcv")
lda              (S_w + alpha I)^-1 times the class means, with priors; log-odds or log joint densities
logistic         logistic or softmax regression with penalty alpha / 2 |w|^2 (alpha = 1 / C of scikit-learn)
mean-difference  nearest class mean: the weights are the class means minus the mean of the class means
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import one_hot

from probecore.errors import InputError
from probecore.probes.coordinates import Coordinates, coordinates
from probecore.probes.lda import Priors, discriminants, log_priors
from probecore.probes.logistic import fit_logistic, logistic_penalty
from probecore.probes.nested import inner_errors, penalty_grid, ridge_targets
from probecore.probes.solvers import CHOSEN_INSIDE
from probecore.validation import one_of

Kind = Literal["ridge", "lda", "logistic", "mean-difference"]
KINDS = ("ridge", "lda", "logistic", "mean-difference")


@dataclass(frozen=True)
class LinearFit:
    """Weights (k, features) and intercepts (k,) on the raw features, and the penalty used (NaN where there is none)."""

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    alpha: float

    def decisions(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return decisions (items, k)."""
        return np.asarray(x @ self.coef.T + self.intercept)


def fit_linear(
    x: NDArray[np.float64],
    codes: NDArray[np.int64] | NDArray[np.float64],
    n_classes: int,
    *,
    kind: str = "ridge",
    alpha: float | str = "trace",
    standardize: bool = True,
    priors: Priors = "empirical",
    groups: NDArray[np.int64] | None = None,
) -> LinearFit:
    """Fit one probe (shapes: module docstring). groups (items,) are used by alpha = "group-loo" only.

    Raises `InputError` for an unknown kind, a penalty that is not positive, or priors that do not fit the classes.
    """
    one_of(kind, KINDS, "kind")
    if not isinstance(alpha, str) and not 0 < float(alpha) < float("inf"):
        raise InputError(f"alpha must be positive and finite; got {alpha!r}: use 'trace' for a default")
    if n_classes == 0 and kind != "ridge":
        raise InputError(f"kind {kind!r} needs class labels: use 'ridge' for real values")
    fold = coordinates(torch.as_tensor(np.array(x, dtype=np.float64)), standardize)
    labels = torch.as_tensor(np.array(codes))[:, None]
    penalty = float("nan")
    if kind == "ridge":
        penalty = _ridge_penalty(fold, labels, n_classes, alpha, groups)
        targets = ridge_targets(labels, n_classes)[:, 0]
        intercept = targets.mean(0)
        shrink = fold.strength.sqrt() / (fold.strength + penalty)
        w = shrink[:, None] * (fold.left.T @ (targets - intercept))
    elif kind == "lda":
        penalty = fold.penalty(alpha)
        onehot = one_hot(labels.long(), n_classes).to(torch.float64)
        weights, offset = discriminants(fold, onehot, penalty, log_priors(priors, n_classes))
        w, intercept = weights[:, 0], offset[0]
        if n_classes == 2:
            w, intercept = w[:, 1:] - w[:, :1], intercept[1:] - intercept[:1]
    elif kind == "logistic":
        penalty = logistic_penalty(fold, alpha)
        weights, offset = fit_logistic(fold.train, labels, n_classes, penalty)
        w, intercept = weights[:, 0], offset[0]
    else:
        onehot = one_hot(labels[:, 0].long(), n_classes).to(torch.float64)
        means = fold.train.T @ (onehot / onehot.sum(0))
        if n_classes == 2:
            w = means[:, 1:] - means[:, :1]
            intercept = -(w * means.mean(1, keepdim=True)).sum(0)
        else:
            w = means - means.mean(1, keepdim=True)
            intercept = (means.mean(1, keepdim=True).square() - means.square()).sum(0) / 2
    coef = fold.weights(w)
    return LinearFit(coef.T.contiguous().numpy(), (intercept - fold.mean @ coef).numpy(), penalty)


def _ridge_penalty(
    fold: Coordinates, labels: torch.Tensor, n_classes: int, alpha: float | str, groups: NDArray[np.int64] | None
) -> float:
    if alpha not in CHOSEN_INSIDE:
        return fold.penalty(alpha)
    grid = penalty_grid(fold, None)
    targets = ridge_targets(labels, n_classes)
    inner = None if groups is None else torch.as_tensor(np.array(groups))
    return float(grid[inner_errors(fold, targets - targets.mean(0), grid, str(alpha), inner)[:, 0].argmin()])
