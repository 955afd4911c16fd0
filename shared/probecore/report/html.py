"""A result as a folder: result.json, CSV tables, figures as SVG and PNG, and one page that needs nothing else.

`save` writes every file whole or not at all and the same result to the same bytes; `load_result` reads back an equal
result. The page carries its figures inside itself, loads nothing from a network and prints on paper.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from probecore.errors import InputError
from probecore.report.table import Table, format_table
from probecore.report.text import describe
from probecore.results import Figure, Result, Row
from probecore.store import write_bytes

FORMAT = 1
PNG_SCALE = 2.0
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; color: #222; background: #fff;
  max-width: 1080px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.kind { color: #666; margin: 0 0 1.6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; border-top: 2px solid #222;
  border-bottom: 2px solid #222; }
th { text-align: left; font-weight: 600; border-bottom: 1px solid #222; vertical-align: bottom; }
th, td { padding: .22rem .8rem .22rem 0; white-space: nowrap; }
td.text { white-space: normal; min-width: 5rem; }
th.number, th.p, td.number, td.p { text-align: right; }
td.interval { color: #444; }
tr.start td { border-top: 1px solid #bbb; padding-top: .45rem; }
.footnotes, .made { font-size: .82rem; color: #444; }
.footnotes { list-style: none; padding: 0; }
figure { margin: 1.2rem 0 2rem; break-inside: avoid; }
figure svg { max-width: 100%; height: auto; overflow: visible; }
figcaption { font-size: .9rem; color: #444; max-width: 46rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
pre { font-size: .78rem; white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .8rem; }
@media print {
  body { margin: 0; max-width: none; font-size: 11pt; }
  details { display: none; }
  tr { break-inside: avoid; }
}
"""


def save(result: Result, folder: Path) -> Path:
    """Write the report of a result into `folder`, made when missing; return the folder.

    Raises `InputError` where a file would be replaced that is not of an earlier report.
    """
    folder = Path(folder)
    _refuse_strangers(folder)
    drawn = {figure.name: _draw(figure, result) for figure in result.figures}
    whole = json.dumps({"format": FORMAT, **asdict(result)}, indent=1, allow_nan=False, ensure_ascii=False)
    write_bytes(folder / "result.json", whole.encode())
    for name, (svg, png) in drawn.items():
        write_bytes(folder / "figures" / f"{name}.svg", svg.encode())
        write_bytes(folder / "figures" / f"{name}.png", png)
    write_bytes(folder / "table.csv", to_csv(result.rows).encode())
    for name, rows in result.tables.items():
        write_bytes(folder / f"{_file_name(name)}.csv", to_csv(rows).encode())
    write_bytes(folder / "report.html", page(result, {name: svg for name, (svg, _) in drawn.items()}).encode())
    return folder


