"""Cross-validated ridge probes for thousands of labelings at once: everything except the labels is fixed.

Conventions. x is (..., items, features) float64, leading dimensions are layers. Rows of an operator are the test items
of fold 0, fold 1, ... one after the other ("stacked"), columns are all items, so that `decisions = operator @ labels`.
Rows sum to 1 and are zero at the items of their own fold that were not trained on. The intercept is not penalised.

Which form is used
    features >= items, one scaling   precision blocks: Yhat_T = -(G_TT)^-1 G_TR y_R,  G = C (C K C + alpha I)^-1 C
    features >= items, fold scaling  one kernel per fold, K_f = X D_f^-2 X', and a Cholesky factor of its training block
    items > features                 Grams of the folds: S_R = S - S_T, scaled as D^-1 S_R D^-1, a Cholesky factor each
All three are exact refits, not approximations. Hat-matrix update: Treder (Fast-Least-Squares), Hastie et al.; the
precision form is the same identity written with I - H = alpha G, where alpha cancels and nothing is subtracted from I.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from probecore.errors import DesignError, InputError

if TYPE_CHECKING:
    from probecore.probes.solvers import Fold

Tensor = torch.Tensor

CACHE = 220_000  # numbers in a batch of layers: what stays in a core's cache


def ridge_decisions(
    x: Tensor,
    folds: "Sequence[Fold]",
    labels: Tensor,
    n_classes: int,
    *,
    alpha: float | str = "trace",
    standardize: str = "fold",
    groups: Tensor | None = None,
    **options: Any,  # noqa: ANN401
) -> list[Tensor]:
    """Return ridge decisions per fold; the solver "ridge" of `probecore.probes.solvers` (shapes there).

    Two classes are coded -1 and +1, more classes one column each (-1 / +1, as scikit-learn's `RidgeClassifier`).
    """
    if options:
        raise InputError(f"the ridge probe takes no options; got {', '.join(options)}: leave them out")
    targets = code_targets(labels, n_classes)
    flat = targets.reshape(len(targets), -1)
    n, d = x.shape
    if n > d:
        decisions = _primal(x, folds, flat, alpha, standardize)
    else:
        stacked = ridge_operator(x, folds, alpha=alpha, standardize=standardize) @ flat
        decisions = list(stacked.split([len(test) for _, test in folds]))
    return [part.reshape(len(part), *targets.shape[1:]) for part in decisions]


def code_targets(labels: Tensor, n_classes: int) -> Tensor:
    """Return regression targets: (items, labelings) or, for more than two classes, (items, labelings, classes)."""
    if n_classes == 0:
        return labels.to(torch.float64)
    if n_classes == 2:
        return labels.to(torch.float64).mul_(2).sub_(1)
    return torch.nn.functional.one_hot(labels, n_classes).to(torch.float64).mul_(2).sub_(1)


def ridge_operator(
    x: Tensor, folds: "Sequence[Fold]", *, alpha: float | str = "trace", standardize: str = "fold"
) -> Tensor:
    """Return the stacked cross-validation operator (..., test rows of all folds, items) in its dual form.

    x : (..., items, features). alpha : penalty or "trace" (see `trace_alpha`). Raises `DesignError` when the kernel
    plus alpha is not positive definite in float64.
    """
    n = x.shape[-2]
    if standardize == "fold":
        batches = x.split(max(1, CACHE // (x.shape[-2] * x.shape[-1]))) if x.ndim == 3 else (x,)
        parts = [_operator_per_fold(part - part.mean(-2, keepdim=True), folds, alpha) for part in batches]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    x = standardise_all(x, standardize)
    kernel = x @ x.mT
    penalty = trace_alpha(kernel) if alpha == "trace" else float(alpha)
    rows = []
    complement = all(len(train) + len(test) == n for train, test in folds)
    g = precision(kernel, penalty) if complement else None
    for train, test in folds:
        tr, te = _indices(train, x), _indices(test, x)
        block = kernel.new_zeros(*kernel.shape[:-2], len(test), n)
        if g is None:
            block[..., tr] = _train_operator(kernel[..., tr[:, None], tr], kernel[..., tr[:, None], te], penalty)
        else:
            left_out = g[..., te, :]
            block = -torch.cholesky_solve(left_out, torch.linalg.cholesky(left_out[..., te]))
            block[..., te] = 0
        rows.append(block)
    return torch.cat(rows, -2)


def standardise_all(x: Tensor, standardize: str) -> Tensor:
    """Return x centred over all items and, unless `standardize` is "none", scaled to unit variance."""
    x = x - x.mean(-2, keepdim=True)
    return x if standardize == "none" else x * _inverse_sd_of(x).unsqueeze(-2)


def trace_alpha(kernel: Tensor) -> Tensor:
    """Return the mean squared norm of centred items, (..., 1, 1): a label-free penalty on the scale of the kernel."""
    n = kernel.shape[-1]
    mean = kernel.mean((-2, -1)) if n else kernel.new_zeros(())
    return (kernel.diagonal(dim1=-2, dim2=-1).mean(-1) - mean)[..., None, None]


def precision(kernel: Tensor, alpha: Tensor | float) -> Tensor:
    """Return G = C (C K C + alpha I)^-1 C, (..., n, n), for a centred kernel K, C = I - 11'/n.

    The constant direction gets the mean eigenvalue scale while factoring and is subtracted afterwards, so that a small
    alpha loses no digits in it.
    """
    n = kernel.shape[-1]
    scale = kernel.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + 1e-300
    padded = kernel + scale / n
    padded.diagonal(dim1=-2, dim2=-1).add_(alpha[..., 0] if isinstance(alpha, Tensor) else alpha)
    g: Tensor = torch.cholesky_inverse(factor(padded)) - 1 / (n * (scale + alpha))
    return g


def factor(matrix: Tensor) -> Tensor:
    """Return Cholesky factors; raises `DesignError` where a matrix is not positive definite."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    if bool(info.any()):
        raise DesignError("kernel plus alpha is not positive definite: raise alpha or standardise the features")
    out: Tensor = lower
    return out


def _operator_per_fold(x: Tensor, folds: "Sequence[Fold]", alpha: float | str) -> Tensor:
    n = x.shape[-2]
    inverses = _inverse_sds(x, folds)
    z = torch.empty_like(x)  # one buffer for all folds: fresh memory costs more than the product
    out = x.new_zeros(*x.shape[:-2], sum(len(test) for _, test in folds), n)
    start = 0
    for i, (train, test) in enumerate(folds):
        tr, te = _indices(train, x), _indices(test, x)
        inverse = inverses[..., i, :]
        torch.mul(x, inverse.unsqueeze(-2), out=z)
        kernel = z @ z.mT
        penalty = (inverse != 0).sum(-1)[..., None, None].to(x.dtype) if alpha == "trace" else float(alpha)
        block = _train_operator(kernel[..., tr[:, None], tr], kernel[..., tr[:, None], te], penalty)
        out[..., start : start + len(test), :].index_copy_(-1, tr, block)
        start += len(test)
    return out


def _train_operator(k_rr: Tensor, k_rt: Tensor, alpha: Tensor | float) -> Tensor:
    """Return H (..., test, train), Yhat_T = H y_R: kernel ridge with a free intercept, solved as a bordered system."""
    k_rr.diagonal(dim1=-2, dim2=-1).add_(_positive(alpha, k_rr))
    solved = torch.cholesky_solve(torch.cat([k_rt, torch.ones_like(k_rt[..., :1])], -1), factor(k_rr))
    s, u = solved[..., :-1], solved[..., -1:]
    return s.mT + (1 - s.sum(-2)).unsqueeze(-1) * (u / u.sum(-2, keepdim=True)).mT


def _positive(alpha: Tensor | float, like: Tensor) -> Tensor:
    """Return the penalty broadcast against a diagonal; 1 where a layer has no varying feature (all weights are 0)."""
    value = torch.as_tensor(alpha, dtype=like.dtype, device=like.device)
    value = torch.where(value > 0, value, torch.ones_like(value))
    return value[..., 0] if value.ndim else value


def _primal(x: Tensor, folds: "Sequence[Fold]", y: Tensor, alpha: float | str, standardize: str) -> list[Tensor]:
    n, d = x.shape
    x = standardise_all(x, standardize)
    penalty = x.square().sum(1).mean() if alpha == "trace" else float(alpha)
    complement = all(len(train) + len(test) == n for train, test in folds)
    keep = complement and len(folds) <= 10 and sum(len(test) for _, test in folds) == n
    grams = [gram_of_features(x[_indices(test, x)]) for _, test in folds] if keep else []
    total = sum(grams[1:], grams[0]) if keep else gram_of_features(x)
    inverses = _inverse_sds(x, folds)
    # decisions through weights cost 4nd + 2kd^2 per labelling, through the operator 2n^2 after a set-up of 2nd(n + d)
    q, k = y.shape[1], len(folds)
    direct = q * (4 * n * d + 2 * k * d * d) <= 2 * n * d * (n + d) + 2 * q * n * n
    products = x.T @ y if direct else None
    out = []
    for i, (train, test) in enumerate(folds):
        tr, te = _indices(train, x), _indices(test, x)
        x_t = x[te]
        if complement:
            s_r = total - (grams[i] if keep else gram_of_features(x_t))
            mean = -x_t.sum(0) / len(train)  # x is centred
        else:
            s_r, mean = gram_of_features(x[tr]), x[tr].mean(0)
        s_r.addr_(mean, mean, alpha=-float(len(train)))
        inverse = inverses[i]
        if standardize != "fold":
            inverse = (inverse != 0).to(x.dtype)  # a feature that is constant in training has no weight
        s_r.mul_(inverse[:, None]).mul_(inverse)
        fold_alpha = (inverse != 0).sum().to(x.dtype) if standardize == "fold" and alpha == "trace" else penalty
        s_r.diagonal().add_(_positive(fold_alpha, s_r))
        lower = factor(s_r)
        if products is not None:
            mean_y = (y.sum(0) - y[te].sum(0)) / len(train) if complement else y[tr].mean(0)
            xy = products - x_t.T @ y[te] if complement else x[tr].T @ y[tr]
            xy = (xy - len(train) * torch.outer(mean, mean_y)) * inverse[:, None]
            weights = torch.cholesky_solve(xy, lower) * inverse[:, None]
            out.append(x_t @ weights + (mean_y - mean @ weights))
        else:
            weights = torch.cholesky_solve(((x_t - mean) * inverse).T, lower) * inverse[:, None]
            operator = weights.T @ (x[tr] - mean).T
            y_r = y[tr]
            out.append(operator @ y_r + (1 - operator.sum(1))[:, None] * y_r.mean(0))
    return out


def gram_of_features(x: Tensor) -> Tensor:
    """Return X'X (d, d) with its lower triangle correct; above the block diagonal it is zero when d is large.

    Only the lower triangle is ever factored: six of sixteen blocks need no product.
    """
    d = x.shape[1]
    if d < 256:
        return x.T @ x
    out = x.new_zeros(d, d)
    edges = [d * i // 4 for i in range(5)]
    for low, high in pairwise(edges):
        torch.matmul(x[:, low:high].T, x[:, :high], out=out[low:high, :high])
    return out


def _indices(items: Any, like: Tensor) -> Tensor:  # noqa: ANN401
    return torch.as_tensor(items, dtype=torch.int64, device=like.device)


def _inverse_sd_of(x: Tensor, size: Tensor | None = None) -> Tensor:
    """Return 1/sd of every feature over the items of centred x, (..., d); 0 where a feature is constant.

    size (..., d): largest absolute value before centring, whose rounding is no variance.
    """
    variance = x.square().mean(-2)
    floor = ((x.abs().amax(-2) if size is None else size) * 10 * torch.finfo(x.dtype).eps).square()
    return torch.where(variance > floor, variance.clamp_min(1e-300).rsqrt(), torch.zeros_like(variance))


def _inverse_sds(x: Tensor, folds: "Sequence[Fold]") -> Tensor:
    """Return 1/sd of every feature over the training items of each fold, (..., folds, d); 0 where it is constant there.

    A constant feature has no weight, so 0 gives the same decisions as scikit-learn's scale of 1. x is centred over all
    items. Variances are mean squares minus squared means; where that lost digits they are computed again.
    """
    inside = x.new_zeros(len(folds), x.shape[-2])
    for i, (train, _) in enumerate(folds):
        inside[i, _indices(train, x)] = 1 / len(train)
    squares = inside @ x.square()
    variance = squares - (inside @ x).square()
    lost = variance <= 1e-6 * squares
    inverse = variance.clamp_min(1e-300).rsqrt()
    for i in lost.reshape(-1, *lost.shape[-2:]).any(0).any(-1).nonzero().flatten().tolist() if bool(lost.any()) else []:
        columns = lost[..., i, :].reshape(-1, x.shape[-1]).any(0).nonzero().flatten()
        part = x[..., _indices(folds[i][0], x)[:, None], columns]
        inverse[..., i, columns] = _inverse_sd_of(part - part.mean(-2, keepdim=True), part.abs().amax(-2))
    return inverse
