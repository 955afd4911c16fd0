"""What the figures of a layer ablation are drawn from, and how to read them.

Damage puts measures of all units on one scale: 0 is the decode of all layers, 1 is as far from it as the clip of
another speaker is (voice, words and pitch all different).
"""

from collections.abc import Sequence

from codecprobe.ablation_bench import CEILING, FLOOR
from probecore.results import Figure, Row

MOST_DAMAGE = 2.0
SHARES = ("speaker accuracy", "phone accuracy", "codes kept")


def damage_table(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return a record per kind, set and measure: (value - unablated) / (another speaker's clip - unablated).

    Cut at `MOST_DAMAGE`, so that one wild measure does not bleach the colours of all others; None where the other
    speaker's clip is no further away than the clip itself.
    """
    floor = {row["metric"]: row for row in rows if row["kind"] == FLOOR}
    records: list[Row] = []
    for row in rows:
        if row["kind"] in (FLOOR, CEILING) or ", layer" in row["metric"]:
            continue
        there = floor[row["metric"]]
        reach = None if there["value"] is None else there["value"] - there["unablated_value"]
        share = (row["value"] - row["unablated_value"]) / reach if reach and abs(reach) > 1e-9 else None
        records.append(
            {
                "kind": row["kind"],
                "layers": row["layers"],
                "metric": row["metric"].partition(" (")[0],
                "damage": None if share is None else min(share, MOST_DAMAGE),
            }
        )
    return tuple(records)


def loss_tables(rows: Sequence[Row]) -> dict[str, tuple[Row, ...]]:
    """Return for each kind of edit the change of the measures that are shares, beside that of its random control."""
    tables: dict[str, tuple[Row, ...]] = {}
    for kind in dict.fromkeys(row["kind"] for row in rows if row["kind"] not in (FLOOR, CEILING)):
        own = [row for row in rows if row["kind"] == kind and row["metric"] in SHARES]
        records: list[Row] = []
        for row in own:
            at = {"layers": row["layers"], "metric": row["metric"]}
            change = {"change": row["effect"], "ci_low": row["effect_low"], "ci_high": row["effect_high"]}
            records.append({**at, "arm": kind, **change})
            control = row["control_value"] - row["unablated_value"]
            records.append({**at, "arm": "random control", "change": control, "ci_low": None, "ci_high": None})
        tables[f"loss {kind}"] = tuple(records)
    return tables


def loss_figures(tables: Sequence[str], codec: str, has_probe: bool) -> tuple[Figure, ...]:
    """Return the figures of an ablation; `tables` are the names that `loss_tables` gave."""
    heat = Figure(
        "damage", "heatmap", "damage", f"What is lost without layers, codec {codec}",
        "0: as with all layers. 1: as far from it as another speaker's clip. Values above 2 are shown as 2.",
        {"x": "metric", "y": "layers", "value": "damage", "facet": "kind", "y_title": "Layers replaced",
         "x_title": "Measure", "value_title": "Damage", "columns": 1},
    )  # fmt: skip
    bars = tuple(
        Figure(
            f"loss-{name.removeprefix('loss ')}", "bars_with_intervals", name,
            f"Change when layers are replaced ({name.removeprefix('loss ')})",
            "Change against the decode of all layers, paired by clip, with 95 % intervals over speakers; beside it a "
            "random change of the decoder's input of the same size.",
            {"label": "layers", "value": "change", "series": "arm", "facet": "metric", "columns": 3,
             "value_title": "Change", "label_title": "Layers replaced"},
        )
        for name in tables
    )  # fmt: skip
    probe = Figure(
        "probe", "bars_with_intervals", "probe", "What the speaker probe loses without a layer, and what a layer adds",
        "Change of cross-validated accuracy with 95 % intervals: all layers less this one against all layers; layers "
        "0 to k against layers 0 to k-1.",
        {"label": "layers", "value": "effect", "low": "effect_low", "high": "effect_high", "facet": "kind",
         "value_title": "Change of accuracy", "label_title": "Layer"},
    )  # fmt: skip
    return (heat, *bars, *((probe,) if has_probe else ()))


def swap_figures(codec: str) -> tuple[Figure, ...]:
    """Return the figures of a swap: bars with intervals, and all measures as a map."""
    return (
        Figure(
            "swap", "bars_with_intervals", "moved", f"Layers of speaker B inside a clip of speaker A, codec {codec}",
            "Share of the way from A's clip (0) to B's (1), with 95 % intervals over speakers.",
            {"label": "layers", "value": "moved", "low": "moved_low", "high": "moved_high", "facet": "metric",
             "columns": 2, "value_title": "Share of the way from A to B", "label_title": "Layers swapped"},
        ),
        Figure(
            "swap-map", "heatmap", "moved", "Which layers carry what across",
            "Share of the way from A's clip (0) to B's (1) when layers are swapped.",
            {"x": "metric", "y": "layers", "value": "moved", "y_title": "Layers swapped", "x_title": "Measure",
             "value_title": "Moved", "middle": 0.0},
        ),
    )  # fmt: skip
