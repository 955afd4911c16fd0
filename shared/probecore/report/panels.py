"""What all charts share: colours, panels, legends in words, and how a point says its p.

Records are those the charts make: x, y, low, high, series, facet and, by chart, chance and mark.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt

from probecore.results import Row

Chart: TypeAlias = Any  # altair's charts share no base class that a type checker can use
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F4F24", "#222222")
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 2], [1, 3], [12, 4], [6, 2, 2, 2])
GREY = "#666666"
FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"


def lay_out(
    parts: Sequence[Chart],
    records: Sequence[Row],
    facet: str | None,
    columns: int,
    width: int,
    height: int,
    title: str,
    legend: Sequence[str],
    *,
    own_axes: bool = False,
) -> Chart:
    """Lay the parts over each other, one panel per facet, with the title and what the marks mean above."""
    data = alt.InlineData(values=list(records))
    chart: Chart = alt.layer(*parts, data=data).properties(width=width, height=height)
    n_panels = len({record["facet"] for record in records}) if facet else 1
    if facet:
        order = list(dict.fromkeys(record["facet"] for record in records))
        aside = 130 if any(record.get("x", 0) is None for record in records) else 70 if own_axes else 24
        between: Any = {"column": aside, "row": 80 if own_axes else 48}
        chart = chart.facet(
            facet=alt.Facet("facet:N", title=None, sort=order), columns=columns, spacing=between, bounds="flush"
        )
        if own_axes:
            chart = chart.resolve_scale(x="independent", y="independent")
    room = max(40, min(n_panels, columns) * width // 6)
    words = subtitle_lines(legend, room)
    head = alt.TitleParams(text=textwrap.wrap(title, room) or [""], subtitle=words)
    chart = chart.properties(title=head) if title or words else chart
    return _styled(chart)


def subtitle_lines(legend: Sequence[str], room: int) -> list[str]:
    r"""Return the parts of a legend in lines of at most `room` characters.

    A part stays on one line where it fits into one, and is broken between its words where not; a word longer than
    `room` stays whole on a line of its own.

    >>> [line.replace("\xa0", " ") for line in subtitle_lines(["of a null over replicates", "", "cross: no p"], 20)]
    ['of a null over', 'replicates;', 'cross: no p']
    """
    parts = [part for part in legend if part]
    ended = [f"{part};" for part in parts[:-1]] + parts[-1:]
    kept = [part.replace(" ", "\N{NO-BREAK SPACE}") if len(part) <= room else part for part in ended]
    return textwrap.wrap(" ".join(kept), room, break_long_words=False, break_on_hyphens=False)


def _styled(chart: Chart) -> Chart:
    return (
        chart.configure(font=FONT, background="white", padding=12)
        .configure_view(stroke="#dddddd")
        .configure_axis(
            labelFontSize=12, titleFontSize=13, titleFontWeight="normal", gridColor="#eeeeee", titlePadding=8
        )
        .configure_legend(labelFontSize=12, titleFontSize=12, orient="top", direction="horizontal", symbolSize=90)
        .configure_header(labelFontSize=13, labelFontWeight="bold", titleFontSize=13)
        .configure_title(
            fontSize=15, subtitleFontSize=12, subtitleColor=GREY, anchor="start", offset=12, subtitlePadding=5
        )
    )


def points_by_p(base: Chart, marks: set[str], along: alt.X, up: alt.Y, colour: alt.Color) -> list[Chart]:
    """Draw the points by what their p says: full, hollow, a cross where there is none, full where p is no matter."""
    looks: dict[str, dict[str, Any]] = {
        "none": {"filled": True},
        "full": {"filled": True},
        "hollow": {"filled": False, "fill": "white", "strokeWidth": 1.6},
        "cross": {"filled": False, "shape": "M-1,-1L1,1M-1,1L1,-1", "strokeWidth": 1.8, "size": 40},
    }
    return [
        base.transform_filter(f"datum.mark == '{mark}'")
        .mark_point(**{"size": 58, "opacity": 1, **looks[mark]})
        .encode(along, up, colour)
        for mark in looks
        if mark in marks
    ]


def level_lines(levels: Sequence[Row], values: Sequence[float], width: int, zero: bool) -> list[Chart]:
    """Draw levels without a layer as dotted lines, their names at the right edge, spread so that none overlap."""
    if not levels:
        return []
    reach = (max(values) - min([*values, 0.0] if zero else values)) or 1.0
    ordered = sorted(levels, key=lambda level: (level["facet"], level["y"]))
    floor: dict[str, float] = {}
    said: set[tuple[str, str, float]] = set()
    for level in ordered:
        place = (level["facet"], level["series"], level["y"])
        if place in said:  # the same baseline of another series: one line, one name
            continue
        said.add(place)
        level["label_y"] = max(level["y"], floor.get(level["facet"], float("-inf")))
        floor[level["facet"]] = level["label_y"] + 0.062 * reach
    base = alt.Chart().transform_filter("!isValid(datum.x)")
    rule = base.mark_rule(strokeDash=[2, 3], strokeWidth=1.4, color="#222222").encode(alt.Y("y:Q"))
    named = base.transform_filter("isValid(datum.label_y)")
    text = named.mark_text(align="left", dx=5, fontSize=11, color="#222222")
    return [rule, text.encode(alt.Y("label_y:Q"), alt.Text("series:N"), x=alt.value(width))]


def colour_of(records: Sequence[Row], symbol: str = "circle") -> alt.Color:
    """Return the colour of each series, with a legend where there are several."""
    names = list(dict.fromkeys(record["series"] for record in records))
    return alt.Color("series:N", sort=names, scale=colour_scale(names), legend=series_legend(names, symbol))


def dashes_of(records: Sequence[Row]) -> alt.StrokeDash:
    """Give each series a dash of its own, so that lines that lie on each other are both seen, also in grey."""
    names = list(dict.fromkeys(record["series"] for record in records))
    dashes = DASHES[:1] if len(names) > len(DASHES) else DASHES  # colours in order say more than dashes that repeat
    scale = alt.Scale(domain=names, range=[dashes[i % len(dashes)] for i in range(len(names))])
    return alt.StrokeDash("series:N", sort=names, scale=scale, legend=series_legend(names, "stroke"))


def colour_scale(names: Sequence[str]) -> alt.Scale:
    """Return the palette for these series, in their order; for more than it has colours, viridis from dark to light."""
    if len(names) > len(PALETTE):
        return alt.Scale(domain=list(names), scheme="viridis")
    return alt.Scale(domain=list(names), range=list(PALETTE[: len(names)]))


def series_legend(names: Sequence[str], symbol: str = "circle") -> alt.Legend | None:
    """Return the legend of the series, or none where there is one series only."""
    if len(names) < 2:
        return None
    wide = sum(len(name) + 5 for name in names) > 60
    columns = max(2, 60 // (max(map(len, names)) + 5)) if wide else len(names)
    size = 500 if symbol == "stroke" else 90
    return alt.Legend(title=None, columns=columns, labelLimit=300, symbolOpacity=1, symbolType=symbol, symbolSize=size)


def text_of(row: Row, column: str | None) -> str:
    """Return a record's value of a column as text, or nothing."""
    value = row.get(column) if column else None
    return "" if value is None else str(value)


