"""All layers of one call of `probe_layers`: what they share, the scores of each, the rows they make together.

Decisions are stacked over folds (rows), see `scores`. A real label is solved for as a z-score: ridge follows any shift
and scale of its target, so that penalties and statistics do not depend on its units.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probecore.devices import device_of
from probecore.errors import InputError
from probecore.probes.design import Design
from probecore.probes.intervals import Resampling, class_scores, resampled_scores
from probecore.probes.permutation import Labelings
from probecore.probes.result import ProbeResult
from probecore.probes.scores import mean_auc, score
from probecore.probes.solvers import ProbeSpec, decide
from probecore.results import Row, plain
from probecore.splits import Folds
from probecore.stats.multiple import benjamini_hochberg
from probecore.stats.permutation import max_t, p_value

COLUMNS = 30_000_000
ROUNDING = 1e-13  # of mean margins; labels are of order 1, so less is no margin but the rounding of a zero
FEW_ITEMS = 128


class LayerRunner:
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
        with threads_for(self.design.n_items):
            # a copy: values may be read-only
            return self._scores(name, torch.tensor(values, dtype=torch.float64, device=self.device))

    def _scores(self, name: str, x: torch.Tensor) -> dict[str, Any]:
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
            "resampled": self._resampled(x, observed),
            **{
                field: torch.cat([getattr(part, field) for part in parts]).cpu().numpy()
                for field in ("value", "second", "margin")
            },
        }

    def _resampled(self, x: torch.Tensor, decisions: torch.Tensor) -> NDArray[np.float64]:
        if self.plan.method != "classes":
            return resampled_scores(x, self.design, self.folds, self.spec, self.plan)
        tested = self.rows.cpu().numpy()
        return class_scores(decisions.cpu().numpy(), self.design.y[tested], self.plan.clusters[tested])

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
        null["margin"] = np.where(np.abs(null["margin"]) < ROUNDING, 0.0, null["margin"])
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
            row["auc"] = mean_auc(layer["decisions"], design.y, self.folds.tests())
        if labelings.reason:
            shown = f"{nominal:.3g}" if design.real else f"1/{design.n_classes}"
            return row | {"p_note": f"{labelings.reason}. Chance is the nominal {shown}"}
        return row | {"selectivity": value - chance}

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


@contextmanager
def threads_for(n_items: int) -> Iterator[None]:
    """Run thousands of tiny factorisations on one thread: waking a second one for each costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if n_items <= FEW_ITEMS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
