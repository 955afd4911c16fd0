"""The pictures of a report: one function per kind of chart, from records to an Altair chart.

Conventions. Colours are those of Okabe and Ito (2008), told apart by colour-blind readers; a band, a whisker is the
interval that the records carry. A filled point has an adjusted p of at most `alpha`, a hollow one does not, a cross has
no p. In `layer_profile` a record whose x is null is a level without a layer (a baseline): a labelled dotted line. Every
option is the name of a column, a title or a number, so that a `Figure` stays a description in plain JSON. What a chart
cannot show it says in its subtitle.
"""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt

from probecore.errors import InputError, shorten
from probecore.report.table import format_number, heading, places_for
from probecore.results import Row

Chart: TypeAlias = Any  # altair's charts share no base class that a type checker can use
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F4F24", "#222222")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
GREY = "#666666"
FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
PANEL_HEIGHT = 270


def layer_profile(
    rows: Sequence[Row],
    *,
    x: str = "layer",
    y: str = "accuracy",
    low: str = "ci_low",
    high: str = "ci_high",
    series: str | None = None,
    facet: str | None = None,
    chance: str | None = "chance",
    p: str | None = "p_adjusted",
    alpha: float = 0.05,
    x_title: str = "Layer",
    y_title: str = "Accuracy",
    zero: bool | None = None,
    columns: int = 2,
    title: str = "",
) -> Chart:
    """Draw a value per layer: line and points per series, its interval as a band, chance as a dashed line.

    zero : whether the axis starts at 0; None leaves it out when all that is drawn lies in the upper part of it.
    """
    shown = [row for row in rows if row.get(y) is not None]
    short = _short_names([row[x] for row in shown if row.get(x) is not None])
    records = [
        {
            "x": short.get(str(row.get(x))),
            "y": row[y],
            "low": row.get(low),
            "high": row.get(high),
            "series": _name(row, series),
            "facet": _name(row, facet),
            "chance": row.get(chance) if chance else None,
            "mark": "none" if not p else "cross" if row.get(p) is None else "full" if row[p] <= alpha else "hollow",
        }
        for row in shown
    ]
    layered = [record for record in records if record["x"] is not None]
    levels = [record for record in records if record["x"] is None]
    drawn = [record[k] for record in records for k in ("y", "low", "high", "chance") if record[k] is not None]
    zero = min(drawn, default=0) < 0.4 * max(drawn, default=0) if zero is None else zero
    axis = alt.Axis(labelAngle=_angle(short), grid=False)
    along = alt.X("x:O", sort=list(short.values()), title=x_title, axis=axis)
    up = alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=zero))
    colour = _colour(layered)
    base = alt.Chart().transform_filter("isValid(datum.x)")
    width = max(440 if facet is None else 240, 22 * len(short))
    parts = [base.mark_area(opacity=0.15).encode(along, alt.Y("low:Q", title=y_title), alt.Y2("high:Q"), colour)]
    if any(record["chance"] is not None for record in records):
        dashed = base.mark_line(strokeDash=[6, 4], strokeWidth=1.2, color=GREY)
        parts.append(dashed.encode(along, alt.Y("chance:Q", title=y_title), alt.Detail("series:N")))
    parts.append(base.mark_line(strokeWidth=1.8).encode(along, up, colour))
    parts += _points(base, {mark for r in layered if (mark := r["mark"])}, along, up, colour)
    parts += _levels(levels, drawn, width, zero)
    legend = [_interval_words(rows) if any(r["low"] is not None for r in records) else ""]
    legend += ["dashed: chance" if any(r["chance"] is not None for r in records) else "", *_p_words(layered, p, alpha)]
    return _panels(parts, records, facet, columns, width, PANEL_HEIGHT, title, legend)


