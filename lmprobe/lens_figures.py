"""The pictures of a lens: the map of one text, curves by layer of two sets of prompts, and the loss of a tuned lens.

Conventions. A picture is described by a `Figure`; its records are a table of the result. Maps show the last layer on
top.
"""

from collections.abc import Sequence

import numpy as np

from probecore.results import Figure, Row

MAP_TOKENS, MAP_LAYERS, MAP_LABEL = 16, 32, 10


def map_table(rows: Sequence[Row]) -> list[Row]:
    """Return the cells of a map of one text, last layer first: its last tokens, and layers evenly spread where many."""
    layers, positions = list(dict.fromkeys(row["layer"] for row in rows)), sorted({row["position"] for row in rows})
    kept = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), MAP_LAYERS)).round().astype(int))
    chosen, last = {layers[k] for k in kept}, set(positions[-MAP_TOKENS:])
    cells = [row for row in rows if row["layer"] in chosen and row["position"] in last]
    return [
        {
            "layer": row["layer"], "token": f"{row['position']} {row['token']}", "says": _cut(row["first_choice"]),
            "probability": row["p_first_choice"], "kl_to_final_nats": row["kl_to_final_nats"],
            "entropy_nats": row["entropy_nats"], "rank_of_final": row["rank_of_final"],
        }
        for row in sorted(cells, key=lambda row: (-layers.index(row["layer"]), row["position"]))
    ]  # fmt: skip


def held_out_table(rows: Sequence[Row]) -> list[Row]:
    """Return the two curves of the held-out rows, for the picture."""
    return [
        {"layer": row["layer"], "model": row["model"], "lens": name, "value": row[key]}
        for name, key in (("plain", "second"), ("tuned", "first"))
        for row in rows
    ]


def map_figures(table: str, title: str, kind: str, note: str) -> tuple[Figure, ...]:
    """Return the two maps of one text."""
    shared = {"x": "token", "y": "layer", "x_title": "Position and token", "y_title": "Layer", "columns": 1}
    name = table.replace(" ", "-")
    return (
        Figure(
            f"{name}-says", "heatmap", table, f"What each layer would say next ({kind} lens), {title}",
            "The most probable next token of each layer (up) at each position (across); the last layer, on top, is the "
            f"model itself. Colour: its probability. {note}",
            {**shared, "value": "probability", "text": "says", "value_title": "Probability"},
        ),
        Figure(
            f"{name}-kl", "heatmap", table, f"Distance to the final distribution ({kind} lens), {title}",
            f"KL(final || layer) in nats; 0 in the last layer by construction. {note}",
            {**shared, "value": "kl_to_final_nats", "value_title": "KL (nats)"},
        ),
    )  # fmt: skip


def set_figures(first: str, second: str, several: bool) -> tuple[Figure, ...]:
    """Return the pictures of a contrast of two sets: the contrast by layer, and each measure by category."""
    series = {"series": "model"} if several else {}
    split = {"series": "category", "chance": None, "p": None}
    facet = {"facet": "model"} if several else {}
    return (
        Figure(
            "contrast-by-layer", "layer_profile", "contrast", f"What {first} and {second} prompts make a layer say",
            "Squared Hellinger distance of the lenses between the sets beyond that within them; 0 where the sets are "
            "alike. Bands: other prompt families.",
            {"y": "value", "y_title": "H² beyond that within sets", "chance": "null", "chance_title": "0: alike",
             **series},
        ),
        *(
            Figure(
                name, "layer_profile", name, title,
                "Mean over the prompts of a category at their last token; bands: other prompt families.",
                {"y": "value", "y_title": unit, **split, **facet},
            )
            for name, title, unit in (
                ("entropy-by-layer", "Entropy of the lens", "Nats"),
                ("kl-by-layer", "Distance of the lens to the final distribution", "KL(final || layer), nats"),
            )
        ),
    )  # fmt: skip


def tuned_figure(several: bool) -> Figure:
    """Return the picture of the held-out loss of both lenses."""
    return Figure(
        "held-out-loss", "layer_profile", "held-out loss", "Loss on held-out texts, plain and tuned lens",
        "KL(final || layer), nats, mean over held-out texts. Where tuned lies above plain, training did not help.",
        {"y": "value", "y_title": "KL (nats)", "series": "lens", "chance": None, "p": None}
        | ({"facet": "model"} if several else {}),
    )  # fmt: skip


def _cut(label: str) -> str:
    return label if len(label) <= MAP_LABEL else label[: MAP_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
