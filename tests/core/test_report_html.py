"""A saved result: it reads back equal, the page needs nothing else, the same result gives the same bytes."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from probecore import Figure, InputError, Result, load_result
from probecore.report.charts import CHARTS, chart_named
from probecore.report.html import draw, save, to_csv
from probecore.report.panels import PALETTE

SERIES = ("codes", "embeddings")
ROWS = [
    {
        "layer": f"layer {i}", "features": s, "accuracy": 0.1 + 0.05 * i, "ci_low": 0.05 * i, "ci_high": 0.2 + 0.05 * i,
        "chance": 0.1, "p_adjusted": (0.001, 0.4, None)[i], "p_note": "one session" if i == 2 else None,
    }
    for s in SERIES for i in range(3)
]  # fmt: skip
ROWS.append({"layer": None, "features": "clip <length> & more", "accuracy": 0.2, "chance": 0.1, "p_adjusted": None})
TOKENS = [
    {"model": m, "category": c, "token": t, "entropy_nats": t + j, "ci_low": t + j - 0.5, "ci_high": t + j + 0.5}
    for m in ("base", "aligned") for j, c in enumerate(("safe", "risk")) for t in range(1, 4)
]  # fmt: skip
POINTS = [
    {"model": m, "category": c, "pc1": 0.1 * i, "pc2": -i, "item": f"p{i}"}
    for m in "ab"
    for c in "xy"
    for i in range(3)
]
CELLS = [{"true": i, "predicted": j, "share": None if i == j == 0 else (i - j) / 2} for i in range(3) for j in range(3)]
FIGURES = (
    Figure(
        "by layer", "layer_profile", title="Accuracy by layer", caption="A <caption>.", options={"series": "features"}
    ),
    Figure(
        "entropy",
        "lines",
        "tokens",
        "Entropy",
        options={"x": "token", "y": "entropy_nats", "series": "category", "facet": "model"},
    ),
    Figure("pca", "scatter", "points", "PCA", options={"x": "pc1", "y": "pc2", "series": "category", "facet": "model"}),
    Figure("confusion", "heatmap", "cells", "Confusion", options={"x": "predicted", "y": "true", "value": "share"}),
    Figure(
        "effects",
        "bars_with_intervals",
        "tokens",
        "Effects",
        options={"label": "token", "value": "entropy_nats", "series": "category", "facet": "model"},
    ),
)
RESULT = Result(
    "speaker-probe",
    tuple(ROWS),
    notes=("Synthetic <voices>.",),
    provenance={"seed": 0, "versions": {"numpy": "2.1"}, "nested": {"hash": "ab"}},
    columns=("features", "layer", "accuracy", "ci_low", "ci_high", "p_adjusted"),
    tables={
        "tokens": tuple(TOKENS),
        "points": tuple(POINTS),
        "cells": tuple(CELLS),
        "table": ({"a": [1, 2], "b": None},),
    },
    figures=FIGURES,
    title="Speaker <probe>",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RESULT.save(tmp_path_factory.mktemp("report") / "new" / "folder")


def test_what_was_saved_reads_back_equal(folder: Path) -> None:
    assert load_result(folder) == RESULT
    assert load_result(str(folder / "result.json")) == RESULT
    assert str(load_result(folder)) == str(RESULT)


def test_the_folder_holds_every_part(folder: Path) -> None:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    figures = {f"figures/{f.name}.{ending}" for f in FIGURES for ending in ("svg", "png")}
    tables = {"tokens.csv", "points.csv", "cells.csv", "table-table.csv"}
    assert names == {"result.json", "table.csv", "report.html"} | figures | tables
    assert all((folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for name in names if name.endswith("png"))


def test_the_same_result_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = save(load_result(folder), tmp_path)
    for path in folder.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_the_csv_has_full_precision(tmp_path: Path) -> None:
    rows = [
        {"name": 'a "b", c', "value": 1 / 3, "note": None, "list": [1, 2]},
        {"name": "line\nbreak", "extra": 1e-300},
    ]
    (tmp_path / "t.csv").write_text(to_csv(rows))
    with (tmp_path / "t.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [float(read[0]["value"]), float(read[1]["extra"])] == [1 / 3, 1e-300]
    assert read[0]["name"] == 'a "b", c' and read[1]["name"] == "line\nbreak"
    assert read[0]["note"] == "" and json.loads(read[0]["list"]) == [1, 2]


class Page(HTMLParser):
    """Collect tags, attributes and text, and see that every element is closed where it was opened."""

    VOID = ("meta", "br", "img", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [v for k, v in attrs if k == "id"]
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not str(v).startswith("#")]
        assert tag not in ("script", "link", "iframe")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and page.links == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert text.count("<svg ") == len(FIGURES) and len(page.ids) == len(set(page.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)


def test_the_page_says_what_the_terminal_says(folder: Path) -> None:
    page = Page()
    page.feed((folder / "report.html").read_text())
    for part in (
        "Speaker <probe>",
        "Synthetic <voices>.",
        "A <caption>.",
        "clip <length> & more",
        "one session",
        "numpy 2.1",
        "[0.05",
    ):
        assert part in page.text


def test_every_kind_of_chart_is_drawn_here_and_in_full() -> None:
    assert {figure.chart for figure in FIGURES} == set(CHARTS)


def drawn(figure: Figure, folder: Path) -> str:
    return (folder / "figures" / f"{figure.name}.svg").read_text()


def test_the_drawings_show_every_record(folder: Path) -> None:
    """One mark per record: 6 points and 1 level by layer, 12 points of the map, 8 of 9 cells (one has no value)."""
    profile, lines, scatter, heatmap, bars = (drawn(figure, folder) for figure in FIGURES)
    points = re.findall(r'aria-roledescription="point"', profile)
    assert len(points) == 6 and len(re.findall(r'aria-roledescription="rule mark"', profile)) == 1
    assert "clip &lt;length&gt; &amp; more" in profile and "chance" in profile
    assert len(re.findall(r'aria-roledescription="point"', scatter)) == 12
    assert len(re.findall(r'aria-roledescription="rect mark"', heatmap)) == 8 and ">—<" in heatmap
    assert len(re.findall(r'aria-roledescription="line mark"', lines)) == 4
    assert len(re.findall(r'aria-roledescription="bar"', bars)) == 12


def test_a_significant_layer_looks_different_from_one_that_is_not_and_one_without_p(folder: Path) -> None:
    profile = drawn(FIGURES[0], folder)
    points = re.findall(r'<path aria-label="[^>]*roledescription="point"[^>]*>', profile)
    fills = [found[1] if (found := re.search(r'fill="([^"]+)"', point)) else "a cross" for point in points]
    assert sorted(fills) == sorted([*PALETTE[:2], "white", "white", "a cross", "a cross"])


def test_numbers_in_cells_keep_their_digits() -> None:
    rows = [{"x": 0, "y": 0, "v": 10.5}, {"x": 1, "y": 0, "v": -0.25}]
    chart = draw(Figure("f", "heatmap", options={"x": "x", "y": "y", "value": "v"}), Result("k", tuple(rows)))
    texts = {record["text"] for data in chart.to_dict()["datasets"].values() for record in data}
    assert texts == {"10.50", "-.25"}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.name)
def test_a_figure_of_no_records_is_an_empty_chart_not_an_error(figure: Figure) -> None:
    import vl_convert

    empty = Result("k", (), tables={"tokens": (), "points": (), "cells": ()})
    assert "<svg" in vl_convert.vegalite_to_svg(draw(figure, empty).to_json())


def test_text_with_control_characters_is_drawn(tmp_path: Path) -> None:
    """Tokens of language models write them, and XML has none: the drawing library would end the process."""
    cells = tuple({"x": 0, "y": text, "v": 0.5} for text in ("a", "\x1b[31m", "\x00", "\uffff", "\U0001f600"))
    Result("k", cells, figures=(Figure("f", "heatmap", options={"x": "x", "y": "y", "value": "v"}),)).save(tmp_path)
    svg = (tmp_path / "figures" / "f.svg").read_text(encoding="utf-8")
    assert all(text in svg for text in ("\\x1b[31m", "\\x00", "\\uffff", "\U0001f600"))


def test_more_series_than_colours_is_still_drawn() -> None:
    rows = [{"layer": i, "features": f"f{j}", "accuracy": 0.5} for j in range(12) for i in range(2)]
    assert draw(Figure("f", "layer_profile", options={"series": "features"}), Result("k", tuple(rows))).to_dict()


def test_an_unknown_chart_is_refused() -> None:
    with pytest.raises(InputError, match="no chart 'pie'; there are bars_with_intervals, heatmap"):
        chart_named("pie")


def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(InputError, match="is not of an earlier report"):
        save(RESULT, tmp_path)
    assert (tmp_path / "table.csv").read_text() == "mine"
    with pytest.raises(InputError, match="is a file"):
        save(RESULT, tmp_path / "table.csv")


def test_a_report_may_be_written_again_and_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    small = Result("k", ({"a": 1},))
    save(small, tmp_path)
    save(Result("k", ({"a": 2},)), tmp_path)
    assert load_result(tmp_path).rows == ({"a": 2},) and (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a saved result"),
        ("[]", "not a result of format 1"),
        ('{"kind": "x"}', "format 1"),
        ('{"format": 1, "kind": "x"}', "lacks parts of a saved result"),
    ],
)
def test_what_is_not_a_saved_result_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match="no saved result at"):
        load_result(tmp_path)
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_result(tmp_path)
