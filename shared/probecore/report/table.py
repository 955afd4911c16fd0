"""A table as one would publish it: records to headings and aligned, rounded cells. Text and HTML both show it.

Conventions. `*_low` and `*_high` become one interval cell [low, high]. A number keeps three decimals below 10, two
below 100, one below 1000; small quantities keep three significant digits; this is decided by column, or
where there is a `metric` column for each metric by itself, and an interval rounds as its estimate does. A p-value is
never 0: .001 has three decimals, smaller ones four, then "<.0001". A null is "—", and where the record has
`<name>_note` (p_note, ci_note) the reason becomes a footnote of that cell. `*_note`, `ci_level` and
`detail` are not columns.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from probecore.results import Row

Kind = Literal["text", "number", "p", "interval"]
NONE = "—"
MARKS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"
RATES = ("accuracy", "auc", "auroc", "chance", "precision", "recall", "selectivity", "share")
HEADINGS = {
    "accuracy_utterance": "Utterance split",
    "ci": "{level} CI",
    "n": "n",
    "p": "p",
    "p_value": "p",
    "p_adjusted": "p adj.",
    "p_smallest": "smallest p",
    "smallest_p": "smallest p",
    "cohen_d": "Cohen's d",
    "cohens_d": "Cohen's d",
    "hedges_g": "Hedges' g",
    "null": "Null range",
    "q_value": "q",
    "r2": "R²",
}
UNITS = {"nats": "nats", "bits": "bits", "hz": "Hz", "ms": "ms", "s": "s", "db": "dB", "percent": "%"}
ACRONYMS = ("ace", "auc", "auroc", "bic", "cca", "cka", "eos", "f0", "kl", "lda", "mdl", "mfcc", "pca", "sd", "se")


@dataclass(frozen=True)
class Column:
    """One column: `names` are the record's keys (two for an interval), `cells` the formatted values by row."""

    names: tuple[str, ...]
    heading: str
    kind: Kind
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Formatted columns, the rows at which a new block starts, and footnotes as (mark, text)."""

    columns: tuple[Column, ...]
    n_rows: int
    starts: tuple[int, ...]
    footnotes: tuple[tuple[str, str], ...]

    def repeats(self, row: int) -> bool:
        """Tell whether a row's first cell says again, inside one block, what the row above says."""
        first = self.columns[0]
        return first.kind == "text" and row not in self.starts and first.cells[row] == first.cells[row - 1]


def format_table(rows: Sequence[Row], columns: Sequence[str] = ()) -> Table:
    """Format records; `columns` are the keys to show, in order (empty: all scalar ones, as first met)."""
    groups = _pair(columns or _scalar_keys(rows))
    kinds = [_kind(names, rows) for names in groups]
    places = _places(groups, kinds, rows)
    marks: dict[str, str] = {}
    made = tuple(
        Column(names, _heading(i, groups, rows), kind, tuple(_cells(names, kind, rows, places[names], groups, marks)))
        for i, (names, kind) in enumerate(zip(groups, kinds, strict=True))
    )
    return Table(made, len(rows), _starts(made, len(rows)), tuple((mark, text) for text, mark in marks.items()))


def heading(names: tuple[str, ...], rows: Sequence[Row] = ()) -> str:
    """Return the words above a column.

    >>> [heading((name,)) for name in ("p_adjusted", "n_items", "gap_nats", "kl_nats", "layer")]
    ['p adj.', 'Items', 'Gap (nats)', 'KL (nats)', 'Layer']
    >>> heading(("ci_low", "ci_high"), [{"ci_level": 0.9}]), heading(("gap_low", "gap_high"))
    ('90 % CI', 'Gap 95 % CI')
    """
    name = names[0] if len(names) == 1 else names[0].removesuffix("_low")
    level = next((row["ci_level"] for row in rows if row.get("ci_level")), 0.95)
    percent = f"{100 * level:g} %"
    if name in HEADINGS:
        return HEADINGS[name].format(level=percent)
    if len(names) == 2:
        return f"{heading((name.removesuffix('_ci'),))} {percent} CI"
    words = [word for word in name.removeprefix("n_").split("_") if word]
    unit = f" ({UNITS[words.pop()]})" if len(words) > 1 and words[-1] in UNITS else ""
    shown = [word.upper() if word in ACRONYMS else word for word in words]
    return (shown[0][:1].upper() + shown[0][1:] + " " + " ".join(shown[1:])).strip() + unit if shown else name


def _heading(i: int, groups: Sequence[tuple[str, ...]], rows: Sequence[Row]) -> str:
    """Return the heading of a column where it stands: right of its estimate an interval needs no name."""
    if len(groups[i]) == 2 and i and groups[i - 1] == (groups[i][0].removesuffix("_low").removesuffix("_ci"),):
        return heading(("ci_low", "ci_high"), rows)
    return heading(groups[i], rows)


def format_p(p: float) -> str:
    """Return a p-value as printed; never 0 and never more certain than it is.

    >>> [format_p(p) for p in (0.04999, 0.001, 0.00042, 1e-7, 0.9999, 1.0)]
    ['.050', '.001', '.0004', '<.0001', '>.999', '1.000']
    """
    if p < 0.0001:
        return "<.0001"
    if 0.9995 <= p < 1:
        return ">.999"
    return f"{p:.{3 if p >= 0.00095 else 4}f}".removeprefix("0")


def format_number(value: float, places: int | None) -> str:
    """Return a number with `places` decimals; None means two significant digits in scientific notation."""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.1e}" if places is None and value else f"{value:.{places or 0}f}"
    return text.removeprefix("-") if re.fullmatch(r"-0\.?0*", text) else text


