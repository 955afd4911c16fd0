"""Directions of a probe: where in each layer a label lies, how stable that is, and files that edits can take.

Conventions. One direction per layer for two classes (from the first class in sorted order to the second), one per class
against all others for more; none for a number. Unit vectors from all items, so the separation is in-sample; what
speaks for a direction is that disjoint halves of the groups find it again (`split_cosine`; 0 is expected of noise).

On disk: `directions/LAYER.safetensors`, one tensor (features,) or (features, classes), what it is in the metadata; and,
for two classes at the end of a block, the difference of the class means of the chosen layer in `direction.csv`. Both
are files that `--direction` takes (`lmprobe.direction_file`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.direction_file import direction_table
from lmprobe.probe_design import LabelDesign
from probecore.activations import Activations
from probecore.directions import direction, direction_stability
from probecore.errors import DesignError, InputError
from probecore.probes.runner import FEW_ITEMS, threads_for
from probecore.results import Row
from probecore.store import write_bytes

Floats = NDArray[np.float64]
FEWER = 40, 10
"""Resamples and halvings behind the stability of each of many directions."""


@dataclass(frozen=True)
class Directions:
    """Directions by layer, (features, directions) each, unit columns named by `classes`.

    raw : layer -> (features,) difference of class means, for two classes.
    """

    vectors: Mapping[str, Floats] = field(repr=False)
    raw: Mapping[str, Floats] = field(repr=False)
    classes: tuple[str, ...]
    kind: str
    rows: tuple[Row, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    def table(self, layer: str) -> dict[str, tuple[Row, ...]]:
        """Return the table `direction` of one layer; nothing where the label has other than two classes."""
        return {"direction": direction_table(self.raw[layer])} if layer in self.raw else {}


def probe_directions(
    states: Activations, design: LabelDesign, kind: str = "mean-difference", *, n_resamples: int = 200, seed: int = 0
) -> Directions:
    """Return the directions of a label in every layer with their stability."""
    if design.real:
        return Directions({}, {}, (), kind, (), ("a number has no classes, so no directions are given",))
    names = design.classes
    positives = names[1:] if len(names) == 2 else names
    values = design.label.values
    resamples, halvings = (n_resamples, 20) if len(positives) == 1 else FEWER
    vectors, raw, rows, notes = {}, {}, [], []
    for layer in states.layers:
        x = np.asarray(states.values(layer), dtype=np.float64)
        if (x == x[:1]).all():
            continue  # the row of the layer says that it is dead
        columns = []
        for positive in positives:
            try:
                found = direction(x, values, kind, positive=positive)
            except InputError as error:
                notes.append(f"{layer}: no direction of {positive}: {error}")
                continue
            columns.append(found.vector)
            row: Row = {"layer": layer, "class": positive, "kind": kind, "separation": found.separation}
            row |= {"split_cosine": None, "fold_cosine": None, "cosine_low": None, "cosine_high": None}
            row |= {"n_items": len(x), "n_groups": len(np.unique(design.groups)), "note": ""}
            try:
                with threads_for(FEW_ITEMS):  # thousands of small factorisations
                    stable = direction_stability(
                        x, values, design.groups, kind, positive=positive, n_resamples=resamples,
                        n_splits=halvings, seed=seed,
                    )  # fmt: skip
                row |= {"split_cosine": stable.split_cosine, "fold_cosine": stable.fold_cosine}
                row |= {"cosine_low": stable.ci_low, "cosine_high": stable.ci_high}
            except DesignError as error:
                row["note"] = str(error)
            rows.append(row)
        if len(columns) == len(positives):
            vectors[layer] = np.stack(columns, axis=1)
        if len(names) == 2:
            difference = x[values == names[1]].mean(axis=0) - x[values == names[0]].mean(axis=0)
            if np.linalg.norm(difference) > 0:
                raw[layer] = difference
    return Directions(vectors, raw, tuple(positives), kind, tuple(rows), tuple(notes[:3]))


def write_directions(folder: Path, found: Directions, about: Mapping[str, str]) -> None:
    """Write a file per layer; `about` says of what model, label and tokens they are."""
    from safetensors.numpy import save

    for layer, columns in found.vectors.items():
        facts: dict[str, Any] = {**about, "layer": layer, "kind": found.kind, "classes": json.dumps(found.classes)}
        tensor = np.ascontiguousarray(columns[:, 0] if columns.shape[1] == 1 else columns)
        data: bytes = save({"direction": tensor}, metadata=facts)
        write_bytes(folder / f"{layer.replace(' ', '-')}.safetensors", data)
