"""How far a cross-validated score could have been otherwise: clusters resampled, probes refitted.

Intervals that take the out-of-fold predictions as given are far too short (coverage .50 to .89), because other clusters
would have trained another probe. Here every resample is trained and cross-validated again, in closed form for ridge:
with weights w, r = w^1/2, A = (diag(r) K diag(r) + alpha I)^-1 and G = A - A r r' A / (r' A r), leaving a test set T
out gives r_T (y_T - f_T) = (G_TT)^-1 (G r y)_T. One factor per resample serves all folds (`resample_inverse`); copies
stay together.

Which resampling. clusters: what was sampled from a population (speakers, prompt families), by default the
cross-validation groups. Bootstrap where the label varies inside clusters, or each class has at least 4 clusters (then
drawn class by class). Where each of more than two classes is a cluster itself (a probe of speaker identity with
clusters = speakers), the spread of the classes' own scores: what a class contributes is known, nothing has to be
deleted, and a deleted class would change the task. Otherwise the delete-one-cluster jackknife: when classes have few
clusters (a speaker with three sessions) a bootstrap loses whole classes from training sets, which no real sample does.
It errs on the safe side (Efron & Stein 1981). To speak about new speakers give clusters = speaker; about new sessions
of these speakers leave the groups.

The spread of the classes covers .93 to .998 at .95 in simulated speakers (4 to 20, 2 to 5 sessions, accuracy .10 to
.995; with the factor sqrt(G/(G-1)) on top), where the jackknife covers .97 to 1 with intervals up to twice as long.

The kernel is scaled once over all items, not in each fold of each resample: scaling is label-free, and only the spread
of the values is used. Other probes than ridge, and more than 4,000 items, are refitted for the jackknife.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from probecore.probes.design import Design
from probecore.probes.resample_inverse import DensePrecision, Precision, cheapest_precision
from probecore.probes.ridge import code_targets, factor, precision, standardise_all, trace_alpha
from probecore.probes.scores import score
from probecore.probes.solvers import Fold, ProbeSpec, decide
from probecore.splits import Folds
from probecore.stats.bootstrap import bootstrap_error, cluster_weights, jackknife_error, share_interval, t_quantile
from probecore.validation import codes_of, constant_inside

Tensor = torch.Tensor
Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

FEWEST_CLUSTERS = 4
MOST_ITEMS = 1000  # of the bootstrap; above it the jackknife, which needs one factor instead of 200
MOST_ITEMS_KERNEL = 4000  # of the closed form; above it an items x items matrix costs more than refits
BATCH = 4_000_000
TIE = 1e-9  # of decisions, whose targets are -1 and 1: what is closer is told apart by rounding alone


@dataclass(frozen=True)
class Resampling:
    """What is resampled: method "bootstrap", "classes" or "jackknife", or "" with the reason why no interval exists.

    clusters : (items,) codes. strata : (clusters,) codes. weights : (resamples, items) of the bootstrap.
    """

    method: str
    reason: str = ""
    clusters: Codes = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False)
    strata: Codes = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False)
    weights: Floats = field(default_factory=lambda: np.zeros((0, 0)), repr=False)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the t quantile: clusters minus strata."""
        return len(self.strata) - len(np.unique(self.strata))

    def error(self, values: Floats) -> float:
        """Return the standard error of resampled values (resamples,) or of their differences."""
        if self.method == "bootstrap":
            return bootstrap_error(values, np.bincount(self.strata))
        if self.method == "classes":
            return float(values.std(ddof=1)) / float(np.sqrt(len(values) - 1))
        return jackknife_error(values, self.strata) if self.method else float("nan")

    def interval(self, value: float, values: Floats, *, share: bool, n_items: int) -> tuple[float, float]:
        """Return the .95 interval of a share (logit scale) or of any other score (t)."""
        if not self.method:
            return float("nan"), float("nan")
        error = self.error(values)
        if share:
            m = float(np.nanmean(values)) if np.isfinite(error) else None
            return share_interval(value, error, self.freedom, n_items, len(self.strata), measured_at=m)
        half = t_quantile(self.freedom) * error
        return value - half, min(value + half, 1.0)  # no r2 exceeds 1


