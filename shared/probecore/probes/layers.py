"""One call from activations and a label to a table one would publish: a row per layer with interval, chance and p.

What is done, for every layer alike: cross-validated probes for the observed and all exchanged labelings at once
(`solvers`), accuracy reported and mean margin tested (`scores`), p over all layers by step-down max-T, q by Benjamini
and Hochberg, an interval from resampled and refitted clusters (`intervals`). The labelings, folds and resamples are the
same for all layers, so that layers can be compared. Layers are read one at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probecore.activations import Activations, Label
from probecore.devices import device_of
from probecore.errors import DesignError, InputError
from probecore.probes.design import Design
from probecore.probes.intervals import Resampling, plan_resampling, resampled_scores
from probecore.probes.permutation import ENUMERATE_UP_TO, Labelings, draw_labelings
from probecore.probes.result import ProbeResult
from probecore.probes.scores import mean_auc, score
from probecore.probes.solvers import ProbeSpec, decide
from probecore.results import Row, plain
from probecore.splits import (
    Folds,
    check_training_classes,
    group_folds,
    item_folds,
    leave_one_group_out,
    leave_one_group_per_class_out,
    stratified_folds,
)
from probecore.stats.multiple import benjamini_hochberg
from probecore.stats.permutation import max_t, p_value
from probecore.validation import at_least, one_of, one_per_item

Layers = Mapping[str, ArrayLike] | Sequence[ArrayLike] | NDArray[Any]
FOLDS = ("auto", "group", "leave-one-group-out", "lpgo", "item", "stratified")
MOST_GROUPS_LPGO = 30
MOST_GROUPS_ONE_OUT = 40
COLUMNS = 30_000_000


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
        "auto": leave one group per class out for two classes that are constant inside at most 30 groups, leave one
        group out for more classes (at most 40 groups) or fewer than 5 groups, otherwise 5 label-blind group folds.
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
        split = folds if isinstance(folds, Folds) else choose_folds(design, folds, seed)
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
    runner = _Runner(design, split, spec, labelings, plan, device)
    done = []
    for i, name in enumerate(layers):
        done.append(runner.layer(name, read(name)))
        if progress is not None:
            progress(i + 1, len(layers))
    return runner.result(layers, done, tuple(notes), read)


def choose_folds(design: Design, folds: str, seed: int = 0) -> Folds:
    """Return the folds of a scheme by name; "auto" by the rule of `probe_layers`."""
    one_of(folds, FOLDS, "folds")
    groups, n = design.groups, design.n_groups
    if folds == "auto":
        constant = design.constant_in_groups and not design.real
        if constant and design.n_classes == 2 and n <= MOST_GROUPS_LPGO:
            folds = "lpgo"
        elif n < 5 or (constant and design.n_classes > 2 and n <= MOST_GROUPS_ONE_OUT):
            folds = "leave-one-group-out"
        else:
            folds = "group"
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


class _Runner:
    """All layers of one call: the labelings, folds and resamples they share."""

    def __init__(
        self,
        design: Design,
        folds: Folds,
        spec: ProbeSpec,
        labelings: Labelings,
        plan: Resampling,
        device: str,
    ) -> None:
        self.design, self.folds, self.spec, self.labelings, self.plan = design, folds, spec, labelings, plan
        self.device = device_of(device)
        values = labelings.values
        if design.real:  # solve for z-scores: ridge follows any shift and scale of its target
            values = (values - values[:, 0].mean()) / values[:, 0].std()
        self.labels = torch.as_tensor(values, device=self.device)
        self.rows = torch.as_tensor(np.concatenate(folds.tests()), device=self.device)
        self.sizes = torch.as_tensor([len(test) for test in folds.tests()], device=self.device)
        self.groups = torch.as_tensor(design.groups, device=self.device)

    def layer(self, name: str, values: NDArray[Any]) -> dict[str, Any]:
        """Return the scores of one layer, or the reason why it has none."""
        reason = _dead(values, self.design.n_items)
        if reason:
            return {"layer": name, "reason": reason}
        x = torch.tensor(values, dtype=torch.float64, device=self.device)  # a copy: values may be read-only
        parts, observed = [], torch.empty(0)
        for columns in self._chunks():
            labels = self.labels[:, columns]
            pieces = decide(self.spec, x, self.folds.pairs, labels, self.design.n_classes, self.groups)
            decisions = torch.cat(pieces)
            weights = self._weights(labels) if self.folds.by_class else None
            parts.append(score(decisions, labels[self.rows], self.design.n_classes, weights))
            if columns.start == 0:
                observed = decisions[:, 0]
        return {
            "layer": name,
            "reason": "",
            "decisions": observed.cpu().numpy(),
            "resampled": resampled_scores(x, self.design, self.folds, self.spec, self.plan),
            **{
                field: torch.cat([getattr(part, field) for part in parts]).cpu().numpy()
                for field in ("value", "second", "margin")
            },
        }

    def result(
        self,
        layers: tuple[str, ...],
        done: list[dict[str, Any]],
        notes: tuple[str, ...],
        read: Callable[[str], NDArray[Any]],
    ) -> ProbeResult:
        """Put the layers together: p-values over all of them, rows, null distributions, out-of-fold decisions."""
        width = self.labels.shape[1]
        null = {
            field: np.stack([layer.get(field, np.full(width, np.nan)) for layer in done])
            for field in ("value", "second", "margin")
        }
        tested = not self.labelings.reason
        p = p_value(null["margin"]) if tested else np.full(len(done), np.nan)
        adjusted = max_t(null["margin"]) if tested else p
        q = benjamini_hochberg(p)
        rows = [plain(self._row(layer, p[i], adjusted[i], q[i])) for i, layer in enumerate(done)]
        n_resamples = max((len(layer.get("resampled", ())) for layer in done), default=0)
        return ProbeResult(
            rows=tuple(rows),
            notes=notes,
            design=self.design,
            folds=self.folds,
            probe=self.spec,
            layers=layers,
            labelings=self.labelings,
            resampling=self.plan,
            null={_names(self.design.real)[field]: values for field, values in null.items()},
            oof={layer["layer"]: self._out_of_fold(layer["decisions"]) for layer in done if not layer["reason"]},
            resampled=np.stack([layer.get("resampled", np.full(n_resamples, np.nan)) for layer in done]),
            read=read,
        )

    def _row(self, layer: dict[str, Any], p: float, adjusted: float, q: float) -> Row:
        design, labelings = self.design, self.labelings
        row = empty_row(layer["layer"], design, self.folds.scheme)
        row |= {"n_permutations": labelings.n_others, "smallest_p": _smallest_p(design, labelings)}
        if layer["reason"]:
            return row | {"p_note": layer["reason"]}
        names = _names(design.real)
        value = float(layer["value"][0])
        low, high = self.plan.interval(value, layer["resampled"], share=not design.real, n_items=design.n_items)
        nominal = 0.0 if design.real else 1 / design.n_classes
        chance = float(layer["value"][1:].mean()) if labelings.n_others else nominal
        row |= {names[field]: float(layer[field][0]) for field in ("value", "second", "margin")}
        row |= {"ci_low": low, "ci_high": high, "interval": self.plan.method, "chance": chance}
        row |= {"p_value": p, "p_adjusted": adjusted, "q_value": q}
        if design.n_classes == 2:
            row["auc"] = self._auc(layer["decisions"])
        if labelings.reason:
            shown = f"{nominal:.3g}" if design.real else f"1/{design.n_classes}"
            return row | {"p_note": f"{labelings.reason}. Chance is the nominal {shown}"}
        return row | {"selectivity": value - chance}

    def _auc(self, decisions: NDArray[np.float64]) -> float:
        tests, y = self.folds.tests(), self.design.y
        return mean_auc(decisions, y, tests)

    def _out_of_fold(self, decisions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the decision of each item, averaged over the test sets that count for the observed labels."""
        rows = self.rows.cpu().numpy()
        counted = np.ones(len(rows))
        if self.folds.by_class:
            counted = self._weights(self.labels[:, :1])[:, 0].cpu().numpy()
        total = np.zeros((self.design.n_items, *decisions.shape[1:]))
        times = np.zeros(self.design.n_items)
        np.add.at(times, rows, counted)
        np.add.at(total, rows, np.where(counted.reshape(-1, *[1] * (decisions.ndim - 1)) > 0, decisions, 0.0))
        return total / np.maximum(times, 1).reshape(-1, *[1] * (decisions.ndim - 1))

    def _weights(self, labels: torch.Tensor) -> torch.Tensor:
        """Return 1 where a test set holds one group of each class of the labelling, (rows, labelings)."""
        kept = []
        for _, test in self.folds.pairs:
            inside = self.design.groups[test]
            first = [int(test[np.flatnonzero(inside == group)[0]]) for group in np.unique(inside)]
            classes = labels[first].sort(0).values
            kept.append((classes.diff(dim=0) != 0).all(0))
        return torch.stack(kept).to(torch.float64).repeat_interleave(self.sizes, 0)

    def _chunks(self) -> Iterator[slice]:
        columns = max(1, self.design.n_classes if self.design.n_classes > 2 else 1)
        step = max(1, COLUMNS // (len(self.rows) * columns))
        for start in range(0, self.labels.shape[1], step):
            yield slice(start, start + step)


def empty_row(layer: str | None, design: Design, scheme: str) -> Row:
    """Return a row of a result with everything that does not depend on the layer, and NaN elsewhere."""
    missing = float("nan")
    first, second, margin = (_names(design.real)[field] for field in ("value", "second", "margin"))
    row: Row = {"layer": layer, first: missing, second: missing, "ci_low": missing, "ci_high": missing}
    row |= {"chance": missing, "nominal_chance": 0.0 if design.real else 1 / design.n_classes, margin: missing}
    row |= {"auc": missing} if design.n_classes == 2 else {}
    row |= {"p_value": missing, "p_adjusted": missing, "q_value": missing, "selectivity": missing}
    row |= {"smallest_p": missing, "n_permutations": 0, "n_items": design.n_items, "n_groups": design.n_groups}
    return row | {"n_classes": design.n_classes, "folds": scheme, "interval": "", "p_note": ""}


def _refused(layers: tuple[str, ...], design: Design, spec: ProbeSpec, reason: str) -> ProbeResult:
    rows = tuple(plain(empty_row(name, design, "none") | {"p_note": reason}) for name in layers)
    return ProbeResult(rows, (reason,), design, None, spec, layers)


def _exchange_inside(design: Design, folds: Folds) -> Design:
    fold = folds.fold_of(design.n_items)
    both = design.blocks * len(folds) + fold
    return Design.of(np.asarray(design.names)[design.y], design.groups, design.units, both, real=design.real)


def _smallest_p(design: Design, labelings: Labelings) -> float:
    return max(design.smallest_p, 0.0 if labelings.exhaustive or labelings.reason else 1 / (labelings.n_others + 1))


def _names(real: bool) -> dict[str, str]:
    first, second = ("r2", "pearson") if real else ("accuracy", "balanced_accuracy")
    return {"value": first, "second": second, "margin": "margin"}


def _dead(values: NDArray[Any], n_items: int) -> str:
    """Return why a layer cannot be probed, "" if it can; raises `InputError` for a wrong shape."""
    if values.ndim != 2 or len(values) != n_items:
        raise InputError(f"a layer must have shape ({n_items}, features); got {values.shape}")
    bad = int((~np.isfinite(values).all(1)).sum())
    if bad:
        return f"the layer holds NaN or infinity in {bad} of {n_items} items"
    if not values.shape[1] or bool((values == values[:1]).all()):
        return "the layer is dead: every feature is constant over items"
    return ""


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
