"""Activations: what every analysis of the core takes, whatever the network was.

Conventions. An item is one thing that gets one prediction (a window of a clip, a prompt). `values(layer)` is an
array (items, features); all layers share items, groups and labels, and may differ in their number of features.
`groups` says what must be new at test (session, chapter, prompt family): the cross-validation group. A label
carries the unit it was assigned to and the block inside which it may be exchanged, because a permutation must
mirror how labels were assigned while folds mirror what is new at test.

>>> import numpy as np
>>> acts = Activations.from_arrays({"layer 0": np.zeros((4, 2))}, groups=["a", "a", "b", "b"],
...                                labels={"voice": Label(["x", "x", "y", "y"])})
>>> acts.layers, acts.n_items, acts.values("layer 0").shape, acts.n_groups
(('layer 0',), 4, (4, 2), 2)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError, shorten
from probecore.validation import finite_matrix, one_of, one_per_item

LabelKind = Literal["class", "real"]


@dataclass(frozen=True)
class Label:
    """One label per item and how it was assigned.

    values : (items,) class names or, for kind "real", numbers.
    units : (items,) or None, the unit that carries one value (clip, session, speaker, prompt); None lets the
        design derive it (rows, or the coarsest given grouping inside which the label is constant).
    blocks : (items,) or None, inside which units may be exchanged; None lets the design derive it.
    """

    values: NDArray[Any]
    units: NDArray[Any] | None = None
    blocks: NDArray[Any] | None = None
    kind: LabelKind = "class"

    def __init__(
        self,
        values: ArrayLike,
        units: ArrayLike | None = None,
        blocks: ArrayLike | None = None,
        kind: LabelKind = "class",
    ) -> None:
        n = len(np.asarray(values))
        object.__setattr__(self, "values", _frozen(one_per_item(values, n, "a label")))
        object.__setattr__(self, "units", None if units is None else _frozen(one_per_item(units, n, "units")))
        object.__setattr__(self, "blocks", None if blocks is None else _frozen(one_per_item(blocks, n, "blocks")))
        object.__setattr__(self, "kind", one_of(kind, ("class", "real"), "the kind of a label"))

    def take(self, items: NDArray[Any]) -> "Label":
        """Return the label of some items (indices or a boolean mask)."""
        units = None if self.units is None else self.units[items]
        blocks = None if self.blocks is None else self.blocks[items]
        return Label(self.values[items], units, blocks, self.kind)


@dataclass(frozen=True)
class Activations:
    """Layers x items x features with groups and labels; values may be read layer by layer.

    read : layer name -> (items, features) array.
    groups : (items,) the cross-validation group of each item.
    labels : named labels of the items.
    items : (items,) name of each item, for messages and results.
    rate_hz : frames per second where time matters, else None.
    info : facts that travel with the values (representation, codec or model, certificate), JSON types only.
    """

    layers: tuple[str, ...]
    read: Callable[[str], NDArray[Any]] = field(repr=False)
    groups: NDArray[Any] = field(repr=False)
    labels: Mapping[str, Label] = field(repr=False)
    items: tuple[str, ...] = field(repr=False)
    rate_hz: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_arrays(
        cls,
        values: Mapping[str, ArrayLike] | ArrayLike,
        groups: ArrayLike,
        labels: Mapping[str, Label],
        items: Sequence[str] | None = None,
        rate_hz: float | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> "Activations":
        """Build from arrays in memory: a mapping of layer name to (items, features), or (layers, items, features).

        Raises `InputError` for non-finite values, unequal lengths, missing groups or labels.
        """
        if not isinstance(values, Mapping):
            stack = np.asarray(values)
            if stack.ndim != 3:
                raise InputError(f"values must have shape (layers, items, features); got {stack.shape}")
            values = {f"layer {i}": layer for i, layer in enumerate(stack)}
        if not values:
            raise InputError("activations need at least 1 layer; got none")
        arrays = {name: _frozen(finite_matrix(array, name)) for name, array in values.items()}
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1:
            raise InputError(f"all layers must hold the same items; got lengths {shorten(sorted(lengths))}")
        n = lengths.pop()
        names = tuple(items) if items is not None else tuple(f"item {i}" for i in range(n))
        if len(names) != n:
            raise InputError(f"items must name each of the {n} items; got {len(names)} names")
        for name, label in labels.items():
            if len(label.values) != n:
                raise InputError(f"label {name!r} must have {n} values; got {len(label.values)}")
        checked = _frozen(one_per_item(groups, n, "groups"))
        return cls(tuple(arrays), arrays.__getitem__, checked, dict(labels), names, rate_hz, dict(info or {}))

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.groups)

    @property
    def n_groups(self) -> int:
        """Number of cross-validation groups."""
        return len(np.unique(self.groups))

    def values(self, layer: str) -> NDArray[Any]:
        """Return the features of one layer, (items, features)."""
        if layer not in self.layers:
            raise InputError(f"no layer {layer!r}; there are {shorten(self.layers)}")
        return self.read(layer)

    def label(self, name: str) -> Label:
        """Return one label by name."""
        if name not in self.labels:
            raise InputError(f"no label {name!r}; there are {shorten(sorted(self.labels)) or 'none'}")
        return self.labels[name]

    def take(self, items: NDArray[Any]) -> "Activations":
        """Return the activations of some items (indices or a boolean mask)."""
        index = np.arange(self.n_items)[items]
        return replace(
            self,
            read=lambda layer: self.read(layer)[index],
            groups=self.groups[index],
            labels={name: label.take(index) for name, label in self.labels.items()},
            items=tuple(self.items[i] for i in index),
        )


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