def places_for(values: Iterable[float]) -> int | None:
    """Return how many decimals values of this size deserve; None for scientific notation."""
    largest = max((abs(v) for v in values), default=0.0)
    if largest == 0 or 0.1 <= largest < 10:
        return 3
    magnitude = math.floor(math.log10(largest))
    if largest >= 10:
        return max(0, 3 - magnitude)
    return 2 - magnitude if largest >= 0.0001 else None


def _scalar_keys(rows: Sequence[Row]) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row)
    hidden = {key for key in keys if key.endswith("_note") or key in ("ci_level", "detail")}
    nested = {key for key in keys if any(isinstance(row.get(key), (dict, list)) for row in rows)}
    return [key for key in keys if key not in hidden | nested]


def _pair(columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Join x_low with x_high where both are shown; the pair stands where x_low stood."""
    groups: list[tuple[str, ...]] = []
    for name in columns:
        base = name.removesuffix("_low")
        if name.endswith("_low") and f"{base}_high" in columns:
            groups.append((name, f"{base}_high"))
        elif not (name.endswith("_high") and f"{name.removesuffix('_high')}_low" in columns):
            groups.append((name,))
    return groups


def _kind(names: tuple[str, ...], rows: Sequence[Row]) -> Kind:
    if len(names) == 2:
        return "interval"
    values = [row[names[0]] for row in rows if row.get(names[0]) is not None]
    if not values or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return "text" if values else "p" if _is_p(names[0]) else "number"
    return "p" if _is_p(names[0]) else "number"


def _is_p(name: str) -> bool:
    return bool({"p", "q"} & set(name.split("_")))


def _places(
    groups: Sequence[tuple[str, ...]], kinds: Sequence[Kind], rows: Sequence[Row]
) -> dict[tuple[str, ...], list[int | None]]:
    """Decide the decimals of every column and metric; an interval shares those of the estimate left of it."""
    alike = [row.get("metric") for row in rows]
    places: dict[tuple[str, ...], list[int | None]] = {}
    estimate: tuple[str, ...] = ()
    for names, kind in zip(groups, kinds, strict=True):
        together = (*estimate, *names) if kind == "interval" else names
        numbers: dict[Any, list[float]] = {metric: [] for metric in alike}
        for metric, row in zip(alike, rows, strict=True):
            numbers[metric] += [row[name] for name in together if isinstance(row.get(name), float)]
        rate = bool(set(together[0].split("_")) & set(RATES))
        places[names] = [3 if rate else _places_together(numbers[metric]) for metric in alike]
        if kind == "interval" and estimate:
            places[estimate] = places[names]
        estimate = names if kind == "number" else ()
    return places


def _places_together(values: Sequence[float]) -> int | None:
    """Return the decimals of values that stand below each other: the largest decides, small ones add one."""
    largest = places_for(values)
    if largest is None or largest >= 3 or not any(0 < abs(v) < 1 for v in values):
        return largest
    return largest + 1


def _cells(
    names: tuple[str, ...],
    kind: Kind,
    rows: Sequence[Row],
    places: Sequence[int | None],
    groups: Sequence[tuple[str, ...]],
    marks: dict[str, str],
) -> Iterable[str]:
    for row, decimals in zip(rows, places, strict=True):
        if not any(name in row for name in names):
            yield ""
        else:
            yield _cell([row.get(name) for name in names], kind, decimals) + _mark(names, row, groups, marks)


def _cell(values: Sequence[Any], kind: Kind, places: int | None) -> str:
    if any(value is None for value in values):
        return NONE
    value = values[0]
    if kind == "interval":
        return "[" + ", ".join(format_number(float(v), places) for v in values) + "]"
    if kind == "p":
        return format_p(float(value))
    if kind == "number":
        return format_number(value, places)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _mark(names: tuple[str, ...], row: Row, groups: Sequence[tuple[str, ...]], marks: dict[str, str]) -> str:
    """Return the footnote mark of a cell that a note of its record explains.

    A note marks the nulls among the cells it explains (p_note: p_value, p_adjusted), or where there is no null the
    first of them.
    """
    for key, note in row.items():
        if not key.endswith("_note") or not note:
            continue
        explained = [group for group in groups if _explains(key, group[0]) and any(name in row for name in group)]
        nulls = [group for group in explained if any(row.get(name) is None for name in group)]
        if names in (nulls or explained[:1]):
            index = len(marks)
            return marks.setdefault(str(note), MARKS[index] if index < len(MARKS) else f"({index + 1})")
    return ""


def _explains(note: str, name: str) -> bool:
    base = note.removesuffix("_note")
    return name == base or name.startswith(f"{base}_")


def _starts(columns: Sequence[Column], n_rows: int) -> tuple[int, ...]:
    """Return where blocks begin: at the changes of the text column with the fewest contiguous runs.

    Runs of one row that follow each other (baselines) stay together in one block.
    """
    best: tuple[int, ...] = ()
    for column in columns:
        changes = tuple(i for i in range(1, n_rows) if column.cells[i] != column.cells[i - 1])
        contiguous = len(changes) + 1 == len(set(column.cells))
        if column.kind == "text" and contiguous and 0 < len(changes) < n_rows - 1:
            best = changes if not best or len(changes) < len(best) else best
    edges = (0, *best, n_rows)
    single = [after - before == 1 for before, after in pairwise(edges)]
    return (
        tuple(edge for i, edge in enumerate(edges[:-1]) if i == 0 or not (single[i] and single[i - 1]))
        if n_rows
        else ()
    )
