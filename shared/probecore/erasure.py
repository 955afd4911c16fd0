"""Taking a concept out of activations: LEACE through a thin decomposition, and projection; both checked on new items.

LEACE (Belrose et al. 2023) is the smallest change x -> x - L R (x - mean) after which no linear probe beats the class
shares *on the items it was fitted to*. On other items it does not hold: an eraser from 1000 items in 256 dimensions
leaves a fresh probe at .61 where the eraser's own items give .50. So `erasure_check` reports erasure out of sample and
beside a random subspace of the same rank, and never the in-sample figure alone.

x (items, features) float64; rank k <= classes - 1 (or columns of a real target).
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from probecore.errors import DesignError, InputError
from probecore.probes.fit import fit_linear
from probecore.seeds import generator
from probecore.splits import group_folds
from probecore.validation import at_least, codes_of, finite_matrix, one_per_item

Floats = NDArray[np.float64]


class LeaceEraser(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Least-squares concept erasure as a transformer: `fit(X, y)`, then `transform` any items.

    y : class labels (items,) or, for `real=True`, numbers (items,) or (items, targets).
    Fitted: mean_ (features,), left_ (features, k), right_ (k, features), rank_. Equals the `concept-erasure` package
    without shrinkage; only the singular value decomposition of the centred items is needed, of the smaller side.
    """

    def __init__(self, real: bool = False) -> None:
        self.real = real

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to X (items, features) and the concept y."""
        x, target = validate_data(
            self, X, y, dtype=np.float64, multi_output=self.real, y_numeric=self.real, ensure_min_samples=2
        )
        if self.real:
            z = np.asarray(target, dtype=np.float64).reshape(len(x), -1)
        else:
            names, codes = np.unique(target, return_inverse=True)
            z = np.eye(len(names))[codes]
        self.mean_ = x.mean(0)
        u, s, v = np.linalg.svd(x - self.mean_, full_matrices=False)
        kept = s > max(x.shape) * np.finfo(float).eps * max(float(s[0]), float(np.abs(x).max()))
        u, s, v = u[:, kept], s[kept], v[kept]
        centred = z - z.mean(0)
        whitened, strength, _ = np.linalg.svd(u.T @ centred, full_matrices=False)  # whitened cross-covariance
        whitened = whitened[:, strength > 1e-10 * max(float(np.linalg.norm(centred)), np.finfo(float).tiny)]
        self.left_ = v.T @ (s[:, None] * whitened)
        self.right_ = (v.T @ (whitened / s[:, None])).T
        self.rank_ = whitened.shape[1]
        return self

    def transform(self, X: ArrayLike) -> Floats:
        """Return items (n, features) without the concept."""
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float64)
        return np.asarray(x - ((x - self.mean_) @ self.right_.T) @ self.left_.T)


def project_out(x: ArrayLike, directions: ArrayLike, *, center: ArrayLike | None = None) -> Floats:
    """Return items (n, features) without their part in the span of `directions` (k, features) or (features,).

    center (features,) : the point that keeps its place (a class mean, for affine ablation); None means the origin. The
    span is made orthonormal first: removing oblique directions one after another depends on their order.
    """
    values = finite_matrix(x, "x").astype(np.float64)
    rows = finite_matrix(np.atleast_2d(np.asarray(directions, dtype=np.float64)), "directions")
    if rows.shape[1] != values.shape[1]:
        raise InputError(f"directions must have the {values.shape[1]} features of x; got {rows.shape[1]}")
    _, singular, frame = np.linalg.svd(rows, full_matrices=False)
    frame = frame[singular > max(rows.shape) * np.finfo(float).eps * max(float(singular[0]), np.finfo(float).tiny)]
    origin = np.zeros(values.shape[1]) if center is None else np.asarray(center, dtype=np.float64)
    return np.asarray(values - ((values - origin) @ frame.T) @ frame)


@dataclass(frozen=True)
class ErasureCheck:
    """Balanced accuracies of linear probes before and after LEACE, by grouped folds; chance is 1 / classes.

    before : probe without erasure. carried : eraser and probe fitted on the unerased training folds, the probe applied
    to erased new items. fresh : eraser fitted on one half of the groups, probe cross-validated inside the other half
    after erasing it: what is still there to be found. fresh_before, fresh_random : the same inside that half without
    erasing, and after a random subspace of the same rank was erased by the same formula (mean of draws).
    cross_covariance : largest |covariance| with the label left on the eraser's own items, relative to before (rounding
    error). in_sample : accuracy on its own items after erasing: 1 / classes, and no evidence.
    """

    before: float
    carried: float
    fresh: float
    fresh_before: float
    fresh_random: float
    in_sample: float
    cross_covariance: float
    chance: float
    rank: int
    n_items: int
    n_groups: int


def erasure_check(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    kind: str = "lda",
    alpha: float | str = "trace",
    n_folds: int = 5,
    n_random: int = 20,
    seed: int = 0,
) -> ErasureCheck:
    """Erase class labels and tell what is left, out of sample; groups (items,) never meet in training and test.

    kind, alpha : the probe, with equal priors (`probecore.probes.fit`). The halves are drawn by group, twice with
    exchanged roles. Raises `DesignError` when a training part lacks a class or there are fewer than 4 groups.
    """
    values = finite_matrix(x, "x").astype(np.float64)
    codes, names = codes_of(one_per_item(labels, len(values), "labels"))
    group, group_names = codes_of(one_per_item(groups, len(values), "groups"))
    if len(names) < 2 or len(group_names) < 4:
        raise DesignError(f"erasure needs 2 classes and 4 groups; got {len(names)} and {len(group_names)}")
    task = _Task(codes, len(names), kind, alpha)
    whole = LeaceEraser().fit(values, codes)
    erased = whole.transform(values)
    onehot = np.eye(len(names))[codes]
    onehot -= onehot.mean(0)
    left = np.abs((erased - erased.mean(0)).T @ onehot).max() / np.abs((values - whole.mean_).T @ onehot).max()
    before = task.accuracy(values, group, min(n_folds, len(group_names)))
    decided = np.empty(len(values), dtype=np.int64)
    for train, test in group_folds(group, min(n_folds, len(group_names))).pairs:
        eraser = LeaceEraser().fit(values[train], codes[train])
        decided[test] = task.decide(values, train, eraser.transform(values[test]))
    carried = task.balanced(decided)
    rng = generator(seed, "erasure")
    order = rng.permutation(len(group_names))
    fresh, fresh_before, fresh_random = [], [], []
    for side in (order[::2], order[1::2]):
        fitted, new = np.isin(group, side), ~np.isin(group, side)
        part = _Task(codes[new], len(names), kind, alpha)
        eraser = LeaceEraser().fit(values[fitted], codes[fitted])
        inside, folds = group[new], min(n_folds, len(np.unique(group[new])))
        fresh_before.append(part.accuracy(values[new], inside, folds))
        fresh.append(part.accuracy(eraser.transform(values[new]), inside, folds))
        for _ in range(at_least(n_random, 1, "n_random")):
            target = rng.normal(size=(int(fitted.sum()), max(1, eraser.rank_)))
            random = LeaceEraser(real=True).fit(values[fitted], target)
            fresh_random.append(part.accuracy(random.transform(values[new]), inside, folds))
    return ErasureCheck(
        before=before,
        carried=carried,
        fresh=float(np.mean(fresh)),
        fresh_before=float(np.mean(fresh_before)),
        fresh_random=float(np.mean(fresh_random)),
        in_sample=task.balanced(task.decide(erased, np.arange(len(values)), erased)),
        cross_covariance=float(left),
        chance=1 / len(names),
        rank=whole.rank_,
        n_items=len(values),
        n_groups=len(group_names),
    )


@dataclass(frozen=True)
class _Task:
    """A labelling (items,) and the probe that is trained to find it."""

    codes: NDArray[np.int64]
    n_classes: int
    kind: str
    alpha: float | str

    def decide(self, x: Floats, train: NDArray[np.int64], new: Floats) -> NDArray[np.int64]:
        """Return the codes a probe trained on x[train] gives to `new`."""
        if len(np.unique(self.codes[train])) < self.n_classes:
            raise DesignError("a training part lacks a class: use fewer folds, or groups that hold all classes")
        fit = fit_linear(x[train], self.codes[train], self.n_classes, kind=self.kind, alpha=self.alpha, priors="equal")
        decisions = fit.decisions(new)
        return (decisions[:, 0] > 0).astype(np.int64) if self.n_classes == 2 else decisions.argmax(1)

    def accuracy(self, x: Floats, groups: NDArray[np.int64], n_folds: int) -> float:
        """Return the balanced accuracy of grouped cross-validation."""
        decided = np.empty(len(x), dtype=np.int64)
        for train, test in group_folds(groups, n_folds).pairs:
            decided[test] = self.decide(x, train, x[test])
        return self.balanced(decided)

    def balanced(self, decided: NDArray[np.int64]) -> float:
        """Return the mean over classes of the share decided right."""
        right = decided == self.codes
        return float(np.mean([right[self.codes == c].mean() for c in np.unique(self.codes)]))
