"""What `probe_layers` gives back: rows, null distributions, out-of-fold decisions, and what can be asked of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError, shorten
from probecore.probes.design import Design
from probecore.probes.intervals import Resampling
from probecore.probes.permutation import Labelings
from probecore.probes.scores import confusion
from probecore.probes.selection import select_layer
from probecore.probes.solvers import ProbeSpec
from probecore.results import Figure, Result, Row, plain
from probecore.splits import Folds
from probecore.stats.bootstrap import t_p_value, t_quantile

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeResult:
    """Rows, one per layer, and what they were made of.

    rows : flat records; None where a value does not exist, with the reason in `p_note`.
    notes : sentences a reader must know.
    design, folds, probe, labelings, resampling : how it was made; folds is None where no folds exist.
    null : statistic name -> (layers, labelings), column 0 observed: "accuracy", "balanced_accuracy", "margin", or
        "r2", "pearson", "margin" for a real label.
    oof : layer -> out-of-fold decisions (items,), positive for class 1, or (items, classes); a real label as z-score.
    resampled : (layers, resamples) accuracy or r2 of the refitted resamples, the same for all layers.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    design: Design = field(repr=False)
    folds: Folds | None = field(repr=False)
    probe: ProbeSpec
    layers: tuple[str, ...]
    labelings: Labelings | None = field(default=None, repr=False)
    resampling: Resampling | None = field(default=None, repr=False)
    null: Mapping[str, Floats] = field(default_factory=dict, repr=False)
    oof: Mapping[str, Floats] = field(default_factory=dict, repr=False)
    resampled: Floats = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    read: Callable[[str], NDArray[Any]] | None = field(default=None, repr=False)

    @property
    def score(self) -> str:
        """Name of the reported score: "accuracy" or "r2"."""
        return "r2" if self.design.real else "accuracy"

    def row(self, layer: str) -> Row:
        """Return the row of one layer."""
        return self.rows[self._index(layer)]

    def confusion(self, layer: str) -> NDArray[np.int64]:
        """Return out-of-fold counts (true class, predicted class), classes in the order of `design.names`."""
        if self.design.real or layer not in self.oof:
            raise InputError(
                f"there is no confusion matrix of {layer!r}: the label is a number or the layer has no probe"
            )
        return confusion(self.oof[layer], self.design.y, self.design.n_classes)

    def compare(self, first: str, second: str) -> Row:
        """Return the difference in score of two layers (first minus second) with interval and two-sided p.

        From the same resamples for both layers, refitted: t with the degrees of freedom of the clusters. Tests on
        out-of-fold answers (McNemar) reject equal layers in .17 to .51 of the cases at .05.
        """
        a, b = self._index(first), self._index(second)
        plan = self.resampling
        row: Row = {"first": first, "second": second, "score": self.score, "difference": None}
        row |= {"ci_low": None, "ci_high": None, "p_value": None, "p_note": ""}
        absent = [self.rows[i]["p_note"] for i in (a, b) if self.rows[i][self.score] is None]
        if absent or plan is None or not plan.method:
            return row | {"p_note": absent[0] if absent else plan.reason if plan else ""}
        difference = float(self.rows[a][self.score] - self.rows[b][self.score])
        error = plan.error(self.resampled[a] - self.resampled[b])
        half = t_quantile(plan.freedom) * error
        p = t_p_value(difference / error, plan.freedom) if error > 0 else float(difference == 0)
        end = float("inf") if self.design.real else 1.0  # a difference of two shares
        row |= {"difference": difference, "p_value": p}
        row |= {"ci_low": max(difference - half, -end), "ci_high": min(difference + half, end)}
        return row | {"n_clusters": len(plan.strata), "interval": plan.method}

    def best_layer(self) -> Row:
        """Return the best layer with the score of a nested choice, not the maximum over layers; probes are run again.

        The interval is that of the chosen layer around the nested score; p is the smallest adjusted p (max-T), which
        tests whether any layer carries the label. `chosen_in_folds` is the share of outer folds with the same choice.
        """
        alive = [i for i, row in enumerate(self.rows) if row[self.score] is not None]
        row: Row = {"layer": None, self.score: None, "ci_low": None, "ci_high": None, "chance": None, "p_value": None}
        if not alive or self.folds is None or self.read is None or self.resampling is None:
            return row | {"p_note": self.rows[0]["p_note"]}
        picked = select_layer([self.layers[i] for i in alive], self.read, self.design, self.folds, self.probe)
        best = alive[picked.best]
        low, high = self.resampling.interval(
            picked.score, self.resampled[best], share=not self.design.real, n_items=self.design.n_items
        )
        ps = [self.rows[i]["p_adjusted"] for i in alive if self.rows[i]["p_adjusted"] is not None]
        row |= {"layer": self.layers[best], self.score: picked.score, "ci_low": low, "ci_high": high}
        row |= {"chance": self.rows[best]["chance"], "p_value": min(ps, default=None)}
        row |= {"plain_maximum": float(picked.plain.max()), "n_layers": len(alive)}
        row |= {"chosen_in_folds": float(np.mean([layer == picked.best for layer in picked.chosen]))}
        fixed: Row = plain(row | {"n_items": self.design.n_items, "p_note": self.rows[best]["p_note"]})
        return fixed

    def to_result(
        self,
        kind: str,
        *,
        title: str = "",
        columns: Sequence[str] = (),
        notes: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> Result:
        """Return the rows as a `Result` with a picture of the score by layer."""
        score = self.score
        shown = ("layer", score, "ci_low", "ci_high", "chance", "selectivity", "p_value", "p_adjusted", "q_value")
        names = {"accuracy": "Accuracy", "r2": "R²"}
        figure = Figure(
            name=f"{score}_by_layer",
            chart="layer_profile",
            title=title or f"{names[score]} by layer",
            caption=(
                f"Cross-validated {score} of a {self.probe.kind} probe ({self.rows[0]['folds']}). The band is the .95 "
                "interval over resampled and refitted clusters; chance is the mean over exchanged labels."
            ),
            options={"y": score, "y_title": names[score]},
        )
        return Result(
            kind=kind,
            rows=self.rows,
            notes=(*self.notes, *notes),
            provenance=provenance or {},
            columns=tuple(columns) or (*shown, "n_items", "n_groups"),
            figures=(figure,),
            title=title,
        )

    def _index(self, layer: str) -> int:
        if layer not in self.layers:
            raise InputError(f"no layer {layer!r}; there are {shorten(self.layers)}")
        return self.layers.index(layer)
