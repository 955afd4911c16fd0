"""One call from activations and a label to a table one would publish: a row per layer with interval, chance and p.

What is done, for every layer alike: cross-validated probes for the observed and all exchanged labelings at once
(`solvers`), accuracy reported and mean margin tested (`scores`), p over all layers by step-down max-T, q by Benjamini
and Hochberg, an interval from resampled and refitted clusters (`intervals`). The labelings, folds and resamples are the
same for all layers, so that layers can be compared. Layers are read one at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.activations import Activations, Label
from probecore.errors import DesignError, InputError
from probecore.probes.design import Design
from probecore.probes.intervals import plan_resampling
from probecore.probes.permutation import ENUMERATE_UP_TO, draw_labelings
from probecore.probes.result import ProbeResult
from probecore.probes.runner import LayerRunner, empty_row
from probecore.probes.solvers import ProbeSpec
from probecore.results import plain
from probecore.splits import (
    Folds,
    check_training_classes,
    group_folds,
    item_folds,
    leave_one_group_out,
    leave_one_group_per_class_out,
    stratified_folds,
)
from probecore.validation import at_least, constant_inside, one_of, one_per_item

Layers = Mapping[str, ArrayLike] | Sequence[ArrayLike] | NDArray[Any]
FOLDS = ("auto", "group", "leave-one-group-out", "lpgo", "item", "stratified")
MOST_GROUPS_LPGO = 30


def probe_layers(
    activations: Activations | Layers,
    label: str | Label | ArrayLike,
    *,
    groups: ArrayLike | None = None,
    units: ArrayLike | None = None,
    blocks: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    probe: str | ProbeSpec = "ridge",
    folds: str | Folds = "auto",
    n_permutations: int = 999,
    n_bootstrap: int = 200,
    standardize: str = "fold",
    alpha: float | str = "trace",
    alpha_level: float = 0.05,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Probe every layer for one label; return a row per layer with its interval, chance level and p-value.

    Parameters
    ----------
    activations
        `Activations`, or arrays (items, features): a mapping by layer name, a sequence, or (layers, items, features).
    label
        Name of a label of the activations, a `Label`, or (items,) values. A `Label` of kind "real", and bare floats
        that are not whole numbers, are regressed on; everything else is a class.
    groups, units, blocks
        (items,): what must be new at test, what carries one label, inside which units may be exchanged. By default
        those of the activations and the label; `Design` says what is derived from the rest.
    clusters
        (items,): what was sampled and is resampled for intervals (speakers); by default the groups.
    probe
        "ridge", "nested-ridge", "lda", "logistic" or a `ProbeSpec` (then `standardize` and `alpha` are its own).
    folds
        "auto": leave one group per class out for two classes that are constant inside at most 30 groups; for more
        classes one group of each class per fold, at most 5 folds ("stratified"; leave one group out where that
        confines the exchange too much for a test); otherwise 5 label-blind group folds, one per group below 5.
        By name: "group", "leave-one-group-out", "lpgo", "item" (leaks groups, named so in the result), "stratified"
        (made from the labels: exchange is confined to folds). Or `Folds`.
    n_permutations
        Random labelings; up to 10,000 distinct ones are enumerated instead (ridge).
    n_bootstrap
        Resamples of clusters for intervals; 0 for none.
    alpha_level
        Level at which a design without a possible test is refused (p_value None and the reason in p_note).
    progress
        Called with (layers done, layers in all).

    Raises `InputError` for labels, groups or arrays of unequal length, `DesignError` for stratified folds with a
    free exchange. A design that cannot be cross-validated or tested, a dead layer, gives rows without those values and
    the reason in `p_note`.
    """
    layers, read, n_items, found = _open(activations, label)
    values, real = found.values, found.kind == "real"
    if groups is None and isinstance(activations, Activations):
        groups = activations.groups
    design = Design.of(
        values,
        groups,
        found.units if units is None else units,
        found.blocks if blocks is None else blocks,
        real=real,
    )
    if design.n_items != n_items:
        raise InputError(f"the label must have one value per item, {n_items}; got {design.n_items}")
    at_least(n_permutations, 0, "n_permutations")
    at_least(n_bootstrap, 0, "n_bootstrap")
    spec = probe if isinstance(probe, ProbeSpec) else ProbeSpec(probe, alpha, standardize)
    one_cluster = None if clusters is None else one_per_item(clusters, n_items, "clusters")
    notes: list[str] = []
    try:
        split = folds if isinstance(folds, Folds) else choose_folds(design, folds, seed, alpha_level)
        missing = check_training_classes(split, design.y, design.names) if not real else ""
    except DesignError as error:
        return _refused(layers, design, spec, str(error))
    notes += [missing] if missing else []
    if split.stratified and not isinstance(folds, Folds):
        design = _exchange_inside(design, split)
    if split.leaky:
        notes.append("items of one group are in train and test: accuracy says nothing about new groups")
    labelings = draw_labelings(
        design,
        n_permutations,
        level=alpha_level,
        seed=seed,
        folds=split,
        enumerate_up_to=ENUMERATE_UP_TO if spec.kind == "ridge" else n_permutations,
    )
    plan = plan_resampling(design, split, one_cluster, spec, n_bootstrap, seed)
    notes += [plan.reason] if plan.reason and n_bootstrap else []
    runner = LayerRunner(design, split, spec, labelings, plan, device)
    done = []
    for i, name in enumerate(layers):
        done.append(runner.layer(name, read(name)))
        if progress is not None:
            progress(i + 1, len(layers))
    return runner.result(layers, done, tuple(notes), read)


