"""What `lmprobe probe` prints and saves: the table, its notes, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmprobe.probe_design import LabelDesign
from probecore.results import Figure, Result, Row

COLUMNS = (
    "model", "kind", "layer", "value", "ci_low", "ci_high", "chance", "p_value", "p_adjusted", "control_name", "gain",
    "gain_low", "gain_high", "gain_p_adjusted", "n_items", "n_groups",
)  # fmt: skip


def probe_result(
    rows: Sequence[Row], tables: Mapping[str, Sequence[Row]], notes: Sequence[str], made: Mapping[str, Any],
    design: LabelDesign, *, label: str, at: str, names: Sequence[str], kept: bool,
) -> Result:  # fmt: skip
    """Put the rows of all models together."""
    metric = "R2" if design.real else "accuracy"
    title = "R²" if design.real else "Accuracy"
    profile = [row for row in rows if row["kind"] == "layer"]
    levels = _levels([row for row in rows if row["kind"] == "control"])
    whole = {**tables, "profile": [*profile, *levels]}
    figures = [
        Figure(
            "probe_by_layer", "layer_profile", "profile", f"{label} by layer, states at {at!r}",
            f"Cross-validated {metric} on {_new(design)} the probe has not seen; dashed: chance, the mean over "
            "exchanged labels. Dotted: what length, words and template alone give. The band is the .95 interval over "
            "resampled and refitted groups.",
            {"y": "value", "series": "model", "y_title": f"{label}: {title}"},
        ),
        Figure(
            "gain_by_layer", "layer_profile", "gain", f"{label}: gain over the best control, by layer",
            "Score of the layer less that of the best control (length, words, template, random weights of the same "
            "layer). Below 0: the states tell less than the control. The band is the .95 interval of the difference.",
            {"y": "gain", "low": "gain_low", "high": "gain_high", "series": "model", "chance": None,
             "p": "gain_p_adjusted", "y_title": "Gain", "zero": True},
        ),
    ]  # fmt: skip
    whole["gain"] = [row for row in profile if row["gain"] is not None]
    if whole.get("confusion"):
        figures.append(
            Figure(
                "confusion", "heatmap", "confusion", f"Which {label} is taken for which",
                "Out-of-fold answers of the chosen layer, as shares of each true class.",
                {"x": "predicted", "y": "true", "value": "share", "facet": "model", "x_title": "Predicted",
                 "y_title": "True", "value_title": "Share"},
            )
        )  # fmt: skip
    figures = [figure for figure in figures if whole[figure.table]]
    return Result(
        kind="probe",
        title=f"{label} by layer: {', '.join(names)}, states at {at!r}",
        rows=tuple(rows),
        columns=tuple(name for name in COLUMNS if any(row.get(name) is not None for row in rows)),
        notes=(*notes, *_reading(rows, design, metric, kept)),
        provenance=made,
        tables={name: tuple(records) for name, records in whole.items() if records},
        figures=tuple(figures),
    )


def _levels(controls: Sequence[Row]) -> list[Row]:
    """Return controls as levels without a layer, once where they are the same for all models."""
    values: dict[str, set[float | None]] = {}
    for row in controls:
        values.setdefault(row["layer"], set()).add(row["value"])
    found: dict[str, Row] = {}
    for row in controls:
        name = row["layer"] if len(values[row["layer"]]) == 1 else f"{row['layer']} ({row['model']})"
        found.setdefault(name, {**row, "model": name, "layer": None})
    return list(found.values())


def _new(design: LabelDesign) -> str:
    return {"family": "families", "near-duplicates": "clusters of near-duplicates", "prompt": "prompts"}[
        design.grouping
    ]


def _reading(rows: Sequence[Row], design: LabelDesign, metric: str, kept: bool) -> list[str]:
    tested = [row for row in rows if row["kind"] == "layer" and row.get("p_value") is not None]
    notes = [
        f"value is cross-validated {metric} ({rows[0].get('folds')}); the gain is over the best control, with interval "
        "and p (Holm over layers) from refitted resamples; best layer is a choice inside the folds, without the "
        "optimism of a maximum",
    ]
    if tested:
        notes.append(
            f"p: {tested[0]['n_permutations']} exchanges of labels, smallest possible p {tested[0]['smallest_p']:.2g}; "
            "adjusted over the layers of a model (max-T); it tests whether the label can be read off at all, which "
            "words alone may do: read the gain"
        )
    notes.append("a probe says what can be read off linearly, not what the model uses")
    if kept and not design.real:
        notes.append("directions are in the folder directions, a file per layer that --direction takes")
    return notes
