"""The design of a label: what carries it, where it may be exchanged, how many labelings there are.

Conventions. group: what must be new at test; it decides the folds. unit: what carries one label and is exchanged.
block: inside which units may be exchanged. All three are given per item. The permutation mirrors how labels were
assigned, the folds mirror what has to be new: two things, so two arguments (exchangeability blocks as in PALM).

Defaults. units: groups where the label is constant inside each, otherwise single items. blocks: groups where the label
varies inside them and every unit lies in one group, otherwise none.

The number of distinct labelings counts a labelling and its renamings once: nothing a probe reports changes when
classes are renamed. It is prod_b C_b! / prod_s n_bs! over blocks b with C_b units, n_bs of class s, divided by
prod_j m_j! over sets of m_j classes with equal counts in every block. Its reciprocal is the smallest attainable p.

>>> design = Design.of(["f", "m"] * 5, groups=list("abcdefghij"))
>>> design.n_labelings, round(design.smallest_p, 4)
(126, 0.0079)
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import factorial, prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError
from probecore.validation import codes_of, constant_inside, one_per_item

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """A label with its groups, units and blocks; build with `Design.of`.

    y : (items,) class codes, or codes of the sorted distinct numbers for a real label.
    names : what the codes stand for. real : the label is a number, not a class.
    groups, units, blocks : (items,) codes.
    """

    y: Codes = field(repr=False)
    names: tuple[Any, ...]
    real: bool
    groups: Codes = field(repr=False)
    units: Codes = field(repr=False)
    blocks: Codes = field(repr=False)

    @classmethod
    def of(
        cls,
        y: ArrayLike,
        groups: ArrayLike | None = None,
        units: ArrayLike | None = None,
        blocks: ArrayLike | None = None,
        *,
        real: bool = False,
    ) -> "Design":
        """Build a design and derive what is not given; each argument is (items,).

        Raises `InputError` for unequal lengths, a label that varies inside a unit, a unit in two blocks, one class.
        """
        n = len(np.asarray(y))
        codes, names = codes_of(one_per_item(np.asarray(y, dtype=np.float64) if real else y, n, "the label"))
        if len(names) < 2:
            raise InputError(f"a label needs at least 2 different values; got only {names}: choose another label")
        items = np.arange(n)
        g = codes_of(one_per_item(items if groups is None else groups, n, "groups"))[0]
        constant = constant_inside(codes, g)
        if units is not None:
            u = codes_of(one_per_item(units, n, "units"))[0]
        else:
            u = g if constant else items
        if not constant_inside(codes, u):
            raise InputError("the label must be constant inside each unit: give the unit that carries one label")
        if blocks is not None:
            b = codes_of(one_per_item(blocks, n, "blocks"))[0]
            if units is None and not constant_inside(b, u):
                u = items
            if not constant_inside(b, u):
                raise InputError("each unit must lie in one block: give blocks that hold whole units")
        else:
            b = g if not constant and constant_inside(g, u) else np.zeros(n, dtype=np.int64)
        return cls(codes, tuple(names), real, g, u, b)

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.y)

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for a real label."""
        return 0 if self.real else len(self.names)

    @property
    def n_groups(self) -> int:
        """Number of cross-validation groups."""
        return int(self.groups.max()) + 1

    @property
    def n_units(self) -> int:
        """Number of units."""
        return int(self.units.max()) + 1

    @property
    def constant_in_groups(self) -> bool:
        """Tell whether the label is constant inside every group."""
        return constant_inside(self.y, self.groups)

    @property
    def unit_labels(self) -> Codes:
        """Label code of each unit, (units,)."""
        return _of_units(self.y, self.units)

    @property
    def unit_blocks(self) -> Codes:
        """Block of each unit, (units,)."""
        return _of_units(self.blocks, self.units)

    @property
    def counts(self) -> Codes:
        """Number of units by block and value, (blocks, values)."""
        out = np.zeros((int(self.blocks.max()) + 1, len(self.names)), dtype=np.int64)
        np.add.at(out, (self.unit_blocks, self.unit_labels), 1)
        return out

    @property
    def n_arrangements(self) -> int:
        """Number of different label vectors the exchange can give, renamings counted apart."""
        return prod(factorial(sum(row)) // prod(map(factorial, row)) for row in self.counts.tolist())

    @property
    def n_labelings(self) -> int:
        """Number of labelings a probe can tell apart; for a real label its mirror image counts once with it."""
        if self.real:
            return self.n_arrangements // (2 if self._mirrored() and self.n_arrangements > 1 else 1)
        columns = Counter(tuple(column) for column in self.counts.T.tolist())
        return self.n_arrangements // prod(factorial(m) for m in columns.values())

    @property
    def smallest_p(self) -> float:
        """Smallest p this design can give, 1 / n_labelings."""
        return 1 / self.n_labelings

    def refusal(self, level: float) -> str:
        """Return why no test at this level exists, as one sentence; "" when one does."""
        n = self.n_labelings
        if n == 1 and not self.real and (self.counts.sum(0) == 1).all():
            return (
                f"no permutation test exists: each of the {len(self.names)} classes has one unit only, so exchanging "
                "labels only renames classes and the label cannot be told apart from the unit that carries it; "
                "record at least 2 units (such as sessions) of each class"
            )
        if n == 1 and ((self.counts > 0).sum(1) == 1).all():
            return (
                "no permutation test exists: the label is constant inside every block, so exchanging it inside blocks "
                "changes nothing; exchange whole blocks instead (units = blocks) or test a label that varies inside"
            )
        if 1 / n > level:
            return (
                f"no test at {level:g} exists: this design has {n} distinct labelings, so the smallest attainable "
                f"p is {1 / n:.3g}; collect more units of each class"
            )
        return ""

    def arrangements(self, *, renamings: bool = False) -> Iterator[Codes]:
        """Yield the label codes of the units, one array (units,) for each distinct labelling, in a fixed order.

        Labelings that are renamings of one another come in one representative unless `renamings` asks for all; for a
        real label every arrangement comes.
        """
        order = np.argsort(self.unit_blocks, kind="stable")
        block = self.unit_blocks[order].tolist()
        left = self.counts.tolist()
        before = [-1] * len(self.names)  # the class that must be used before this one may be used first
        if not self.real and not renamings:
            last: dict[tuple[int, ...], int] = {}
            for k, column in enumerate(self.counts.T.tolist()):
                before[k] = last.get(tuple(column), -1)
                last[tuple(column)] = k
        used = [0] * len(self.names)
        chosen = np.zeros(self.n_units, dtype=np.int64)

        def place(position: int) -> Iterator[Codes]:
            if position == self.n_units:
                yield chosen.copy()
                return
            row = left[block[position]]
            for k in range(len(row)):
                if row[k] and (used[k] or before[k] < 0 or used[before[k]]):
                    row[k] -= 1
                    used[k] += 1
                    chosen[order[position]] = k
                    yield from place(position + 1)
                    row[k] += 1
                    used[k] -= 1

        yield from place(0)

    def _mirrored(self) -> bool:
        values = np.asarray(self.names, dtype=np.float64)
        centre = values[0] + values[-1]
        return bool(np.allclose(centre - values[::-1], values) and (self.counts == self.counts[:, ::-1]).all())


def _of_units(values: Codes, units: Codes) -> Codes:
    out = np.zeros(int(units.max()) + 1, dtype=np.int64)
    out[units] = values
    return out
