"""Labelings of a design: the observed labels first, then every other one or a random sample.

Conventions. A labelling matrix is (items, labelings), int64 class codes or float64 values; column 0 is observed. Few
enough labelings are enumerated (then p is exact), otherwise units are exchanged at random inside blocks. Random
labelling i depends on the seed and i alone: neither on how many are drawn nor on how they are batched.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from probecore.errors import DesignError
from probecore.probes.design import Design
from probecore.seeds import generator
from probecore.splits import Folds

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


def check_frozen_folds(design: Design, folds: Folds) -> None:
    """Raise `DesignError` unless labels are exchanged inside the folds only (P(folds | labels) must not change)."""
    fold = folds.fold_of(design.n_items)
    for block in np.unique(design.blocks):
        if len(np.unique(fold[design.blocks == block])) > 1:
            raise DesignError(
                f"folds of scheme '{folds.scheme}' were made from the labels, so labels may be exchanged inside folds "
                "only: give the fold of each item as blocks, or use label-blind folds"
            )


def _every(design: Design) -> NDArray[np.int64]:
    every = np.stack(list(design.arrangements()))
    observed = _canonical(design, design.unit_labels)
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
