"""A result as the terminal shows it: title, table, footnotes, notes, and one line on how it was made.

Plain text without colour codes, so that it can be copied, piped and compared: the same result gives the same bytes
wherever it is not printed to a terminal. Lines are at most 120 characters, or as wide as the terminal.
"""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from probecore.report.table import UNITS, Column, Table, format_table
from probecore.results import Result

WIDEST = 120
GAP = "  "


def render(result: Result, width: int | None = None) -> str:
    """Return the whole text of a result; `width` in characters, by default that of the terminal up to 120."""
    width = min(width or terminal_width(), WIDEST)
    table = format_table(result.shown, result.columns)
    lines = _wrapped(result.title or result.kind, width)
    lines += [""] + (_lines(table, width) if table.n_rows else ["(no rows)"])
    lines += _wrapped(hidden_rows(result), width) if hidden_rows(result) else []
    lines += [line for mark, text in table.footnotes for line in _wrapped(text, width, first=f"{mark} ", rest="  ")]
    if result.notes:
        lines += ["", "Notes"]
        lines += [line for note in result.notes for line in _wrapped(note, width, first="- ", rest="  ")]
    made = describe(result.provenance)
    if made:
        lines += ["", *_wrapped(made, width)]
    return "\n".join(line.rstrip() for line in lines)


def terminal_width() -> int:
    """Return the width of the terminal, or the widest where stdout is not one."""
    return shutil.get_terminal_size((WIDEST, 40)).columns if sys.stdout.isatty() else WIDEST


def hidden_rows(result: Result) -> str:
    """Return one sentence on the rows that the table leaves out, or nothing where it shows all."""
    n_hidden = len(result.rows) - len(result.shown)
    return f"Rows of detail not shown: {n_hidden}. --json prints them and --out saves them." if n_hidden else ""


def describe(provenance: Mapping[str, Any]) -> str:
    """Return how a result was made as one sentence: command, seed, device, versions, hashes, certificate.

    >>> describe({"command": "demo", "seed": 0, "device": "cpu", "versions": {"numpy": "2.1"}, "data_hash": "ab12"})
    'Made by: demo; seed 0; cpu; numpy 2.1; data hash ab12.'
    """
    parts = [provenance["command"]] if provenance.get("command") else []
    parts += [f"seed {provenance['seed']}"] if "seed" in provenance else []
    parts += [str(provenance["device"])] if provenance.get("device") else []
    parts += [f"{name} {version}" for name, version in provenance.get("versions", {}).items()]
    for name, fact in provenance.items():
        if name not in ("command", "seed", "device", "versions", "problems"):  # problems stand in the notes
            parts += _fact(name.replace("_", " "), fact)
    return f"Made by: {'; '.join(parts)}." if parts else ""


def _fact(name: str, fact: Any) -> list[str]:  # noqa: ANN401
    """Say one fact of a provenance: a value, what has a name with its own facts in brackets, a long list's length."""
    if name.endswith("certificate") and fact:
        return [f"{name}: {_certificate(fact)}"]
    if isinstance(fact, Mapping) and "name" in fact:
        own = [part for key, value in fact.items() if key != "name" for part in _fact(key.replace("_", " "), value)]
        return [f"{name} {fact['name']}".strip() + (f" ({', '.join(own)})" if own else "")]
    if isinstance(fact, Mapping):
        own = [part for key, value in fact.items() for part in _fact(key.replace("_", " "), value)]
        return [f"{name}: {', '.join(own)}"] if own else []
    if isinstance(fact, (list, tuple)) and fact:
        if all(isinstance(value, Mapping) and "name" in value for value in fact):
            shared = {k: v for k, v in fact[0].items() if k != "name" and all(value.get(k) == v for value in fact)}
            shared = shared if len(fact) > 1 else {}
            different = [{k: v for k, v in value.items() if k not in shared} for value in fact]
            said = _fact("", {"name": f"{len(fact)} {name}", **shared}) if shared else []
            return said + [part for value in different for part in _fact(name.removesuffix("s"), value)]
        few = len(fact) <= 4 and not any(isinstance(value, (list, tuple, Mapping)) for value in fact)
        return [f"{name} {', '.join(map(str, fact))}" if few else f"{len(fact)} {name}"]
    if fact is None or (isinstance(fact, (str, list, tuple)) and not fact):
        return []
    words, last = name.rsplit(" ", 1) if " " in name else (name, "")
    if isinstance(fact, (int, float)) and not isinstance(fact, bool):
        return [f"{words} {fact:.10g} {UNITS[last]}" if last in UNITS else f"{name} {fact:.10g}"]
    return [f"{name} {fact}"]


def _certificate(certificate: Any) -> str:  # noqa: ANN401
    """Say a certificate in a few words: its own summary, or how many of its yes-or-no checks passed."""
    if not isinstance(certificate, Mapping):
        return str(certificate)
    if certificate.get("summary"):
        return str(certificate["summary"])
    checks = {k: v.get("passed") if isinstance(v, Mapping) else v for k, v in certificate.items()}
    verdicts = {k: v for k, v in checks.items() if isinstance(v, bool)}
    failed = [k.replace("_", " ") for k, passed in verdicts.items() if not passed]
    if not verdicts:
        return f"{len(certificate)} facts"
    return f"{len(verdicts) - len(failed)} of {len(verdicts)} checks passed" + (
        f" (not: {', '.join(failed)})" if failed else ""
    )


