"""Contrasts between two categories of prompts: resamples of families and exchanges of labels for every statistic.

Conventions. Values are one per prompt (n,): the prompt is the unit of inference, tokens are averaged inside it first.
A contrast is first minus second (risk - safe). Its resamples draw whole families; its labelings exchange categories
as the design allows: inside families that hold both (`probecore.probes.design`), so a set of pairs is tested as pairs.
Where most prompts lie in families that hold both categories, the contrast is made on these families alone: prompts
whose family holds one category would compare families, not categories.

Both are weights: a statistic (`lmprobe.contrast_statistics`) is a function of two weight matrices (n, K), the prompts
of the first and of the second category in K resamples or labelings, and returns (K,). Column 0 of the labelings is the
observed one.

Intervals are expanded percentile intervals (Hesterberg 2015, 3.2): the tail probability is
Phi(-t sqrt(n / (n - 1))) with t the quantile of n - 1 degrees of freedom, n the number of families of the smaller
category, because plain percentiles of few clusters are too narrow. p = (b + 1) / (m + 1), two-sided.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmprobe.contrast_statistics import Statistic
from lmprobe.prompts import Prompts
from probecore.errors import DesignError, InputError
from probecore.probes.design import Design
from probecore.probes.permutation import draw_labelings
from probecore.seeds import generator
from probecore.stats.bootstrap import expanded_interval
from probecore.validation import codes_of

Floats = NDArray[np.float64]
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
