"""Logistic and softmax probes for many labelings at once: batched Newton with preconditioned conjugate gradients.

Objective, for each labelling: sum_i weight_i loss(y_i, f_i) + alpha / 2 |w|^2 with a free intercept, so alpha = 1 / C
of scikit-learn. In singular coordinates (`coordinates`) 1 / (s^2 curvature + alpha) nearly inverts the Hessian; each
Hessian product is two matrix products shared by all labelings; labelings that have converged leave the batch.

alpha "trace" is a quarter of tr(S_t) / n: a logistic loss curves at most 1/4, so the first Newton step of this probe is
the ridge probe with its alpha "trace".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from probecore.errors import InputError, ProbeError
from probecore.probes.coordinates import Coordinates, chunks, coordinates, prepare
from probecore.probes.solvers import Fold

MAX_NEWTON = 100
MAX_CG = 500


def logistic_decisions(
    x: Tensor,
    folds: Sequence[Fold],
    labels: Tensor,
    n_classes: int,
    *,
    alpha: float | str,
    standardize: str,
    groups: Tensor | None = None,
    tol: float = 1e-6,
) -> list[Tensor]:
    """Return out-of-fold log-odds (two classes) or logits of one layer (shapes: `probecore.probes.solvers`).

    tol : largest error of a weight, in units of the scaled features. Raises `InputError` for regression labels.
    """
    if n_classes < 2:
        raise InputError(f"a logistic probe needs at least 2 classes; got n_classes = {n_classes}: use ridge")
    x = prepare(x, standardize)
    out = []
    for train, test in folds:
        fold = coordinates(x[train], standardize == "fold")
        projected, penalty = fold.project(x[test]), logistic_penalty(fold, alpha)
        parts = []
        for columns in chunks(len(train), labels.shape[1], 1 if n_classes == 2 else n_classes):
            w, intercept = fit_logistic(fold.train, labels[train][:, columns], n_classes, penalty, tol=tol)
            logits = (projected @ w.flatten(1)).unflatten(1, w.shape[1:]) + intercept
            parts.append(logits[..., 0] if n_classes == 2 else logits)
        out.append(torch.cat(parts, 1))
    return out


def logistic_penalty(fold: Coordinates, alpha: float | str) -> float:
    """Return alpha, or for "trace" a quarter of tr(S_t) / n (see the module)."""
    return fold.penalty(alpha) * (0.25 if isinstance(alpha, str) else 1.0)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    alpha: float,
    *,
    weights: Tensor | None = None,
    tol: float = 1e-8,
) -> tuple[Tensor, Tensor]:
    """Return weights (r, P, k) and intercepts (P, k) for labels (n, P); k = 1 for two classes, else n_classes.

    features (n, r) : best with orthogonal columns. weights (n,) : of the items, default 1. A class that a labelling
    lacks gets intercept -inf; where two-class labels hold one class the log-odds are the constant +-log(2 n + 1)
    (Krichevsky and Trofimov's estimate), as no optimum exists.
    Raises `ProbeError` when a labelling does not converge.
    """
    n, r = features.shape
    weight = features.new_ones(n) if weights is None else weights.to(features)
    onehot = one_hot(labels.long(), n_classes).to(features.dtype)
    count = (weight[:, None, None] * onehot).sum(0)
    width = 1 if n_classes == 2 else n_classes
    w = features.new_zeros(r + 1, labels.shape[1], width)
    fitted = (count > 0).sum(1) > 1
    family: _Binary | _Softmax
    if n_classes == 2:
        family = _Binary(onehot[:, fitted, 1:], weight[:, None, None])
        w[r, :, 0] = torch.log(count[:, 1] / count[:, 0])
        w[r, ~fitted, 0] = torch.sign(count[~fitted, 1] - count[~fitted, 0]) * torch.log(2 * weight.sum() + 1)
    else:
        absent = torch.where(count > 0, 0.0, -torch.inf).to(features.dtype)
        family = _Softmax(onehot[:, fitted], weight[:, None, None], absent[fitted])
        w[r] = torch.where(count > 0, torch.log(count.clamp_min(1e-300) / weight.sum()), 0.0)
    if bool(fitted.any()) and r:
        w[:, fitted] = _newton(features, family, w[:, fitted], alpha, tol)
    intercept = w[r] if n_classes == 2 else torch.where(count > 0, w[r], -torch.inf)
    return w[:r], intercept


@dataclass(frozen=True)
class _Binary:
    """Two classes, one logit f (n, P, 1): y (n, P, 1) in {0, 1}."""

    y: Tensor
    weight: Tensor

    def take(self, columns: Tensor) -> Self:
        return type(self)(self.y[:, columns], self.weight)

    def probability(self, f: Tensor) -> Tensor:
        return torch.sigmoid(f)

    def curve(self, p: Tensor, u: Tensor) -> Tensor:
        return self.weight * p * (1 - p) * u

    def loss(self, f: Tensor) -> Tensor:
        return (self.weight * (softplus(f) - self.y * f)).sum((0, 2))


@dataclass(frozen=True)
class _Softmax:
    """c classes, logits f (n, P, c): one-hot y (n, P, c); absent (P, c) is -inf where a labelling lacks a class."""

    y: Tensor
    weight: Tensor
    absent: Tensor

    def take(self, columns: Tensor) -> Self:
        return type(self)(self.y[:, columns], self.weight, self.absent[columns])

    def probability(self, f: Tensor) -> Tensor:
        return torch.softmax(f + self.absent, -1)

    def curve(self, p: Tensor, u: Tensor) -> Tensor:
        return self.weight * p * (u - (p * u).sum(-1, keepdim=True))

    def loss(self, f: Tensor) -> Tensor:
        total = torch.logsumexp(f + self.absent, -1, keepdim=True)
        return (self.weight * (total - (self.y * f).sum(-1, keepdim=True))).sum((0, 2))


def _newton(features: Tensor, family: _Binary | _Softmax, start: Tensor, alpha: float, tol: float) -> Tensor:
    """Return the optima (r + 1, P, k), intercept last, from `start`."""
    n, r = features.shape
    design = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    back = design.T.contiguous()
    penalty = features.new_full((r + 1, 1, 1), alpha)
    penalty[r] = 0
    power = design.square().sum(0)[:, None, None]
    # the gradient of w_j is a sum over items: below its rounding error there is nothing left to gain
    enough = (50 * torch.finfo(features.dtype).eps * (n * power).sqrt()).clamp_min(tol * alpha)

    def times(matrix: Tensor, v: Tensor) -> Tensor:
        product: Tensor = matrix @ v.flatten(1)
        return torch.unflatten(product, 1, v.shape[1:])

    def curve(family: _Binary | _Softmax, p: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda v: times(back, family.curve(p, times(design, v))) + penalty * v

    out, active, w = start.clone(), torch.arange(start.shape[1], device=start.device), start
    f = times(design, w)
    fallen = torch.zeros(len(active), dtype=torch.bool, device=start.device)
    for _ in range(MAX_NEWTON):
        p = family.probability(f)
        gradient = times(back, family.weight * (p - family.y)) + penalty * w
        done = fallen | (gradient.abs() <= enough).all(2).all(0)
        if bool(done.any()):
            out[:, active[done]] = w[:, done]
            keep = (~done).nonzero().squeeze(1)
            if not len(keep):
                return out
            active, family = active[keep], family.take(keep)
            w, f, p, gradient = w[:, keep], f[:, keep], p[:, keep], gradient[:, keep]
        curvature = (family.weight * p * (1 - p)).mean(0)
        inverse = 1 / (power * curvature + penalty).clamp_min(1e-12 * n)
        accuracy = (gradient.abs().amax((0, 2)) / alpha).clamp(1e-8, 1e-2)
        step = _conjugate_gradients(curve(family, p), -gradient, inverse, accuracy)
        df, slope = times(design, step), (gradient * step).sum((0, 2))
        t, objective = _armijo(family, penalty, w, f, step, df, slope)
        w, f = w + t * step, f + t * df
        # a Newton decrement in the rounding error of the objective: the step just taken was the last that helps
        fallen = -slope <= 1e-13 * objective
    raise ProbeError(
        f"{len(active)} logistic probes did not converge in {MAX_NEWTON} Newton steps: raise alpha or standardize"
    )


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], target: Tensor, inverse: Tensor, accuracy: Tensor
) -> Tensor:
    """Solve `apply(x) = target` for all labelings to the relative accuracy (P,), preconditioned by `inverse`.

    A labelling stands still once it is accurate or its direction has no curvature left (rounding in the direction in
    which all intercepts of a softmax move together).
    """
    x, rest = torch.zeros_like(target), target
    z = inverse * rest
    direction, size = z, (rest * z).sum((0, 2))
    stop = accuracy.square() * size
    going = size > 0
    for _ in range(MAX_CG):
        image = apply(direction)
        curvature = (direction * image).sum((0, 2))
        going = going & (curvature > 0)
        step = torch.where(going, size / curvature, 0.0)[None, :, None]
        x, rest = x + step * direction, rest - step * image
        z = inverse * rest
        new = (rest * z).sum((0, 2))
        going = going & (new > stop)
        if not bool(going.any()):
            break
        direction = torch.where(going[None, :, None], z + (new / size)[None, :, None] * direction, 0.0)
        size = new
    return x


def _armijo(
    family: _Binary | _Softmax, penalty: Tensor, w: Tensor, f: Tensor, step: Tensor, df: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the step lengths (1, P, 1), halved until the objective falls enough, and the objective before (P,)."""

    def objective(t: Tensor) -> Tensor:
        return family.loss(f + t * df) + (penalty * (w + t * step).square()).sum((0, 2)) / 2

    t = f.new_ones(1, len(slope), 1)
    start = objective(torch.zeros_like(t))
    for _ in range(40):
        bad = objective(t) > start + 1e-4 * t[0, :, 0] * slope + 1e-12 * start.abs()
        if not bool(bad.any()):
            break
        t = torch.where(bad[None, :, None], t / 2, t)
    return t, start