def _lines(table: Table, width: int) -> list[str]:
    """Lay the table out within `width`: fold headings, then state constant columns once, then wrap text cells."""
    columns = [replace(column, cells=_aligned(column)) for column in table.columns]
    constant: list[Column] = []
    heads = {column.names: _folded(column) for column in columns}
    if _width(columns, {c.names: [c.heading] for c in columns}) <= width:
        heads = {column.names: [column.heading] for column in columns}
    elif _width(columns, heads) > width:
        constant = [
            c for c in columns[1:] if len(set(c.cells)) == 1 and table.n_rows > 1 and c.kind in ("number", "text")
        ]
        columns = [column for column in columns if column not in constant]
    widths = _fit(columns, heads, width)
    rule = "─" * (sum(widths) + len(GAP) * (len(widths) - 1))
    height = max(len(heads[column.names]) for column in columns)
    lines = [rule]
    for i in range(height):
        words = [([""] * (height - len(heads[c.names])) + heads[c.names])[i] for c in columns]
        lines.append(_line(words, columns, widths))
    lines.append(rule)
    rest: list[str] = []  # what is left of a block's name that takes several lines
    for row in range(table.n_rows):
        cells = [
            textwrap.wrap(column.cells[row], w) or [""] if len(column.cells[row]) > w else [column.cells[row]]
            for column, w in zip(columns, widths, strict=True)
        ]
        if table.repeats(row):
            cells[0] = [rest.pop(0)] if rest else [""]
        else:
            lines += [_line([name] + [""] * (len(columns) - 1), columns, widths) for name in rest]
            lines += [""] if row in table.starts[1:] else []
            goes_on = row + 1 < table.n_rows and table.repeats(row + 1)
            cells[0], rest = (cells[0][:1], cells[0][1:]) if goes_on else (cells[0], [])
        for i in range(max(map(len, cells))):
            lines.append(_line([cell[i] if i < len(cell) else "" for cell in cells], columns, widths))
    lines += [_line([name] + [""] * (len(columns) - 1), columns, widths) for name in rest]
    lines.append(rule)
    if constant:
        said = ", ".join(f"{column.heading} {column.cells[0].strip()}" for column in constant)
        lines += _wrapped(f"In every row: {said}.", width)
    return lines


def _aligned(column: Column) -> tuple[str, ...]:
    """Pad numbers so that their decimal points stand in one line; marks and exponents hang to the right."""
    ends = [cell[1:-1].split(", ") for cell in column.cells if cell.startswith("[")]
    if column.kind == "interval" and len({len(end) - _point(end) for pair in ends for end in pair}) == 1:
        wide = [max(len(pair[i]) for pair in ends) for i in (0, 1)]
        return tuple(
            "[" + ", ".join(end.rjust(w) for end, w in zip(cell[1:-1].split(", "), wide, strict=True)) + "]"
            if cell.startswith("[")
            else cell
            for cell in column.cells
        )
    if column.kind not in ("number", "p"):
        return column.cells
    after = [len(cell) - _point(cell) for cell in column.cells]
    return tuple(cell + " " * (max(after) - tail) for cell, tail in zip(column.cells, after, strict=True))


def _point(cell: str) -> int:
    """Return where the decimal point of a cell stands, or would stand."""
    if "." in cell:
        return cell.index(".")
    return next((i for i, c in enumerate(cell) if c not in "+-—0123456789"), len(cell))


def _folded(column: Column) -> list[str]:
    cells = max((len(cell) for cell in column.cells), default=0)
    longest = max(len(word) for word in column.heading.split())
    return textwrap.wrap(column.heading, max(cells, longest))


def _width(columns: Sequence[Column], heads: Mapping[tuple[str, ...], list[str]]) -> int:
    return sum(_column_widths(columns, heads)) + len(GAP) * (len(columns) - 1)


def _column_widths(columns: Sequence[Column], heads: Mapping[tuple[str, ...], list[str]]) -> list[int]:
    return [max(map(len, (*column.cells, *heads[column.names]))) for column in columns]


def _fit(columns: Sequence[Column], heads: Mapping[tuple[str, ...], list[str]], width: int) -> list[int]:
    """Return the columns' widths; text columns give way, never below 12 characters, numbers never."""
    widths = _column_widths(columns, heads)
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        texts = [i for i, column in enumerate(columns) if column.kind == "text" and widths[i] > 12]
        if not texts:
            break
        widths[max(texts, key=lambda i: widths[i])] -= 1
    return widths


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    return GAP.join(
        cell.rjust(width) if column.kind in ("number", "p") else cell.ljust(width)
        for cell, column, width in zip(cells, columns, widths, strict=True)
    )


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False) or [""]