def lines(
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    low: str = "ci_low",
    high: str = "ci_high",
    series: str | None = None,
    facet: str | None = None,
    reference: float | None = None,
    x_title: str = "",
    y_title: str = "",
    zero: bool = False,
    columns: int = 3,
    title: str = "",
) -> Chart:
    """Draw curves over a number (token, strength, step), one line per series with its interval as a band."""
    records = [
        {
            "x": row[x],
            "y": row[y],
            "low": row.get(low),
            "high": row.get(high),
            "series": _name(row, series),
            "facet": _name(row, facet),
        }
        for row in rows
        if row.get(x) is not None and row.get(y) is not None
    ]
    whole = all(isinstance(record["x"], int) for record in records)
    along = alt.X(
        "x:Q",
        title=x_title or heading((x,)),
        axis=alt.Axis(tickMinStep=1) if whole else alt.Axis(),
        scale=_tight(records),
    )
    up = alt.Y("y:Q", title=y_title or heading((y,)), scale=alt.Scale(zero=zero))
    colour = _colour(records)
    base = alt.Chart()
    parts = [
        base.mark_area(opacity=0.15).encode(
            along, alt.Y("low:Q", title=y_title or heading((y,))), alt.Y2("high:Q"), colour
        )
    ]
    parts.append(base.mark_line(strokeWidth=2).encode(along, up, colour))
    if reference is not None:
        parts.append(base.mark_rule(strokeDash=[6, 4], color=GREY).encode(alt.YDatum(reference)))
    if len({record["x"] for record in records}) <= 12:
        parts.append(base.mark_point(size=40, filled=True, opacity=1).encode(along, up, colour))
    legend = [_interval_words(rows) if any(r["low"] is not None for r in records) else ""]
    return _panels(parts, records, facet, columns, 440 if facet is None else 260, PANEL_HEIGHT, title, legend)


def scatter(
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    series: str | None = None,
    facet: str | None = None,
    x_title: str = "",
    y_title: str = "",
    columns: int = 3,
    title: str = "",
) -> Chart:
    """Draw one point per item; every panel has its own axes, and a series has a colour and a shape."""
    records = [
        {"x": row[x], "y": row[y], "series": _name(row, series), "facet": _name(row, facet), "item": _name(row, "item")}
        for row in rows
        if row.get(x) is not None and row.get(y) is not None
    ]
    names = list(dict.fromkeys(record["series"] for record in records))
    colour = _colour(records)
    shape = alt.Shape(
        "series:N",
        sort=names,
        scale=alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in range(len(names))]),
        legend=None if len(names) < 2 else _legend(names),
    )
    points = (
        alt.Chart()
        .mark_point(size=46, opacity=0.75, filled=True)
        .encode(
            alt.X("x:Q", title=x_title or heading((x,)), scale=alt.Scale(zero=False)),
            alt.Y("y:Q", title=y_title or heading((y,)), scale=alt.Scale(zero=False), axis=alt.Axis(labelFlush=True)),
            colour,
            shape,
            tooltip=["item:N", "series:N"],
        )
    )
    size = 340 if facet is None else 240
    return _panels([points], records, facet, columns, size, size, title, [], own_axes=True)


def heatmap(
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    value: str,
    facet: str | None = None,
    x_title: str = "",
    y_title: str = "",
    value_title: str = "",
    middle: float | None = None,
    columns: int = 2,
    title: str = "",
) -> Chart:
    """Draw a value per cell, written into it where there is room; `middle` makes the colours diverge around it."""
    across, down = (_short_names([row[name] for row in rows]) for name in (x, y))
    values = [row[value] for row in rows if row.get(value) is not None]
    reach = max((abs(v - middle) for v in values), default=0.0) if middle is not None else 0.0
    ends = [middle - reach, middle + reach] if middle is not None else [min(values, default=0), max(values, default=1)]
    places = places_for(values)
    fewer = None if places is None else min(places, 2)
    records = [
        {
            "x": across[str(row[x])],
            "y": down[str(row[y])],
            "value": row.get(value),
            "text": "—" if row.get(value) is None else _without_zero(format_number(row[value], fewer)),
            "dark": row.get(value) is not None and _is_dark(row[value], ends, middle),
            "facet": _name(row, facet),
        }
        for row in rows
    ]
    side = 34 if max((len(str(r["text"])) for r in records), default=0) > 3 else 28
    written = len(across) <= 32 and len(down) <= 40
    scheme: Any = "blues" if middle is None else "blueorange"
    cells = (
        alt.Chart()
        .mark_rect(invalid="filter")
        .encode(
            alt.X(
                "x:O",
                sort=list(across.values()),
                title=x_title or heading((x,)),
                axis=alt.Axis(labelAngle=_angle(across)),
            ),
            alt.Y("y:O", sort=list(down.values()), title=y_title or heading((y,)), axis=alt.Axis(labelLimit=260)),
            alt.Color(
                "value:Q",
                title=value_title or heading((value,)),
                scale=alt.Scale(scheme=scheme, domain=ends),
                legend=alt.Legend(orient="right", gradientLength=min(180, max(80, side * len(down)))),
            ),
        )
    )
    parts = [cells]
    if written:
        ink = alt.condition("datum.dark", alt.value("white"), alt.value("#222222"))
        parts.append(
            alt.Chart()
            .mark_text(fontSize=11)
            .encode(
                alt.X("x:O", sort=list(across.values())),
                alt.Y("y:O", sort=list(down.values())),
                alt.Text("text:N"),
                color=ink,
            )
        )
    return _panels(parts, records, facet, columns, side * len(across), 26 * len(down), title, [])