def plan_resampling(
    design: Design,
    folds: Folds,
    clusters: NDArray[np.generic] | None,
    spec: ProbeSpec,
    n_bootstrap: int,
    seed: int,
) -> Resampling:
    """Choose bootstrap or jackknife for this design; see the module docstring for the rule."""
    if n_bootstrap < 1:
        return Resampling("", "no interval was asked for: set n_bootstrap to 200")
    codes = design.groups if clusters is None else codes_of(clusters)[0]
    n = int(codes.max()) + 1
    strata = np.zeros(n, dtype=np.int64)
    smallest = n
    if not design.real and constant_inside(design.y, codes):
        of_cluster = np.zeros(n, dtype=np.int64)
        of_cluster[codes] = design.y
        smallest = int(np.bincount(of_cluster).min())
        strata = of_cluster if smallest > 1 else strata
        if design.n_classes == 2 and smallest < 3:
            return Resampling("", f"no interval: a class has {smallest} clusters, and resampling needs 3 of each class")
    if n < 3:
        return Resampling("", f"no interval: there are {n} clusters, and resampling needs at least 3")
    if n == design.n_classes > 2 and smallest == 1:
        return Resampling("classes", "", codes, strata)
    if spec.kind == "ridge" and folds.complete and smallest >= FEWEST_CLUSTERS and design.n_items <= MOST_ITEMS:
        weights = cluster_weights(codes, n_bootstrap, strata=strata, seed=seed)
        return Resampling("bootstrap", "", codes, strata, weights)
    return Resampling("jackknife", "", codes, strata)


def class_scores(decisions: Floats, y: Codes, clusters: Codes) -> Floats:
    """Return what each cluster contributes to the accuracy, (clusters,), with the accuracy as their mean.

    decisions (tested items, classes), y and clusters (tested items,). For classes of one size these are their own
    scores a; in general acc + G n_g / n (a_g - acc), so that a class counts as often as it is tested (ratio estimator).
    """
    hits = (decisions.argmax(axis=1) == y).astype(np.float64)
    n = np.bincount(clusters)
    own = np.bincount(clusters, hits) / n
    return np.asarray(hits.mean() + len(n) * n / n.sum() * (own - hits.mean()))


