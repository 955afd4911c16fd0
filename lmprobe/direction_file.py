"""Directions on disk: read from a result's folder, a CSV column for each direction, an .npy or a .safetensors file.

Conventions. Directions are columns (d, k), float64. `lmprobe refusal --out FOLDER` writes `direction.csv`: a row per
feature of the residual stream, the raw difference in means as `direction`. What else stands in such a file (`feature`,
`unit`) is not a direction.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError
from probecore.results import Row

Floats = NDArray[np.float64]
NAME, TABLE = "direction", "direction.csv"
NOT_DIRECTIONS = ("feature", "unit")


def direction_table(vector: Floats) -> tuple[Row, ...]:
    """Return a raw direction (d,) as the records of `direction.csv`; `unit` is the same with norm 1."""
    size = float(np.linalg.norm(vector))
    return tuple(
        {"feature": i, NAME: float(value), "unit": float(value) / size} for i, value in enumerate(vector.tolist())
    )


def read_directions(source: str | Path) -> Floats:
    """Return the directions of a file as columns (d, k).

    source : a folder that `lmprobe refusal --out` wrote, its direction.csv or another CSV with a column of numbers per
        direction, an .npy of shape (d,) or (d, k), or a .safetensors with one tensor of such a shape.
    Raises `InputError` for another file, or one without numbers.
    """
    path = Path(source)
    path = path / TABLE if path.is_dir() else path
    kind = path.suffix.lower()
    if not path.is_file() or kind not in (".csv", ".npy", ".safetensors"):
        raise InputError(
            f"a direction must be a folder written by lmprobe refusal --out, or a .csv, .npy or .safetensors file; got "
            f"{path.name!r}{'' if path.is_file() else ', which is not there'}: give such a file"
        )
    try:
        values = {".csv": _csv, ".npy": _npy, ".safetensors": _safetensors}[kind](path)
    except InputError:
        raise
    except Exception as error:  # readers raise many kinds: all mean the same here
        raise InputError(f"{path.name!r} is not a readable {kind[1:]} file of directions: {error}") from error
    columns = values[:, None] if values.ndim == 1 else values
    if columns.ndim != 2 or not columns.size or not np.isfinite(columns).all():
        raise InputError(
            f"directions must be finite with shape (features,) or (features, directions); {path.name!r} has "
            f"{values.shape}"
        )
    return np.asarray(columns, dtype=np.float64)


def _csv(path: Path) -> Floats:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows: Sequence[dict[str, str]] = list(csv.DictReader(stream))
    names = [name for name in (rows[0] if rows else {}) if name not in NOT_DIRECTIONS]
    if not names:
        raise InputError(f"{path.name!r} needs a column of numbers for each direction; it has none")
    return np.array([[float(row[name]) for name in names] for row in rows])


def _npy(path: Path) -> Floats:
    return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)


def _safetensors(path: Path) -> Floats:
    from safetensors.torch import load_file

    tensors = load_file(path)
    if len(tensors) != 1:
        raise InputError(f"a file of directions must hold one tensor; {path.name!r} holds {len(tensors)}")
    return np.asarray(next(iter(tensors.values())).double().numpy())