def short_names(values: Sequence[Any]) -> dict[str, str]:
    """Return each distinct value, in order, with what remains when words that all share are left out.

    >>> short_names(["layer 0", "layer 1", "layer 0"])
    {'layer 0': '0', 'layer 1': '1'}
    >>> short_names(["embedding", "block 1"])
    {'embedding': 'embedding', 'block 1': 'block 1'}
    """
    names = list(dict.fromkeys(str(value) for value in values))
    heads = {re.sub(r"\S+$", "", name) for name in names}
    shared = heads.pop() if len(names) > 1 and len(heads) == 1 else ""
    return {name: name.removeprefix(shared) for name in names}


def without_zero(number: str) -> str:
    """Drop the zero before the decimal point, as there is little room in a cell.

    >>> [without_zero(number) for number in ("0.25", "-0.5", "10.5", "0")]
    ['.25', '-.5', '10.5', '0']
    """
    return re.sub(r"^(-?)0\.", r"\1.", number)


def label_angle(names: Mapping[str, str]) -> int:
    """Return the angle of axis labels: level when they are short."""
    return 0 if max(map(len, names.values()), default=0) <= 4 else -40


def tight_scale(records: Sequence[Row], *, log: bool = False) -> alt.Scale:
    """Return a scale that ends where the records end; a logarithmic one where all are above 0."""
    xs = [record["x"] for record in records]
    kind: Any = {"type": "log"} if log and xs and min(xs) > 0 else {}
    return alt.Scale(domain=[min(xs), max(xs)], nice=False, **kind) if xs else alt.Scale()


def is_dark(value: float, ends: Sequence[float], middle: float | None) -> bool:
    """Tell whether a cell's colour needs white text."""
    span = (ends[1] - ends[0]) or 1.0
    if middle is None:
        return (value - ends[0]) / span > 0.6
    return abs(value - middle) / (span / 2) > 0.65


def interval_words(rows: Sequence[Row], mark: str = "band") -> str:
    """Say what the band or whisker is: the words of the records (`ci_words`), or an interval of their level."""
    words = next((row["ci_words"] for row in rows if row.get("ci_words")), None)
    if words:
        return f"{mark}: {words}"
    level = next((row["ci_level"] for row in rows if row.get("ci_level")), 0.95)
    return f"{mark}: {100 * level:g} % interval"


def p_words(records: Sequence[Row], p: str | None, alpha: float) -> list[str]:
    """Say what filled, hollow and crossed points mean, as far as they occur."""
    if not p:
        return []
    name = "adjusted p" if "adj" in p else "p"
    level = f"{alpha:g}".removeprefix("0")
    words = {"full": f"filled: {name} ≤ {level}", "hollow": f"hollow: {name} > {level}", "cross": "cross: no p"}
    return [text for mark, text in words.items() if any(r["mark"] == mark for r in records)]