def bars_with_intervals(
    rows: Sequence[Row],
    *,
    label: str,
    value: str = "value",
    low: str = "ci_low",
    high: str = "ci_high",
    series: str | None = None,
    facet: str | None = None,
    reference: float = 0.0,
    value_title: str = "",
    label_title: str = "",
    columns: int = 2,
    title: str = "",
) -> Chart:
    """Draw values side by side: a bar from `reference`, its interval as a whisker, one row per label and series."""
    records = [
        {
            "label": str(row[label]),
            "value": row[value],
            "reference": reference,
            "low": row.get(low),
            "high": row.get(high),
            "series": _name(row, series),
            "facet": _name(row, facet),
        }
        for row in rows
        if row.get(value) is not None
    ]
    labels = list(dict.fromkeys(record["label"] for record in records))
    names = list(dict.fromkeys(record["series"] for record in records))
    row_height = 14 * max(1, len(names)) + 12
    down = alt.Y("label:N", sort=labels, title=label_title or None, axis=alt.Axis(labelLimit=300))
    split = [alt.YOffset("series:N", sort=names, scale=alt.Scale(paddingInner=0.25))] if len(names) > 1 else []
    axis = value_title or heading((value,))
    base = alt.Chart()
    bar = base.mark_bar(opacity=0.35).encode(
        alt.X("value:Q", title=axis, axis=alt.Axis(tickCount=6)), alt.X2("reference:Q"), down, *split, _colour(records)
    )
    dark = alt.Color("series:N", scale=_scale(names), legend=None)
    whisker = base.mark_rule(strokeWidth=1.8).encode(alt.X("low:Q", title=axis), alt.X2("high:Q"), down, *split, dark)
    point = base.mark_point(filled=True, size=42, opacity=1).encode(alt.X("value:Q", title=axis), down, *split, dark)
    zero = base.mark_rule(color=GREY).encode(alt.XDatum(reference))
    legend = [_interval_words(rows, "whisker") if any(r["low"] is not None for r in records) else ""]
    height = row_height * len(labels)
    return _panels(
        [bar, zero, whisker, point], records, facet, columns, 400 if not facet else 260, height, title, legend
    )


CHARTS: Mapping[str, Callable[..., Chart]] = {
    "layer_profile": layer_profile,
    "lines": lines,
    "scatter": scatter,
    "heatmap": heatmap,
    "bars_with_intervals": bars_with_intervals,
}


def chart_named(name: str) -> Callable[..., Chart]:
    """Return a chart function by name."""
    if name not in CHARTS:
        raise InputError(f"no chart {name!r}; there are {shorten(sorted(CHARTS))}")
    return CHARTS[name]


