"""Contrasts between two categories of prompts: every statistic with a family bootstrap and a label permutation.

Conventions. Values are one per prompt (n,): the prompt is the unit of inference, tokens are averaged inside it first.
A contrast is first minus second (risk - safe). Its resamples draw whole families; its labelings exchange categories
as the design allows: inside families that hold both (`probecore.probes.design`), so a set of pairs is tested as pairs.
Where most prompts lie in families that hold both categories, the contrast is made on these families alone: prompts
whose family holds one category would compare families, not categories.

Both are weights: a statistic is a function of two weight matrices (n, K), the prompts of the first and of the second
category in K resamples or labelings, and returns (K,). Column 0 of the labelings is the observed one.

Intervals are expanded percentile intervals (Hesterberg 2015, 3.2): the tail probability is
Phi(-t sqrt(n / (n - 1))) with t the quantile of n - 1 degrees of freedom, n the number of families of the smaller
category, because plain percentiles of few clusters are too narrow. p = (b + 1) / (m + 1), two-sided.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmprobe.prompts import Prompts
from probecore.errors import DesignError, InputError
from probecore.probes.design import Design
from probecore.probes.permutation import draw_labelings
from probecore.seeds import generator
from probecore.stats.bootstrap import expanded_interval
from probecore.validation import codes_of, one_per_item

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]
NO_INTERVAL = "no interval: bootstrap resamples were not asked for"


@dataclass(frozen=True)
class Contrast:
    """Two categories of prompts, first minus second.

    items : (n,) positions of their prompts in the set. is_first : (n,) bool. families : (n,) codes.
    labelings : (n, 1 + m) bool, column 0 observed. reason : why there is no other labelling, else "".
    exhaustive : every labelling of the design is there. symmetric : exchanging both categories as a whole is one of
    them, so a null is centred at 0. resamples : (n, B) times each prompt is drawn. paired : every family holds one
    prompt of each category. left_out : prompts of these categories whose family holds only one of them.
    """

    first: str
    second: str
    items: NDArray[np.int64] = field(repr=False)
    is_first: NDArray[np.bool_] = field(repr=False)
    families: NDArray[np.int64] = field(repr=False)
    labelings: NDArray[np.bool_] = field(repr=False)
    resamples: Floats = field(repr=False)
    reason: str
    exhaustive: bool
    symmetric: bool
    paired: bool
    left_out: int

    @property
    def n_prompts(self) -> int:
        """Number of prompts of both categories."""
        return len(self.items)

    @property
    def n_families(self) -> int:
        """Number of families of both categories."""
        return len(np.unique(self.families))

    @property
    def crossed(self) -> NDArray[np.int64] | None:
        """Return the families (n,) where every one holds both categories, else None."""
        both = set(self.families[self.is_first].tolist()) & set(self.families[~self.is_first].tolist())
        return self.families if len(both) == self.n_families else None

    def split(self, values: ArrayLike) -> tuple[Floats, Floats]:
        """Return the values (n,) of the first and of the second category."""
        array = np.asarray(values, dtype=np.float64)
        return array[self.is_first], array[~self.is_first]

    def centred(self, values: ArrayLike) -> Floats:
        """Return the values (n,) minus the mean of their own category: what is left when means do not matter."""
        array = np.asarray(values, dtype=np.float64)
        first, second = self.split(array)
        return np.asarray(array - np.where(self.is_first, first.mean(), second.mean()))

    def observed(self, statistic: Statistic) -> float:
        """Return the statistic of the prompts as they are."""
        return float(statistic(*self._weights(self.is_first[:, None]))[0])

    def interval(self, statistic: Statistic, level: float = 0.95) -> tuple[float, float] | None:
        """Return the family bootstrap interval of a statistic, None without resamples or where one is undefined."""
        if not self.resamples.shape[1]:
            return None
        mask = self.is_first[:, None]
        values = statistic(self.resamples * mask, self.resamples * ~mask)
        if not np.isfinite(values).all():
            return None
        return expanded_interval(values, self._fewest_families(), 1 - level)

    def null(self, statistic: Statistic) -> Floats:
        """Return the statistic of every labelling (1 + m,), observed first."""
        return np.asarray(statistic(*self._weights(self.labelings)))

    def p_value(self, statistic: Statistic) -> float | None:
        """Return the two-sided permutation p of a statistic, by its distance from the null's centre; None without one.

        NaN where the statistic is undefined in some labelling.
        """
        if self.labelings.shape[1] < 2:
            return None
        null = self.null(statistic)
        if not np.isfinite(null).all():
            return float("nan")
        size = np.abs(null if self.symmetric else null - null.mean())
        return float((size >= size[0] * (1 - 1e-9)).mean())

    def null_interval(self, statistic: Statistic, level: float = 0.95) -> tuple[float, float] | None:
        """Return the central range of a statistic over all labelings; None without one."""
        if self.labelings.shape[1] < 2:
            return None
        low, high = np.quantile(self.null(statistic), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def _weights(self, masks: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        return masks.astype(np.float64), (~masks).astype(np.float64)

    def _fewest_families(self) -> int:
        return min(len(np.unique(self.families[mask])) for mask in (self.is_first, ~self.is_first))


def contrast(
    prompts: Prompts,
    first: str = "risk",
    second: str = "safe",
    *,
    n_permutations: int = 999,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Contrast:
    """Prepare the contrast of two categories: their labelings and resamples, drawn once for every statistic.

    Raises `InputError` for a category without prompts, `DesignError` for one with fewer than 3 prompts or, where the
    prompts name families, fewer than 2 families.
    """
    counts = prompts.counts
    for name in (first, second):
        if name not in counts:
            raise InputError(f"no prompts of category {name!r}; there are {', '.join(counts)}: name two of them")
        if counts[name] < 3:
            raise DesignError(f"a contrast needs at least 3 prompts a category; {name!r} has {counts[name]}: add more")
    items, left_out = _matched(prompts, first, second)
    chosen = prompts.take(items.tolist())
    is_first = np.array([category == first for category in chosen.categories])
    families = codes_of(chosen.families)[0]
    for name, mask in ((first, is_first), (second, ~is_first)):
        if len(np.unique(families[mask])) < 2:
            raise DesignError(f"a contrast needs at least 2 families a category; {name!r} has 1: add families")
    design = Design.of(is_first.astype(int), groups=families)
    drawn = draw_labelings(design, n_permutations, seed=seed)
    symmetric = bool((design.counts[:, 0] == design.counts[:, 1]).all())
    labelings = drawn.values == 1
    if drawn.exhaustive and symmetric:  # every labelling stands for its mirror image as well
        labelings = np.concatenate([labelings, ~labelings], axis=1)
    return Contrast(
        first,
        second,
        items,
        is_first,
        families,
        labelings,
        _resamples(is_first, families, n_bootstrap, seed),
        drawn.reason,
        drawn.exhaustive,
        symmetric,
        chosen.is_paired(first, second),
        left_out,
    )


def gap(values: ArrayLike) -> Statistic:
    """Return the statistic mean(first) - mean(second) of values (n,)."""
    array = np.asarray(values, dtype=np.float64)
    one_per_item(array, len(array), "values")

    def statistic(first: Floats, second: Floats) -> Floats:
        return np.asarray((array @ first) / first.sum(0) - (array @ second) / second.sum(0))

    return statistic


def standardised_gap(values: ArrayLike) -> Statistic:
    """Return Cohen's d as a statistic: the gap over the pooled standard deviation (ddof 1) of values (n,)."""
    difference, variance = gap(values), between_variance(values)

    def statistic(first: Floats, second: Floats) -> Floats:
        n, m = first.sum(0), second.sum(0)
        pooled = ((n - 1) * variance(first) + (m - 1) * variance(second)) / (n + m - 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(difference(first, second) / np.sqrt(pooled))

    return statistic


def log_variance_ratio(variance: Callable[[Floats], Floats]) -> Statistic:
    """Return the statistic 0.5 log(variance(first) / variance(second)): LVR of a reading of the variance."""

    def statistic(first: Floats, second: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(0.5 * np.log(variance(first) / variance(second)))

    return statistic


def alpha(variance: Callable[[Floats], Floats]) -> Statistic:
    """Return the statistic alpha = 1 - variance(second) / variance(first), with risk first and safe second."""

    def statistic(first: Floats, second: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1.0 - variance(second) / variance(first))

    return statistic


def between_variance(means: ArrayLike) -> Callable[[Floats], Floats]:
    """Return reading A1: the variance over prompts of their mean entropy (n,), ddof 1."""
    given = np.asarray(means, dtype=np.float64)
    values = given - given.mean()

    def variance(weights: Floats) -> Floats:
        n = weights.sum(0)
        return _without_rounding(((values**2) @ weights - (values @ weights) ** 2 / n) / (n - 1), given)

    return variance


def pooled_variance(traces: ArrayLike) -> Callable[[Floats], Floats]:
    """Return reading A2: the variance over all valid tokens of traces (n, T), NaN where not valid; ddof 0."""
    given = np.asarray(traces, dtype=np.float64)
    values = given - np.nanmean(given)
    n_tokens, sums, squares = (~np.isnan(values)).sum(1), np.nansum(values, 1), np.nansum(values**2, 1)

    def variance(weights: Floats) -> Floats:
        n = n_tokens @ weights
        return _without_rounding((squares @ weights) / n - ((sums @ weights) / n) ** 2, given)

    return variance


def within_variance(traces: ArrayLike) -> Callable[[Floats], Floats]:
    """Return reading A3: the mean over prompts of the variance over their valid tokens, traces (n, T); ddof 0."""
    given = np.asarray(traces, dtype=np.float64)
    own = np.nanvar(given, axis=1)

    def variance(weights: Floats) -> Floats:
        return _without_rounding((own @ weights) / weights.sum(0), given)

    return variance


def _without_rounding(variance: Floats, values: Floats) -> Floats:
    """Return variances with those that are rounding error of the values set to 0, so that their ratio is undefined."""
    floor = (1e-12 * np.nanmax(np.abs(values))) ** 2
    return np.where(variance > floor, variance, 0.0)


def _matched(prompts: Prompts, first: str, second: str) -> tuple[NDArray[np.int64], int]:
    """Return the prompts of a contrast and how many were left out because their family holds one category only."""
    items = [i for i, category in enumerate(prompts.categories) if category in (first, second)]
    members = {name: {prompts.families[i] for i in items if prompts.categories[i] == name} for name in (first, second)}
    shared = members[first] & members[second]
    matched = [i for i in items if prompts.families[i] in shared]
    enough = min(sum(prompts.categories[i] == name for i in matched) for name in (first, second)) >= 3
    if enough and 2 * len(matched) >= len(items):
        return np.array(matched, dtype=np.int64), len(items) - len(matched)
    return np.array(items, dtype=np.int64), 0


def _resamples(is_first: NDArray[np.bool_], families: NDArray[np.int64], n: int, seed: int) -> Floats:
    """Return how often each prompt is drawn, (prompts, n): families with replacement, among those like them.

    Families that hold both categories, only the first and only the second are drawn separately.
    """
    rng = generator(seed, "contrast", "resamples")
    n_families = int(families.max()) + 1
    has = np.stack([np.bincount(families[mask], minlength=n_families) > 0 for mask in (is_first, ~is_first)])
    drawn = np.zeros((n_families, n))
    for kind in np.unique(has.T, axis=0):
        members = np.flatnonzero((has.T == kind).all(1))
        drawn[members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n).T
    return drawn[families]


def adjusted_gap(
    values: ArrayLike, covariates: ArrayLike, families: ArrayLike | None = None
) -> tuple[Statistic, Statistic]:
    """Return the gap that covariates (n, c) leave, and its t: coefficient of the category in a linear regression.

    values = a + gap x [first] + covariates b + error, fitted to the weighted prompts. families : (n,) codes where they
    hold both categories; then a is one of each family, so that a topic that moves both covariate and value is no part
    of b. Resamples draw whole families, so their members have one weight.

    The t (least squares, weighted prompts as repeats) is what an exchange of categories compares: an exchanged category
    is no longer correlated with the covariates, so the coefficient alone varies less there than it does as observed.
    """
    y, z = np.asarray(values, dtype=np.float64), np.asarray(covariates, dtype=np.float64)
    member = np.ones((1, len(y))) if families is None else _members(families)
    y, z = y - y.mean(), z - z.mean(axis=0)
    if families is not None:
        y = y - member.T @ ((member @ y) / member.sum(1))
        z = z - member.T @ ((member @ z) / member.sum(1)[:, None])
    spread = z.std(axis=0)
    z = z[:, spread > 1e-12] / spread[spread > 1e-12]

    def fit(first: Floats, second: Floats) -> tuple[Floats, Floats]:
        w, size = first + second, z.shape[1] + 2
        d = np.where(w > 0, first / np.maximum(w, 1e-300), 0.0)
        n_families = np.ones(w.shape[1])
        if families is not None:
            inside = member @ w
            d = d - member.T @ ((member @ first) / np.where(inside > 0, inside, 1.0))
            n_families = (inside / member.sum(1)[:, None]).sum(0)
        wd = w * d
        normal, right = np.zeros((w.shape[1], size, size)), np.zeros((w.shape[1], size))
        normal[:, 0, 0], normal[:, 0, 1], normal[:, 1, 1] = w.sum(0), wd.sum(0), (wd * d).sum(0)
        normal[:, 0, 2:], normal[:, 1, 2:] = w.T @ z, wd.T @ z
        normal[:, 2:, 2:] = np.einsum("nk,na,nb->kab", w, z, z, optimize=True)
        upper = np.triu(np.ones((size, size), dtype=bool))
        normal = np.where(upper, normal, normal.transpose(0, 2, 1))
        right[:, 0], right[:, 1], right[:, 2:] = y @ w, y @ wd, (w * y[:, None]).T @ z
        inverse = np.linalg.pinv(normal, hermitian=True)
        beta = np.einsum("kab,kb->ka", inverse, right)
        left = np.maximum((y**2) @ w - (beta * right).sum(1), 0.0)
        freedom = np.maximum(w.sum(0) - z.shape[1] - 1 - n_families, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return beta[:, 1], beta[:, 1] / np.sqrt(left / freedom * inverse[:, 1, 1])

    return (lambda a, b: fit(a, b)[0]), (lambda a, b: fit(a, b)[1])


def _members(families: ArrayLike) -> Floats:
    """Return which prompt belongs to which family, (families, prompts) of 0 and 1."""
    codes = np.asarray(families)
    return np.asarray(np.unique(codes)[:, None] == codes[None], dtype=np.float64)
