"""Labelings of a design: the observed labels first, then every other one or a random sample.

`permutation_test` takes any statistic of the labels; `probe_layers` is the fast route for cross-validated probes.

Conventions. A labelling matrix is (items, labelings), int64 class codes or float64 values; column 0 is observed. Few
enough labelings are enumerated (then p is exact), otherwise units are exchanged at random inside blocks. Random
labelling i depends on the seed and i alone: neither on how many are drawn nor on how they are batched.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import DesignError
from probecore.probes.design import Design
from probecore.seeds import generator
from probecore.splits import Folds
from probecore.stats.permutation import p_value

ENUMERATE_UP_TO = 10_000


@dataclass(frozen=True)
class Labelings:
    """Labels of all items under many labelings.

    values : (items, 1 + others); int64 class codes, or float64 for a real label.
    exhaustive : every labelling of the design is there. reason : why there is no other labelling, else "".
    """

    values: NDArray[np.int64] | NDArray[np.float64] = field(repr=False)
    exhaustive: bool
    reason: str = ""

    @property
    def n_others(self) -> int:
        """Number of labelings beside the observed one."""
        return int(self.values.shape[1]) - 1


def draw_labelings(
    design: Design,
    n_permutations: int,
    *,
    level: float = 0.05,
    seed: int = 0,
    folds: Folds | None = None,
    enumerate_up_to: int = ENUMERATE_UP_TO,
) -> Labelings:
    """Return the observed labelling and others, all of them or `n_permutations` random ones.

    A design without a test at `level` gets the observed column alone and the reason. Raises `DesignError` when `folds`
    were stratified on the labels and the exchange is not confined to folds: that test rejects far too often.
    """
    if folds is not None and folds.stratified:
        check_frozen_folds(design, folds)
    reason = design.refusal(level)
    if not reason and n_permutations < 1:
        reason = "no permutations were asked for: set n_permutations to 999"
    if reason:
        return Labelings(_items(design, design.unit_labels[None]), False, reason)
    count = design.n_arrangements if design.real else design.n_labelings
    exhaustive = count <= enumerate_up_to
    if not exhaustive and 1 / (n_permutations + 1) > level:
        reason = f"{n_permutations} permutations cannot give a p below {1 / (n_permutations + 1):.2g}: use 999"
        return Labelings(_items(design, design.unit_labels[None]), False, reason)
    units = _every(design) if exhaustive else _sample(design, n_permutations, seed)
    return Labelings(_items(design, units), exhaustive)


@dataclass(frozen=True)
class PermutationTest:
    """A permutation test of any statistic, larger meaning more effect.

    p_value : None where the design has no test, with the reason. smallest_p : what this design and number of labelings
    can reach. null : statistics of the other labelings; its mean is the chance level.
    """

    statistic: float
    p_value: float | None
    smallest_p: float
    null: NDArray[np.float64] = field(repr=False)
    exhaustive: bool
    reason: str = ""


def permutation_test(
    statistic: Callable[[NDArray[Any]], float],
    y: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    units: ArrayLike | None = None,
    blocks: ArrayLike | None = None,
    n_permutations: int = 999,
    alpha_level: float = 0.05,
    names_matter: bool = False,
    seed: int = 0,
) -> PermutationTest:
    """Test a statistic by exchanging labels as they were assigned: whole units, inside blocks (see `Design`).

    Parameters
    ----------
    statistic
        Function of labels (items,), in the values of y. Refit everything that was fitted with the labels inside it.
    y, groups, units, blocks
        (items,) each.
    names_matter
        True where exchanging the names of two classes changes the statistic (a signed difference of two means); a
        score of a classifier does not change, and then fewer labelings are distinct.

    Raises `InputError` as `Design.of`. A design without a test at `alpha_level` gives p_value None and the reason.

    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 11.0, 12.0, 13.0, 14.0])
    >>> gap = lambda labels: x[labels == 1].mean() - x[labels == 0].mean()
    >>> permutation_test(gap, [0, 0, 0, 0, 1, 1, 1, 1], names_matter=True).p_value == 1 / 70
    True
    """
    design = Design.of(y, groups, units, blocks)
    values = np.asarray(y)
    names = np.asarray(design.names, dtype=values.dtype)
    observed = float(statistic(values))
    count = design.n_arrangements if names_matter else design.n_labelings
    reason = "" if names_matter and count * alpha_level >= 1 else design.refusal(alpha_level)
    exhaustive = count <= ENUMERATE_UP_TO
    smallest = 1 / count if exhaustive else max(1 / count, 1 / (n_permutations + 1))
    if not reason and smallest > alpha_level:
        reason = f"{n_permutations} permutations cannot give a p below {smallest:.2g}: use 999"
    if reason:
        return PermutationTest(observed, None, smallest, np.zeros(0), exhaustive, reason)
    units_labels = _every(design, renamings=names_matter) if exhaustive else _sample(design, n_permutations, seed)
    null = np.array([float(statistic(names[labels[design.units]])) for labels in units_labels[1:]])
    p = float(p_value(np.concatenate([[observed], null])))
    return PermutationTest(observed, p, smallest, null, exhaustive)


def check_frozen_folds(design: Design, folds: Folds) -> None:
    """Raise `DesignError` unless labels are exchanged inside the folds only (P(folds | labels) must not change)."""
    fold = folds.fold_of(design.n_items)
    for block in np.unique(design.blocks):
        if len(np.unique(fold[design.blocks == block])) > 1:
            raise DesignError(
                f"folds of scheme '{folds.scheme}' were made from the labels, so labels may be exchanged inside folds "
                "only: give the fold of each item as blocks, or use label-blind folds"
            )


def _every(design: Design, *, renamings: bool = False) -> NDArray[np.int64]:
    every = np.stack(list(design.arrangements(renamings=renamings)))
    observed = design.unit_labels if renamings else _canonical(design, design.unit_labels)
    first = int(np.flatnonzero((every == observed).all(1))[0])
    every = np.delete(every, first, axis=0)
    return np.concatenate([design.unit_labels[None], every])


def _canonical(design: Design, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the representative that `Design.arrangements` yields for this labelling."""
    if design.real:
        return labels
    columns = design.counts.T.tolist()
    order = np.argsort(design.unit_blocks, kind="stable")
    rename = np.full(len(columns), -1, dtype=np.int64)
    for k in dict.fromkeys(labels[order].tolist()):
        rename[k] = next(j for j, column in enumerate(columns) if column == columns[k] and j not in rename)
    return rename[labels]


def _sample(design: Design, count: int, seed: int) -> NDArray[np.int64]:
    labels, blocks = design.unit_labels, design.unit_blocks
    order = np.argsort(blocks, kind="stable")
    keys = generator(seed, "permutation").random((count, len(labels)))  # row i is the same whatever the count
    keys += 2.0 * blocks[order]
    out = np.empty((count + 1, len(labels)), dtype=np.int64)
    out[0] = labels
    out[1:, order] = labels[order[np.argsort(keys, axis=1, kind="stable")]]
    return out


def _items(design: Design, units: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.float64]:
    codes = np.ascontiguousarray(units.T)[design.units]
    return np.asarray(design.names, dtype=np.float64)[codes] if design.real else codes