def choose_folds(design: Design, folds: str, seed: int = 0, level: float = 0.05) -> Folds:
    """Return the folds of a scheme by name; "auto" by the rule of `probe_layers`.

    For more than two classes that are constant inside groups (speakers and their sessions), leaving one group out thins
    just the class that is tested: without an effect accuracy is near 0 instead of 1 / classes, with an effect a third
    lower. Folds that hold a group of each class do not, at the same power of the margin.
    """
    one_of(folds, FOLDS, "folds")
    groups, n = design.groups, design.n_groups
    if folds == "auto":
        constant = design.constant_in_groups and not design.real
        if constant and design.n_classes == 2 and n <= MOST_GROUPS_LPGO:
            folds = "lpgo"
        elif constant and design.n_classes > 2:
            of_group = np.zeros(n, dtype=np.int64)
            of_group[groups] = design.y
            most = int(np.bincount(of_group).max())
            dealt = stratified_folds(design.y, groups, min(max(most, 2), 5), seed=seed)
            if constant_inside(dealt.fold_of(design.n_items), design.units):  # a unit is exchanged inside its fold
                if design.refusal(level) or not _exchange_inside(design, dealt).refusal(level):
                    return dealt
            folds = "leave-one-group-out"
        else:
            folds = "group" if n >= 5 else "leave-one-group-out"
    if folds == "lpgo":
        if design.real or not design.constant_in_groups:
            raise DesignError("leaving one group per class out needs a class that is constant inside each group")
        confined = design.blocks if len(np.unique(design.blocks)) > 1 else None
        return leave_one_group_per_class_out(groups, design.n_classes, confined)
    if folds == "leave-one-group-out":
        return leave_one_group_out(groups)
    if folds == "item":
        return item_folds(design.n_items, min(5, design.n_items), seed=seed)
    if folds == "stratified":
        return stratified_folds(design.y, groups if design.constant_in_groups else None, 5, seed=seed)
    return group_folds(groups, min(5, n))


def _refused(layers: tuple[str, ...], design: Design, spec: ProbeSpec, reason: str) -> ProbeResult:
    rows = tuple(plain(empty_row(name, design, "none") | {"p_note": reason}) for name in layers)
    return ProbeResult(rows, (reason,), design, None, spec, layers)


def _exchange_inside(design: Design, folds: Folds) -> Design:
    fold = folds.fold_of(design.n_items)
    both = design.blocks * len(folds) + fold
    return Design.of(np.asarray(design.names)[design.y], design.groups, design.units, both, real=design.real)


def _open(
    activations: Activations | Layers, label: str | Label | ArrayLike
) -> tuple[tuple[str, ...], Callable[[str], NDArray[Any]], int, Label]:
    if isinstance(activations, Activations):
        found = activations.label(label) if isinstance(label, str) else _label(label)
        return activations.layers, activations.values, activations.n_items, found
    if isinstance(label, str):
        raise InputError(f"label {label!r} is a name, but arrays carry no labels: give the values, one per item")
    if isinstance(activations, Mapping):
        arrays = {str(name): np.asarray(layer) for name, layer in activations.items()}
    else:
        stack = [activations] if isinstance(activations, np.ndarray) and activations.ndim == 2 else activations
        arrays = {f"layer {i}": np.asarray(layer) for i, layer in enumerate(stack)}
    if not arrays:
        raise InputError("activations need at least 1 layer; got none")
    n_items = len(next(iter(arrays.values())))
    return tuple(arrays), arrays.__getitem__, n_items, _label(label)


def _label(values: Label | ArrayLike) -> Label:
    """Return values as a label: real where they are floats and not all whole numbers."""
    if isinstance(values, Label):
        return values
    array = np.asarray(values)
    return Label(array, kind="real" if array.dtype.kind == "f" and bool((array % 1 != 0).any()) else "class")