def _panels(
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
        room_between = 130 if any(record.get("x", 0) is None for record in records) else 70 if own_axes else 24
        chart = chart.facet(
            facet=alt.Facet("facet:N", title=None, sort=order), columns=columns, spacing=room_between, bounds="flush"
        )
        if own_axes:
            chart = chart.resolve_scale(x="independent", y="independent")
    words = "; ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in legend if part)
    room = max(40, min(n_panels, columns) * width // 6)
    head = alt.TitleParams(
        text=textwrap.wrap(title, room) or [""], subtitle=textwrap.wrap(words, room) if words else []
    )
    chart = chart.properties(title=head) if title or words else chart
    return _styled(chart)


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


def _points(base: Chart, marks: set[str], along: alt.X, up: alt.Y, colour: alt.Color) -> list[Chart]:
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


def _levels(levels: Sequence[Row], values: Sequence[float], width: int, zero: bool) -> list[Chart]:
    """Draw levels without a layer as dotted lines, their names at the right edge, spread so that none overlap."""
    if not levels:
        return []
    reach = (max(values) - min([*values, 0.0] if zero else values)) or 1.0
    ordered = sorted(levels, key=lambda level: (level["facet"], level["y"]))
    floor: dict[str, float] = {}
    for level in ordered:
        level["label_y"] = max(level["y"], floor.get(level["facet"], float("-inf")))
        floor[level["facet"]] = level["label_y"] + 0.062 * reach
    base = alt.Chart().transform_filter("!isValid(datum.x)")
    rule = base.mark_rule(strokeDash=[2, 3], strokeWidth=1.4, color="#222222").encode(alt.Y("y:Q"))
    text = base.mark_text(align="left", dx=5, fontSize=11, color="#222222")
    return [rule, text.encode(alt.Y("label_y:Q"), alt.Text("series:N"), x=alt.value(width))]


def _colour(records: Sequence[Row]) -> alt.Color:
    names = list(dict.fromkeys(record["series"] for record in records))
    legend = None if len(names) < 2 else _legend(names)
    return alt.Color("series:N", sort=names, scale=_scale(names), legend=legend)


def _scale(names: Sequence[str]) -> alt.Scale:
    return alt.Scale(domain=list(names), range=[PALETTE[i % len(PALETTE)] for i in range(len(names))])


def _legend(names: Sequence[str]) -> alt.Legend:
    wide = sum(len(name) + 5 for name in names) > 60
    columns = 2 if wide else len(names)
    return alt.Legend(title=None, columns=columns, labelLimit=300, symbolOpacity=1)


def _name(row: Row, column: str | None) -> str:
    value = row.get(column) if column else None
    return "" if value is None else str(value)


def _short_names(values: Sequence[Any]) -> dict[str, str]:
    """Return each distinct value, in order, with what remains when words that all share are left out.

    >>> _short_names(["layer 0", "layer 1", "layer 0"])
    {'layer 0': '0', 'layer 1': '1'}
    >>> _short_names(["embedding", "block 1"])
    {'embedding': 'embedding', 'block 1': 'block 1'}
    """
    names = list(dict.fromkeys(str(value) for value in values))
    heads = {re.sub(r"\S+$", "", name) for name in names}
    shared = heads.pop() if len(names) > 1 and len(heads) == 1 else ""
    return {name: name.removeprefix(shared) for name in names}


def _without_zero(number: str) -> str:
    """Drop the zero before the decimal point, as there is little room in a cell.

    >>> [_without_zero(number) for number in ("0.25", "-0.5", "10.5", "0")]
    ['.25', '-.5', '10.5', '0']
    """
    return re.sub(r"^(-?)0\.", r"\1.", number)


def _angle(names: Mapping[str, str]) -> int:
    return 0 if max(map(len, names.values()), default=0) <= 4 else -40


def _tight(records: Sequence[Row]) -> alt.Scale:
    xs = [record["x"] for record in records]
    return alt.Scale(domain=[min(xs), max(xs)], nice=False) if xs else alt.Scale()


def _is_dark(value: float, ends: Sequence[float], middle: float | None) -> bool:
    span = (ends[1] - ends[0]) or 1.0
    if middle is None:
        return (value - ends[0]) / span > 0.6
    return abs(value - middle) / (span / 2) > 0.65


def _interval_words(rows: Sequence[Row], mark: str = "band") -> str:
    level = next((row["ci_level"] for row in rows if row.get("ci_level")), 0.95)
    return f"{mark}: {100 * level:g} % interval"


def _p_words(records: Sequence[Row], p: str | None, alpha: float) -> list[str]:
    if not p:
        return []
    name = "adjusted p" if "adj" in p else "p"
    level = f"{alpha:g}".removeprefix("0")
    words = {"full": f"filled: {name} ≤ {level}", "hollow": f"hollow: {name} > {level}", "cross": "cross: no p"}
    return [text for mark, text in words.items() if any(r["mark"] == mark for r in records)]
