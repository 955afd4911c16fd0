"""The pictures of a report: one function per kind of chart, from records to an Altair chart.

Conventions. Colours are those of Okabe and Ito (2008), told apart by colour-blind readers; a band, a whisker is the
interval that the records carry. A filled point has an adjusted p of at most `alpha`, a hollow one does not, a cross has
no p. Every option is the name of a column, a title or a number, so that a `Figure` stays a description in plain JSON.
What a chart cannot show it says in its subtitle. Curves are in `probecore.report.curves`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

from probecore.errors import InputError, shorten
from probecore.report.curves import layer_profile, lines
from probecore.report.panels import (
    GREY,
    Chart,
    colour_of,
    colour_scale,
    interval_words,
    is_dark,
    label_angle,
    lay_out,
    series_legend,
    short_names,
    text_of,
    without_zero,
)
from probecore.report.table import format_number, heading, places_for
from probecore.results import Row

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")


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
        {
            "x": row[x],
            "y": row[y],
            "series": text_of(row, series),
            "facet": text_of(row, facet),
            "item": text_of(row, "item"),
        }
        for row in rows
        if row.get(x) is not None and row.get(y) is not None
    ]
    names = list(dict.fromkeys(record["series"] for record in records))
    colour = colour_of(records)
    shape = alt.Shape(
        "series:N",
        sort=names,
        scale=alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in range(len(names))]),
        legend=series_legend(names),
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
    return lay_out([points], records, facet, columns, size, size, title, [], own_axes=True)


def heatmap(
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    value: str,
    text: str | None = None,
    facet: str | None = None,
    x_title: str = "",
    y_title: str = "",
    value_title: str = "",
    middle: float | None = None,
    columns: int = 2,
    title: str = "",
) -> Chart:
    """Draw a value per cell, written into it where there is room; `middle` makes the colours diverge around it.

    text : column of what is written into the cells in place of the value.
    """
    across, down = (short_names([row[name] for row in rows]) for name in (x, y))
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
            "text": text_of(row, text) if text else _cell(row.get(value), fewer),
            "dark": row.get(value) is not None and is_dark(row[value], ends, middle),
            "facet": text_of(row, facet),
        }
        for row in rows
    ]
    longest = max((len(str(r["text"])) for r in records), default=0)
    side = 28 if longest <= 3 else 34 if not text else min(90, 10 + 6 * max(4, longest))
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
                axis=alt.Axis(labelAngle=label_angle(across)),
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
    return lay_out(parts, records, facet, columns, side * len(across), 26 * len(down), title, [])


def _cell(value: float | None, places: int | None) -> str:
    return "—" if value is None else without_zero(format_number(value, places))


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
            "series": text_of(row, series),
            "facet": text_of(row, facet),
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
        alt.X("value:Q", title=axis, axis=alt.Axis(tickCount=6)),
        alt.X2("reference:Q"),
        down,
        *split,
        colour_of(records),
    )
    dark = alt.Color("series:N", scale=colour_scale(names), legend=None)
    whisker = base.mark_rule(strokeWidth=1.8).encode(alt.X("low:Q", title=axis), alt.X2("high:Q"), down, *split, dark)
    point = base.mark_point(filled=True, size=42, opacity=1).encode(alt.X("value:Q", title=axis), down, *split, dark)
    zero = base.mark_rule(color=GREY).encode(alt.XDatum(reference))
    legend = [interval_words(rows, "whisker") if any(r["low"] is not None for r in records) else ""]
    height = row_height * len(labels)
    return lay_out(
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