def resampled_scores(x: Tensor, design: Design, folds: Folds, spec: ProbeSpec, plan: Resampling) -> Floats:
    """Return accuracy, or r2 for a real label, in every resample: (resamples,); x (items, features)."""
    if not plan.method:
        return np.zeros(0)
    n_classes = len(design.names)
    pairs = [pair for pair in folds.pairs if not folds.by_class or len(np.unique(design.y[pair[1]])) == n_classes]
    if spec.kind != "ridge" or not folds.complete or design.n_items > MOST_ITEMS_KERNEL:
        return _jackknife_by_refits(x, design, pairs, spec, plan)
    x = standardise_all(x, spec.standardize)
    kernel = x @ x.T
    alpha = float(trace_alpha(kernel)) if spec.alpha == "trace" else float(spec.alpha)
    targets = code_targets(targets_of(design, x), design.n_classes).reshape(design.n_items, -1)
    if plan.method == "jackknife":
        return _jackknife(kernel, alpha, targets, design, pairs, plan)
    weights = torch.as_tensor(plan.weights, device=x.device)
    step = max(1, BATCH // kernel.numel())
    parts = []
    for w in weights.split(step):
        tally = _bootstrap(cheapest_precision(x, kernel, alpha, w.sqrt()), targets, w, design, pairs, folds.by_class)
        if tally.tied:  # a tie is broken by rounding, and that must not depend on which form was the cheapest
            tally = _bootstrap(DensePrecision(kernel, alpha, w.sqrt()), targets, w, design, pairs, folds.by_class)
        parts.append(tally.scores(design.real))
    return torch.cat(parts).cpu().numpy()


def _bootstrap(
    g: Precision, targets: Tensor, w: Tensor, design: Design, pairs: Sequence[Fold], by_class: bool
) -> "_Tally":
    """Return what each weighting w (resamples, items) scores; g : the precision matrix of these weightings."""
    root = w.sqrt()
    fitted = g.times(root[:, :, None] * targets)
    tally = _Tally(targets, len(w))
    onehot = None if design.real else torch.nn.functional.one_hot(_on(design.y, w), len(design.names)).to(w.dtype)
    for train, test in pairs:
        tr, te = _on(train, w), _on(test, w)
        lower, info = torch.linalg.cholesky_ex(g.block(te))
        residual = torch.cholesky_solve(fitted[:, te], lower) / root[:, te].clamp_min(1e-30)[:, :, None]
        trained = w[:, tr] > 0
        usable = (info == 0) & trained.any(1)
        if onehot is not None:  # two classes must be left to train on
            usable &= ((trained.to(w.dtype) @ onehot[tr]) > 0).sum(1) >= 2
        counted = w[:, te] * usable[:, None]
        if by_class:  # a pair of clusters comes as often as the product of their counts
            for group in np.unique(design.groups[test]):
                inside = _on(design.groups[test] == group, w).to(w.dtype)
                others = (w[:, te] * inside).sum(1) / inside.sum()
                counted = counted * torch.where(inside > 0, torch.ones_like(counted), others[:, None])
        tally.add(te, targets[te] - residual, counted)
    return tally


def _jackknife(
    kernel: Tensor, alpha: float, targets: Tensor, design: Design, pairs: Sequence[Fold], plan: Resampling
) -> Floats:
    """Return the score without each cluster; deletes it together with each test set from one precision matrix."""
    g = precision(kernel, alpha)
    fitted = g @ targets
    out = []
    for cluster in range(len(plan.strata)):
        kept = plan.clusters != cluster
        tally = _Tally(targets, 1)
        for train, test in pairs:
            scored = test[kept[test]]
            if not len(scored) or _untrainable(design, train[kept[train]]):
                continue
            removed = np.union1d(test, np.flatnonzero(~kept))
            at, te = _on(removed, kernel), _on(scored, kernel)
            residual = torch.cholesky_solve(fitted[at], factor(g[at[:, None], at]))
            rows = _on(np.searchsorted(removed, scored), kernel)
            tally.add(te, (targets[te] - residual[rows])[None], kernel.new_ones(1, len(scored)))
        out.append(tally.scores(design.real))
    return torch.cat(out).cpu().numpy()


def _jackknife_by_refits(x: Tensor, design: Design, pairs: Sequence[Fold], spec: ProbeSpec, plan: Resampling) -> Floats:
    """Return the score without each cluster, for any solver: every probe is trained again on the items that stay."""
    out = []
    for cluster in range(len(plan.strata)):
        kept = np.flatnonzero(plan.clusters != cluster)
        at = np.full(design.n_items, -1, dtype=np.int64)
        at[kept] = np.arange(len(kept))
        folds = [(at[train][at[train] >= 0], at[test][at[test] >= 0]) for train, test in pairs]
        folds = [(tr, te) for tr, te in folds if len(te) and not _untrainable(design, kept[tr])]
        if not folds:
            out.append(float("nan"))
            continue
        here = _on(kept, x)
        if design.real:
            labels, n_classes = targets_of(design, x)[here], 0
        else:
            codes, names = codes_of(design.y[kept])
            labels, n_classes = _on(codes, x)[:, None], len(names)
        decisions = decide(spec, x[here], folds, labels, n_classes, _on(design.groups[kept], x))
        rows = _on(np.concatenate([te for _, te in folds]), x)
        out.append(float(score(torch.cat(decisions), labels[rows], n_classes).value[0]))
    return np.asarray(out)


def targets_of(design: Design, like: Tensor) -> Tensor:
    """Return the observed labels (items, 1) as a solver takes them: class codes, or a real label as a z-score."""
    if not design.real:
        return _on(design.y, like)[:, None]
    values = np.asarray(design.names, dtype=np.float64)[design.y]
    return torch.as_tensor((values - values.mean()) / values.std(), dtype=like.dtype, device=like.device)[:, None]


def _untrainable(design: Design, train: Codes) -> bool:
    return not len(train) or (not design.real and len(np.unique(design.y[train])) < 2)


def _on(values: NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.as_tensor(values, device=like.device)


class _Tally:
    """Weighted sums over folds and what they make: the share right, or r2 of a real label; tied : ties were met."""

    def __init__(self, targets: Tensor, n_resamples: int) -> None:
        self.targets = targets
        self.sums = targets.new_zeros(5, n_resamples)  # weight, right, squared error, y, y squared
        self.tied = False

    def add(self, test: Tensor, decisions: Tensor, weights: Tensor) -> None:
        """Add test items: decisions (resamples, items, columns), weights (resamples, items)."""
        y = self.targets[test]
        if y.shape[1] > 1:
            hit = (decisions.argmax(-1) == y.argmax(-1)).to(decisions.dtype)
            first, second = decisions.topk(2, dim=-1).values.unbind(-1)
            margin = first - second
        else:
            hit = ((decisions > 0) == (y > 0)).to(decisions.dtype)[..., 0]
            margin = decisions[..., 0].abs()
        self.tied |= bool(((margin < TIE) & (weights > 0)).any())
        squared = (decisions - y)[..., 0].square()
        y = y[..., 0]
        for i, value in enumerate((torch.ones_like(hit), hit, squared, y, y.square())):
            self.sums[i] += (value * weights).sum(1)

    def scores(self, real: bool) -> Tensor:
        """Return the score of each resample, NaN where nothing was scored."""
        weight, hits, squared, y, yy = self.sums
        out: Tensor = 1 - squared / (yy - y.square() / weight) if real else hits / weight
        return out