def load_result(path: str | Path) -> Result:
    """Return the result saved in a folder, or in its result.json."""
    path = Path(path)
    path = path / "result.json" if path.is_dir() else path
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no saved result at {path}; give the folder that --out wrote") from None
    except ValueError as error:
        raise InputError(f"{path} is not a saved result: {error}; give the folder that --out wrote") from error
    if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
        raise InputError(f"{path} is not a result of format {FORMAT}; give the folder that --out wrote")
    try:
        return Result(
            kind=record["kind"],
            rows=tuple(record["rows"]),
            notes=tuple(record["notes"]),
            provenance=record["provenance"],
            columns=tuple(record["columns"]),
            tables={name: tuple(rows) for name, rows in record["tables"].items()},
            figures=tuple(Figure(**figure) for figure in record["figures"]),
            title=record["title"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} lacks parts of a saved result ({error}); save it again") from error


def draw(figure: Figure, result: Result) -> Any:  # noqa: ANN401 (altair's charts share no base class)
    """Return the Altair chart of a figure, drawn from the records of the result that it names."""
    from probecore.report.charts import chart_named

    return chart_named(figure.chart)(result.records(figure.table), title=figure.title, **figure.options)


def write(figure: Figure, result: Result, folder: Path) -> tuple[Path, Path]:
    """Write a figure as SVG and PNG (at twice its size) and return both paths."""
    svg, png = _draw(figure, result)
    paths = folder / f"{figure.name}.svg", folder / f"{figure.name}.png"
    write_bytes(paths[0], svg.encode())
    write_bytes(paths[1], png)
    return paths


def to_csv(rows: Sequence[Row]) -> str:
    """Return records as CSV with full precision; lists and dicts as JSON, a null as an empty field."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        nested = {k: json.dumps(v, ensure_ascii=False) for k, v in row.items() if isinstance(v, (dict, list))}
        writer.writerow({**row, **nested})
    return text.getvalue()


def page(result: Result, svgs: Mapping[str, str]) -> str:
    """Return the self-contained page: figures first met after the table, then notes and how it was made."""
    title = escape(result.title or result.kind)
    parts = [f"<h1>{title}</h1>", f'<p class="kind">{escape(result.kind)}</p>']
    parts.append(_table(format_table(result.shown, result.columns)))
    if len(result.shown) < len(result.rows):
        parts.append(f'<p class="footnotes">{len(result.rows) - len(result.shown)} rows of detail: see table.csv.</p>')
    if result.notes:
        parts += ["<h2>Notes</h2>", "<ul>", *(f"<li>{escape(note)}</li>" for note in result.notes), "</ul>"]
    if result.figures:
        parts.append("<h2>Figures</h2>")
    for figure in result.figures:
        label = escape(figure.title or figure.name, quote=True)
        svg = svgs[figure.name].replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
        caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
        parts.append(f"<figure>{svg}{caption}</figure>")
    parts += ["<h2>How it was made</h2>", f'<p class="made">{escape(describe(result.provenance))}</p>']
    record = json.dumps(result.provenance, indent=1, ensure_ascii=False)
    parts.append(f"<details><summary>Full record</summary><pre>{escape(record)}</pre></details>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _table(table: Table) -> str:
    if not table.n_rows:
        return "<p>(no rows)</p>"
    heads = "".join(f'<th class="{c.kind}">{escape(c.heading)}</th>' for c in table.columns)
    lines = [f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>']
    for row in range(table.n_rows):
        start = ' class="start"' if row in table.starts[1:] else ""
        shown = [column.cells[row] for column in table.columns]
        if table.repeats(row):
            shown[0] = ""
        cells = "".join(f'<td class="{c.kind}">{escape(s)}</td>' for c, s in zip(table.columns, shown, strict=True))
        lines.append(f"<tr{start}>{cells}</tr>")
    lines.append("</tbody></table></div>")
    if table.footnotes:
        lines.append('<ul class="footnotes">')
        lines += [f"<li>{escape(mark)} {escape(text)}</li>" for mark, text in table.footnotes]
        lines.append("</ul>")
    return "\n".join(lines)


def _draw(figure: Figure, result: Result) -> tuple[str, bytes]:
    import vl_convert

    spec = _drawable(draw(figure, result).to_dict())
    svg = _own_ids(vl_convert.vegalite_to_svg(spec), figure.name)
    png: bytes = vl_convert.vegalite_to_png(spec, scale=PNG_SCALE)
    return svg, png


def _drawable(spec: Any) -> Any:  # noqa: ANN401
    r"""Return the specification with characters that XML does not have written as \x1b: one would end the process."""
    if isinstance(spec, dict):
        return {name: _drawable(value) for name, value in spec.items()}
    if isinstance(spec, list):
        return [_drawable(value) for value in spec]
    return _NOT_XML.sub(lambda met: repr(met[0])[1:-1], spec) if isinstance(spec, str) else spec


def _own_ids(svg: str, name: str) -> str:
    """Name the ids of a drawing after it, in their order.

    The ones it comes with count all drawings of the process: they differ from run to run, and drawings in one page
    would share each other's clip paths.
    """
    prefix = re.sub(r"\W", "-", name)
    own = {old: f"{prefix}-{i}" for i, old in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)))}
    return re.sub(r'(\bid="|url\(#|href="#)([^")]+)', lambda met: met[1] + own.get(met[2], met[2]), svg)


def _file_name(name: str) -> str:
    safe = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return f"{safe}-table" if safe in ("table", "") else safe


def _refuse_strangers(folder: Path) -> None:
    """Refuse to write over files that no earlier report of ours has written."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"a report is a folder, and {folder} is a file; give another --out")
    met = [name for name in ("report.html", "table.csv") if (folder / name).exists()]
    if met and not (folder / "result.json").exists():
        raise InputError(f"{folder / met[0]} exists and is not of an earlier report; give a new folder to --out")
