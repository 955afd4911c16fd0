"""Result: what every command and every top-level function gives back.

`rows` are flat records with JSON types only; `None` stands for a value that does not exist, and a row that has no
p-value says why in `p_note`. `tables` hold further records (curves, maps) that figures are drawn from. A figure is
a description (which chart, which table, which columns), so that it can be drawn again from a saved result.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One picture: `chart` names a function of `probecore.report.charts`, `table` the records it is drawn from.

    name : file name without ending. options : keyword arguments of the chart (columns, titles).
    caption : one or two sentences a reader needs to read it, always shown beneath it.
    """

    name: str
    chart: str
    table: str = "rows"
    title: str = ""
    caption: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Rows, notes and provenance of one analysis; `print(result)` shows the table as the command prints it.

    rows : flat records; one with `detail` true is in every file and in the JSON object, but not in the printed table.
    columns : the columns of `rows` that the printed table shows, in order; empty means all.
    notes : sentences a reader must know (refusals, what was left out, what is synthetic).
    tables : further records by name. figures : pictures drawn from rows or tables.
    """

    kind: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    columns: tuple[str, ...] = ()
    tables: Mapping[str, tuple[Row, ...]] = field(default_factory=dict, repr=False)
    figures: tuple[Figure, ...] = field(default=(), repr=False)
    title: str = ""

    def __post_init__(self) -> None:
        """Make every value a JSON type once, so that what is printed, saved and compared is the same."""
        object.__setattr__(self, "rows", tuple(plain(row) for row in self.rows))
        object.__setattr__(self, "tables", {k: tuple(plain(r) for r in t) for k, t in self.tables.items()})
        object.__setattr__(self, "provenance", plain(dict(self.provenance)))

    def __str__(self) -> str:
        """Return the table, the notes and how it was made, as the terminal shows them."""
        from probecore.report.text import render

        return render(self)

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows of the printed table: all but those with `detail` true."""
        return tuple(row for row in self.rows if not row.get("detail"))

    def records(self, table: str = "rows") -> tuple[Row, ...]:
        """Return the rows, or a further table by name."""
        return self.rows if table == "rows" else self.tables[table]

    def to_frame(self, table: str = "rows") -> Any:  # noqa: ANN401 (pandas is optional)
        """Return the rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame.from_records(list(self.records(table)))

    def to_json(self) -> str:
        """Return the one JSON object that `--json` prints: kind, rows, notes, provenance."""
        return json.dumps(
            {"kind": self.kind, "rows": self.rows, "notes": self.notes, "provenance": self.provenance},
            indent=1,
            allow_nan=False,
            ensure_ascii=False,
        )

    def to_record(self) -> dict[str, Any]:
        """Return everything of the result in JSON types, also what `to_json` leaves out; see `from_record`."""
        return {
            "kind": self.kind, "title": self.title, "columns": list(self.columns), "rows": list(self.rows),
            "notes": list(self.notes), "provenance": dict(self.provenance),
            "tables": {name: list(rows) for name, rows in self.tables.items()},
            "figures": [plain(vars(figure)) for figure in self.figures],
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Result":
        """Return the result that `to_record` described.

        >>> result = Result("probe", ({"layer": "a", "p_value": None},), figures=(Figure("f", "lines"),))
        >>> Result.from_record(json.loads(json.dumps(result.to_record()))) == result
        True
        """
        return cls(
            kind=record["kind"],
            title=record["title"],
            columns=tuple(record["columns"]),
            rows=tuple(record["rows"]),
            notes=tuple(record["notes"]),
            provenance=record["provenance"],
            tables={name: tuple(rows) for name, rows in record["tables"].items()},
            figures=tuple(Figure(**figure) for figure in record["figures"]),
        )

    def save(self, folder: str | Path) -> Path:
        """Write `result.json`, `table.csv` (and one CSV per further table), `figures/` and `report.html`."""
        from probecore.report.html import save

        return save(self, Path(folder))


def plain(value: Any) -> Any:  # noqa: ANN401
    """Return `value` with JSON types only: numpy scalars and arrays unpacked, NaN and infinity as None.

    >>> import numpy as np
    >>> plain({"p": np.float64("nan"), "n": np.int64(3), "shape": (1, 2)})
    {'p': None, 'n': 3, 'shape': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Sequence) or isinstance(value, (set, frozenset)):
        return [plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    return str(value)
