"""Curves of a report: a value by layer, or over a number, with intervals as bands.

Conventions. As in `probecore.report.charts`. In `layer_profile` a record whose x is null is a level without a layer (a
baseline): a labelled dotted line. An interval without one of its ends (a censored mean) has no band: closed at any
number it would say what is not known.
"""

from collections.abc import Sequence

import altair as alt

from probecore.report.panels import (
    GREY,
    Chart,
    colour_of,
    dashes_of,
    interval_words,
    label_angle,
    lay_out,
    level_lines,
    p_words,
    points_by_p,
    short_names,
    text_of,
    tight_scale,
)
from probecore.report.table import heading
from probecore.results import Row

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
    chance_title: str = "chance",
    x_title: str = "Layer",
    y_title: str = "Accuracy",
    zero: bool | None = None,
    columns: int = 2,
    title: str = "",
) -> Chart:
    """Draw a value per layer: line and points per series, its interval as a band, chance as a dashed line.

    chance_title : what the dashed line is called. zero : whether the axis starts at 0; None leaves it out when all that
    is drawn lies in the upper part of it.
    """
    shown = [row for row in rows if row.get(y) is not None]
    short = short_names([row[x] for row in shown if row.get(x) is not None])
    records = [
        {
            "x": short.get(str(row.get(x))),
            "y": row[y],
            **band_ends(row, low, high),
            "series": text_of(row, series),
            "facet": text_of(row, facet),
            "chance": row.get(chance) if chance else None,
            "mark": "none" if not p else "cross" if row.get(p) is None else "full" if row[p] <= alpha else "hollow",
        }
        for row in shown
    ]
    layered = [record for record in records if record["x"] is not None]
    levels = [record for record in records if record["x"] is None]
    drawn = [record[k] for record in records for k in ("y", "low", "high", "chance") if record[k] is not None]
    zero = min(drawn, default=0) < 0.4 * max(drawn, default=0) if zero is None else zero
    axis = alt.Axis(labelAngle=label_angle(short), grid=False)
    along = alt.X("x:O", sort=list(short.values()), title=x_title, axis=axis)
    up = alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=zero))
    colour = colour_of(layered)
    base = alt.Chart().transform_filter("isValid(datum.x)")
    width = max(440 if facet is None else 240, 22 * len(short))
    parts = [base.mark_area(opacity=0.15).encode(along, alt.Y("low:Q", title=y_title), alt.Y2("high:Q"), colour)]
    if any(record["chance"] is not None for record in records):
        dashed = base.mark_line(strokeDash=[6, 4], strokeWidth=1.2, color=GREY)
        parts.append(dashed.encode(along, alt.Y("chance:Q", title=y_title), alt.Detail("series:N")))
    parts.append(base.mark_line(strokeWidth=1.8, strokeJoin="round").encode(along, up, colour))
    parts += points_by_p(base, {mark for r in layered if (mark := r["mark"])}, along, up, colour)
    parts += level_lines(levels, drawn, width, zero)
    legend = [interval_words(rows) if any(r["low"] is not None for r in records) else ""]
    legend += [
        f"dashed: {chance_title}" if any(r["chance"] is not None for r in records) else "",
        *p_words(layered, p, alpha),
    ]
    return lay_out(parts, records, facet, columns, width, PANEL_HEIGHT, title, legend)


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
    log: bool = False,
    columns: int = 3,
    title: str = "",
) -> Chart:
    """Draw curves over a number (token, strength, step), one line per series with its interval as a band.

    log : whether the axis of x is logarithmic.
    """
    records = [
        {
            "x": row[x],
            "y": row[y],
            **band_ends(row, low, high),
            "series": text_of(row, series),
            "facet": text_of(row, facet),
        }
        for row in rows
        if row.get(x) is not None and row.get(y) is not None
    ]
    whole = all(isinstance(record["x"], int) for record in records)
    along = alt.X(
        "x:Q",
        title=x_title or heading((x,)),
        axis=alt.Axis(tickMinStep=1) if whole and not log else alt.Axis(),
        scale=tight_scale(records, log=log),
    )
    up = alt.Y("y:Q", title=y_title or heading((y,)), scale=alt.Scale(zero=zero))
    colour = colour_of(records, "stroke")
    base = alt.Chart()
    parts = [
        base.mark_area(opacity=0.15).encode(
            along, alt.Y("low:Q", title=y_title or heading((y,))), alt.Y2("high:Q"), colour
        )
    ]
    parts.append(base.mark_line(strokeWidth=2, strokeJoin="round").encode(along, up, colour, dashes_of(records)))
    if reference is not None:
        parts.append(base.mark_rule(strokeDash=[6, 4], color=GREY).encode(alt.YDatum(reference)))
    if len({record["x"] for record in records}) <= 12:
        parts.append(base.mark_point(size=40, filled=True, opacity=1).encode(along, up, colour))
    legend = [interval_words(rows) if any(r["low"] is not None for r in records) else ""]
    return lay_out(parts, records, facet, columns, 440 if facet is None else 260, PANEL_HEIGHT, title, legend)


def band_ends(row: Row, low: str, high: str) -> dict[str, float | None]:
    """Return both ends of an interval, or neither."""
    ends = {"low": row.get(low), "high": row.get(high)}
    return ends if None not in ends.values() else {"low": None, "high": None}
