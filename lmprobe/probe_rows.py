"""The rows of a probed label: layers with their gain over controls, random weights, the nested choice of a layer.

Conventions. Layers, controls and random weights were probed with the same folds and the same resamples, so that any two
of them can be compared by the difference of their refitted scores. Each of the three is a family of its own in max-T.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from probecore.errors import DesignError
from probecore.probes.result import ProbeResult
from probecore.results import Row
from probecore.stats.multiple import holm

RANDOM = "random weights"


class ProbeRows:
    """The rows of one model: layers with their gain, controls, random weights, the nested choice of a layer."""

    def __init__(self, layers: ProbeResult, controls: ProbeResult, blank: ProbeResult | None) -> None:
        self.layers, self.controls, self.blank = layers, controls, blank
        self.score = layers.score
        everything = [layers, controls, *([blank] if blank is not None else [])]
        self.together = replace(
            layers,
            rows=tuple(row for each in everything for row in _named(each, blank)),
            layers=tuple(str(row["layer"]) for each in everything for row in _named(each, blank)),
            resampled=np.concatenate([each.resampled for each in everything]),
        )
        self.notes = tuple(dict.fromkeys(note for each in (layers, controls) for note in each.notes))
        self.rows = [*self._layers(), self._choice(), *self._others()]

    @property
    def best(self) -> str:
        """The layer that the nested choice takes, else the one of highest score."""
        chosen = [row["layer"] for row in self.rows if row["kind"] == "best layer" and row["layer"] is not None]
        scored = [row for row in self.layers.rows if row[self.score] is not None]
        highest = max(scored, key=lambda row: float(row[self.score]), default=self.layers.rows[-1])
        return str(chosen[0] if chosen else highest["layer"])

    def confusion(self) -> list[Row]:
        """Return out-of-fold counts of the best layer as shares of each true class."""
        if self.best not in self.layers.oof:
            return []
        counts = self.layers.confusion(self.best)
        names = [str(name) for name in self.layers.design.names]
        return [
            {"layer": self.best, "true": names[i], "predicted": names[j], "n": int(n),
             "share": float(n) / max(1, int(counts[i].sum()))}
            for i, row in enumerate(counts) for j, n in enumerate(row)
        ]  # fmt: skip

    def _layers(self) -> list[Row]:
        rows = [self._row("layer", row) | self._gain(row) for row in self.layers.rows]
        tested = [i for i, row in enumerate(rows) if row["gain_p_value"] is not None]
        adjusted = holm([rows[i]["gain_p_value"] for i in tested])
        for i, p in zip(tested, adjusted, strict=True):
            rows[i]["gain_p_adjusted"] = float(p)
        return rows

    def _gain(self, row: Row) -> Row:
        """Return the difference to the best control of a layer's row."""
        names = [str(r["layer"]) for r in self.controls.rows]
        names += [f"{RANDOM}, {row['layer']}"] if self.blank is not None else []
        scored = [n for n in names if self.together.row(n)[self.score] is not None]
        empty: Row = {"control": None, "control_name": None, "gain": None, "gain_low": None, "gain_high": None,
                      "gain_p_value": None, "gain_p_adjusted": None}  # fmt: skip
        if not scored or row[self.score] is None:
            return empty
        best = max(scored, key=lambda n: float(self.together.row(n)[self.score]))
        step = self.together.compare(str(row["layer"]), best)
        return {
            **empty, "control": self.together.row(best)[self.score], "control_name": best,
            "gain": row[self.score] - self.together.row(best)[self.score], "gain_low": step["ci_low"],
            "gain_high": step["ci_high"], "gain_p_value": step["p_value"],
        }  # fmt: skip

    def _choice(self) -> Row:
        try:
            found = self.layers.best_layer()
        except DesignError as error:
            return self._row("best layer", {"layer": None, "p_note": f"no nested choice of a layer: {error}"})
        return self._row("best layer", found | {"p_adjusted": found.get("p_value")})

    def _others(self) -> list[Row]:
        rows = [self._row("control", row) for row in self.controls.rows]
        if self.blank is not None:
            rows += [self._row(RANDOM, row) | {"detail": True} for row in self.blank.rows]
        return rows

    def _row(self, kind: str, row: Row) -> Row:
        note = row.get("p_note") or ""
        kept = {k: v for k, v in row.items() if k not in ("p_note", "layer", self.score, "selectivity")}
        metric = {"accuracy": "accuracy", "r2": "R2"}[self.score]
        return {
            "kind": kind, "layer": row["layer"], "metric": metric, "value": row.get(self.score), **kept,
            **({"p_note": note} if note else {}), "detail": False,
        }  # fmt: skip


def _named(result: ProbeResult, blank: ProbeResult | None) -> list[Row]:
    if result is not blank:
        return list(result.rows)
    return [{**row, "layer": f"{RANDOM}, {row['layer']}"} for row in result.rows]
