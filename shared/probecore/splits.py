"""Train and test sets that never share a group, and never depend on the labels unless they say so.

Conventions. A fold is a pair (train, test) of int64 item indices. `groups` (items,) is what must be new at test. Every
maker is deterministic. A frozen fold list that was stratified on the labels makes a free permutation test invalid
(false-positive rates up to .44 at .05), so `Folds.stratified` travels with the folds and the test asks for it.

>>> folds = group_folds(["a", "a", "b", "b", "c", "c"], n_folds=3)
>>> [test.tolist() for _, test in folds.pairs]
[[0, 1], [2, 3], [4, 5]]
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import DesignError, InputError, shorten
from probecore.seeds import generator
from probecore.validation import at_least, codes_of, one_per_item

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]

MOST_SUBSETS = 1000


@dataclass(frozen=True)
class Folds:
    """Folds and how they were made.

    pairs : (train, test) index arrays. scheme : name shown in results.
    stratified : the composition depends on the labels; then only a permutation within folds is valid.
    leaky : items of one group may be in train and test; accuracy does not speak about new groups.
    by_class : test sets are candidates; a labelling is scored on those that hold one group of each of its classes.
    """

    pairs: tuple[Fold, ...] = field(repr=False)
    scheme: str
    stratified: bool = False
    leaky: bool = False
    by_class: bool = False

    def __len__(self) -> int:
        """Return the number of folds."""
        return len(self.pairs)

    @property
    def complete(self) -> bool:
        """Tell whether every fold trains on all items it does not test."""
        sizes = {len(train) + len(test) for train, test in self.pairs}
        return len(sizes) == 1 and sizes == {1 + max(int(np.concatenate(pair).max()) for pair in self.pairs)}

    def tests(self) -> list[NDArray[np.int64]]:
        """Return the test items of each fold."""
        return [test for _, test in self.pairs]

    def fold_of(self, n_items: int) -> NDArray[np.int64]:
        """Return the fold that tests each item, (items,); raises `InputError` where test sets overlap or miss items."""
        out = np.full(n_items, -1, dtype=np.int64)
        for i, (_, test) in enumerate(self.pairs):
            if (out[test] >= 0).any():
                raise InputError(f"test sets of scheme {self.scheme!r} overlap: use folds that test each item once")
            out[test] = i
        if (out < 0).any():
            raise InputError(f"{int((out < 0).sum())} items are in no test set: give folds that test each item once")
        return out


def group_folds(groups: ArrayLike, n_folds: int = 5) -> Folds:
    """Return label-blind folds of whole groups, balanced in items (largest group first into the smallest fold).

    Raises `DesignError` with fewer groups than folds: an empty test set is never made.
    """
    codes, names = _groups(groups)
    at_least(n_folds, 2, "n_folds")
    if len(names) < n_folds:
        raise DesignError(f"{n_folds} folds need at least {n_folds} groups; got {len(names)}: use fewer folds")
    sizes = np.bincount(codes, minlength=len(names))
    load, fold_of_group = np.zeros(n_folds, dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        fold = int(load.argmin())
        fold_of_group[group] = fold
        load[fold] += sizes[group]
    return Folds(_partition(fold_of_group[codes]), f"group folds ({n_folds})")


def leave_one_group_out(groups: ArrayLike) -> Folds:
    """Return one fold per group; raises `DesignError` for a single group."""
    codes, names = _groups(groups)
    if len(names) < 2:
        raise DesignError("leaving a group out needs at least 2 groups; got 1: give groups that differ")
    return Folds(_partition(codes), "leave one group out")


def leave_one_group_per_class_out(groups: ArrayLike, n_classes: int = 2, blocks: ArrayLike | None = None) -> Folds:
    """Return all subsets of `n_classes` groups as test sets; a labelling uses those with one group of each class.

    For labels that are constant inside groups: leaving out one group of each class keeps the classes of the training
    set as balanced as they were, which other group folds do not (accuracy without an effect .31 instead of .51 with
    10 groups). blocks (items,): subsets stay inside a block. Every labelling is re-stratified, so free permutation of
    groups is valid.

    Raises `DesignError` when there are more than 1,000 subsets, or no block holds n_classes + 1 groups.
    """
    codes, names = _groups(groups)
    block_of = np.zeros(len(names), dtype=np.int64)
    if blocks is not None:
        block_of[codes] = codes_of(one_per_item(blocks, len(codes), "blocks"))[0]
    subsets = [
        subset
        for block in np.unique(block_of)
        for subset in combinations(np.flatnonzero(block_of == block).tolist(), n_classes)
    ]
    if len(names) <= n_classes or not subsets:
        raise DesignError(
            f"leaving one group of each of {n_classes} classes out needs more than {n_classes} groups; got {len(names)}"
        )
    if len(subsets) > MOST_SUBSETS:
        raise DesignError(
            f"{len(names)} groups make {len(subsets)} subsets of {n_classes}, more than {MOST_SUBSETS}: use group folds"
        )
    pairs = []
    for subset in subsets:
        held_out = np.isin(codes, subset)
        pairs.append((np.flatnonzero(~held_out), np.flatnonzero(held_out)))
    return Folds(tuple(pairs), "leave one group per class out", by_class=True)


def item_folds(n_items: int, n_folds: int = 5, *, seed: int = 0) -> Folds:
    """Return random label-blind folds of single items. Groups leak: accuracy does not speak about new groups."""
    at_least(n_items, n_folds, "n_items")
    fold = np.empty(n_items, dtype=np.int64)
    fold[generator(seed, "item folds").permutation(n_items)] = np.arange(n_items) % n_folds
    return Folds(_partition(fold), f"item folds ({n_folds}); groups leak", leaky=True)


def stratified_folds(y: ArrayLike, groups: ArrayLike | None = None, n_folds: int = 5, *, seed: int = 0) -> Folds:
    """Return folds with nearly equal class shares, made from the labels: valid with permutation within folds only.

    With groups, the label must be constant inside each; groups of one class are dealt to the folds in random order.
    Raises `DesignError` where a fold would be empty or the label varies inside a group.
    """
    values = np.asarray(y)
    codes, names = _groups(np.arange(len(values)) if groups is None else groups)
    classes, _ = codes_of(values)
    first = np.array([np.flatnonzero(codes == g)[0] for g in range(len(names))])
    if (classes != classes[first][codes]).any():
        raise DesignError("stratified group folds need a label that is constant inside each group: use group folds")
    rng = generator(seed, "stratified folds")
    fold_of_group, dealt = np.zeros(len(names), dtype=np.int64), 0
    for k in range(classes.max() + 1):
        members = rng.permutation(np.flatnonzero(classes[first] == k))
        fold_of_group[members] = (dealt + np.arange(len(members))) % n_folds
        dealt += len(members)
    if len(np.unique(fold_of_group)) < n_folds:
        raise DesignError(f"{n_folds} folds need at least {n_folds} groups; got {len(names)}: use fewer folds")
    return Folds(_partition(fold_of_group[codes]), f"stratified folds ({n_folds})", stratified=True)


def check_training_classes(folds: Folds, classes: NDArray[np.int64], names: Sequence[object]) -> str:
    """Refuse folds that cannot train; return a note about classes missing from some training sets ("" if none).

    Raises `DesignError` when a training set holds one class only, or when no fold can recognise what it tests.
    """
    missing: set[int] = set()
    testable = False
    for train, test in folds.pairs:
        trained = np.unique(classes[train])
        if len(trained) < 2 and not (folds.by_class and len(np.unique(classes[test])) < len(names)):
            raise DesignError(
                f"a training set of the scheme '{folds.scheme}' holds only class {names[trained[0]]!r}: "
                "use fewer folds, or more groups of each class"
            )
        absent = np.setdiff1d(classes[test], trained)
        missing.update(absent.tolist())
        testable |= len(absent) < len(np.unique(classes[test]))
    if not testable:
        raise DesignError(
            "every class is in one group only, so no training set holds a class that is tested and "
            "label and group cannot be told apart: collect at least 2 groups of each class"
        )
    if missing:
        return f"no training set holds class {shorten([names[k] for k in sorted(missing)])} when its group is left out"
    return ""


def _groups(groups: ArrayLike) -> tuple[NDArray[np.int64], list[object]]:
    values = np.asarray(groups)
    return codes_of(one_per_item(values, len(values), "groups"))


def _partition(fold: NDArray[np.int64]) -> tuple[Fold, ...]:
    return tuple((np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(int(fold.max()) + 1))
