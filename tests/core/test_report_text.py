"""The printed table: no rounding to a claim that does not hold, nothing lost, nothing that depends on the terminal."""

import re

import pytest

from probecore import Result
from probecore.report.table import NONE, format_number, format_p, format_table, places_for
from probecore.report.text import describe, render, terminal_width

REASON = "every speaker has one session, so no assignment of sessions to speakers can be exchanged"
ROWS = (
    {"features": "codes", "layer": "layer 0", "accuracy": 0.1, "ci_low": -0.0004, "ci_high": 0.2, "p_value": 0.5},
    {"features": "codes", "layer": "layer 1", "accuracy": 0.98765, "ci_low": 0.9, "ci_high": 1.0, "p_value": 0.001},
    {
        "features": "length",
        "layer": None,
        "accuracy": 0.3,
        "ci_low": None,
        "ci_high": None,
        "p_value": None,
        "p_note": REASON,
    },
)
RESULT = Result(
    "speaker-probe",
    tuple({**row, "chance": 0.1, "n_items": 50} for row in ROWS),
    notes=("The corpus is synthetic.",),
    provenance={"command": "codecprobe speaker-probe", "seed": 0, "device": "cpu", "versions": {"numpy": "2.1"}},
    title="Speaker probe",
)


def test_the_whole_text() -> None:
    """What a reader sees, to the character: aligned points, one interval cell, a missing p with its reason."""
    lines = str(RESULT).splitlines()
    assert lines[:2] == ["Speaker probe", ""]
    table = [line.rstrip() for line in lines[2:10]]
    rule = "─" * len(table[0])
    assert table == [
        rule,
        "Features  Layer    Accuracy  95 % CI             p  Chance  Items",
        rule,
        "codes     layer 0     0.100  [0.000, 0.200]   .500   0.100     50",
        "          layer 1     0.988  [0.900, 1.000]   .001   0.100     50",
        "",
        "length    —           0.300  —               —ᵃ      0.100     50",
        rule,
    ]
    assert lines[10:] == [
        f"ᵃ {REASON}",
        "",
        "Notes",
        "- The corpus is synthetic.",
        "",
        "Made by: codecprobe speaker-probe; seed 0; cpu; numpy 2.1.",
    ]


@pytest.mark.parametrize(
    ("p", "text"),
    [(1 / 1001, ".001"), (1 / 1000, ".001"), (1 / 10_001, "<.0001"), (1 / 9_999, ".0001"), (0.00094, ".0009"),
     (0.00096, ".001"), (0.0495, ".050"), (0.05, ".050"), (0.0505, ".051"), (0.9995, ">.999"), (0.9994, ".999"),
     (1.0, "1.000"), (1e-300, "<.0001")],
)  # fmt: skip
def test_a_p_value_is_never_0_and_never_1_unless_it_is(p: float, text: str) -> None:
    assert format_p(p) == text


def test_no_p_value_is_printed_as_0() -> None:
    """Over the whole range the printed value is within half a unit of its last digit, or a bound that holds."""
    for exponent in range(0, 4001):
        p = 10 ** (-exponent / 400)
        text = format_p(p)
        if text[0] in "<>":
            assert p < 0.0001 if text == "<.0001" else 0.9995 <= p < 1
        else:
            digits = len(text.split(".")[1])
            assert abs(float(text) - p) <= 0.5 * 10**-digits + 1e-15 and float(text) > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.500"), (9.87654, "9.877"), (12.345, "12.35"), (123.456, "123.5"), (1234.5, "1234"), (0.04567, "0.0457"),
     (0.00123, "0.00123"), (0.000012, "1.2e-05"), (0.0, "0.000"), (-0.5, "-0.500"), (-1234.56, "-1235"), (7, "7")],
)  # fmt: skip
def test_a_lone_number_keeps_three_digits(value: float, text: str) -> None:
    assert format_number(value, places_for([value])) == text


def test_a_number_that_rounds_to_0_has_no_sign() -> None:
    assert format_number(-0.0001, 3) == "0.000"
    assert format_number(-0.0, None) == "0"
    assert format_number(-0.0006, 3) == "-0.001"


def test_every_value_in_the_table_is_the_record_rounded() -> None:
    """Read the table back: each number is within half a unit in its last place of what the record holds."""
    rows = [
        {"layer": i, "accuracy": i / 17, "ci_low": i / 17 - 0.03, "ci_high": i / 17 + 0.03, "n_items": 50}
        for i in range(17)
    ]
    table = format_table(rows)
    assert [column.heading for column in table.columns] == ["Layer", "Accuracy", "95 % CI", "Items"]
    for row, value, interval in zip(rows, table.columns[1].cells, table.columns[2].cells, strict=True):
        low, high = map(float, interval.strip("[]").split(", "))
        assert (
            max(abs(float(value) - row["accuracy"]), abs(low - row["ci_low"]), abs(high - row["ci_high"]))
            <= 0.0005 + 1e-12
        )


def test_metrics_of_different_size_are_rounded_each_by_itself() -> None:
    """Rows of one metric are rounded alike, so that they can be compared down the column."""
    rows = [
        {"metric": "alpha", "value": 0.31, "ci_low": 0.1, "ci_high": 0.5},
        {"metric": "KL", "value": 1234.5, "ci_low": 9.1, "ci_high": 2000.2},
        {"metric": "KL", "value": 0.25, "ci_low": 0.1, "ci_high": 0.3},
    ]
    value, interval = format_table(rows).columns[1:]
    assert value.cells == ("0.310", "1234.5", "0.2")
    assert interval.cells == ("[0.100, 0.500]", "[9.1, 2000.2]", "[0.1, 0.3]")


def test_an_interval_rounds_as_its_estimate_does() -> None:
    value, interval = format_table([{"gap": 9.99, "gap_low": 8.0, "gap_high": 12.0}]).columns
    assert value.cells == ("9.99",) and interval.cells == ("[8.00, 12.00]",)


def test_two_estimates_each_have_their_interval_and_none_is_mistaken() -> None:
    row = {
        "accuracy": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "adds": 0.1,
        "adds_low": 0.0,
        "adds_high": 0.2,
        "q_value": None,
    }
    row |= {"gap_ci_low": 1.0, "gap_ci_high": 2.0}
    headings = [column.heading for column in format_table([row]).columns]
    assert headings == ["Accuracy", "95 % CI", "Adds", "95 % CI", "q", "Gap 95 % CI"]


def test_the_level_of_the_interval_is_the_record_s() -> None:
    (column,) = format_table([{"ci_low": 0.1, "ci_high": 0.2, "ci_level": 0.9}]).columns
    assert column.heading == "90 % CI"


def test_a_reason_is_said_once_and_marks_every_cell_it_explains() -> None:
    rows = [
        {"layer": 0, "p_value": None, "p_adjusted": None, "p_note": "reason one"},
        {"layer": 1, "p_value": 0.2, "p_adjusted": None, "p_note": "reason two"},
        {"layer": 2, "p_value": None, "p_adjusted": None, "p_note": "reason one"},
        {"layer": 3, "p_value": None, "p_adjusted": None},
    ]
    table = format_table(rows)
    p, adjusted = table.columns[1:]
    assert p.cells == ("—ᵃ", ".200", "—ᵃ", "—") and adjusted.cells == ("—ᵃ", "—ᵇ", "—ᵃ", "—")
    assert table.footnotes == (("ᵃ", "reason one"), ("ᵇ", "reason two"))


def test_a_note_on_a_value_that_exists_is_not_lost() -> None:
    table = format_table([{"layer": 0, "p_value": 0.2, "p_note": "only 5 assignments exist"}])
    assert table.footnotes == (("ᵃ", "only 5 assignments exist"),) and table.columns[1].cells == (".200ᵃ",)


def test_more_reasons_than_letters() -> None:
    rows = [{"layer": i, "p_value": None, "p_note": f"reason {i}"} for i in range(40)]
    table = format_table(rows)
    assert len({mark for mark, _ in table.footnotes}) == 40 and table.columns[1].cells[39].endswith("(40)")


def test_a_column_that_a_record_lacks_is_empty_and_a_null_is_a_dash() -> None:
    (_, b) = format_table([{"a": 1, "b": None}, {"a": 2}, {"a": 3, "b": 0.5}]).columns
    assert b.cells == (NONE, "", "0.500")


def test_nested_values_and_notes_are_no_columns_unless_asked_for() -> None:
    rows = [{"a": True, "curve": [1, 2], "map": {"x": 1}, "p_note": None, "ci_level": 0.95}]
    assert [c.names for c in format_table(rows).columns] == [("a",)]
    assert [c.cells for c in format_table(rows, ["a", "curve", "map"]).columns] == [("yes",), ("1, 2",), ('{"x": 1}',)]


def test_blocks_start_where_the_slowest_text_column_changes() -> None:
    rows = [{"model": m, "category": c, "value": 1.0} for m in "ab" for c in "xyz"]
    assert format_table(rows).starts == (0, 3)
    assert format_table([{"layer": f"layer {i}"} for i in range(5)]).starts == (0,)
    baselines = [
        *({"features": "codes", "layer": i} for i in range(3)),
        *({"features": f, "layer": None} for f in "xyz"),
    ]
    assert format_table(baselines).starts == (0, 3)


def wide_result(n_columns: int = 14) -> Result:
    row = {f"a_rather_long_heading_{i}": 0.1 * i for i in range(n_columns)}
    names = ({"model": f"organization/model-with-a-long-name-{i}", "n_prompts": 40, **row, "last": i} for i in range(3))
    return Result("wide", tuple(names), notes=("word " * 60,))


@pytest.mark.parametrize("width", [120, 100, 80])
def test_lines_stay_within_the_width(width: int) -> None:
    assert max(map(len, render(RESULT, width).splitlines())) <= width
    assert max(map(len, render(wide_result(6), width).splitlines())) <= width


def test_a_column_that_is_folded_away_is_still_said() -> None:
    text = render(wide_result(8), 80)
    assert "In every row:" in text and re.search(r"Prompts\s40", text)


def test_a_long_name_of_a_block_runs_down_its_rows() -> None:
    name = "participation ratio of the states after the last block"
    wide = {f"column_{i}": 0.5 for i in range(7)}
    rows = [{"metric": name, "model": m, **wide} for m in ("base", "aligned", "other")]
    rows += [{"metric": name + ", one row", "model": "base", **wide}]
    lines = render(Result("x", tuple(rows)), 80).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("participation"))
    block = lines[first : lines.index("", first)]
    assert (
        len(block) >= 3
        and [model in line for model, line in zip(("base", "aligned", "other"), block, strict=False)] == [True] * 3
    )
    before_model = [
        line.replace("base", "|").replace("aligned", "|").replace("other", "|").split("|")[0] for line in block
    ]
    assert " ".join(" ".join(before_model).split()).startswith("participation ratio of")
    assert set(name.split()) <= set(" ".join(line.split("0.500")[0] for line in block).split())


def test_numbers_are_never_cut_even_where_there_is_no_room() -> None:
    text = render(Result("x", ({f"n{i}": 0.123456 + i for i in range(20)}, {f"n{i}": 0.5 for i in range(20)})), 40)
    for i in range(10):
        assert f"{0.123456 + i:.3f}" in text


def test_rows_of_detail_are_counted_but_not_shown() -> None:
    rows = ({"metric": "gap", "value": 1.0}, {"metric": "hidden", "value": 2.0, "detail": True})
    text = str(Result("x", rows))
    assert "hidden" not in text and "Detail" not in text
    assert "Rows of detail not shown: 1. --json prints them and --out saves them." in text


def test_a_result_without_rows_says_so() -> None:
    assert "(no rows)" in str(Result("x", ()))


def test_the_text_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not printed to a terminal, the width is fixed, whatever COLUMNS says; and there are no colour codes."""
    before = str(RESULT)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(RESULT) == before and "\x1b" not in before and terminal_width() == 120
    assert not any(line != line.rstrip() for line in before.splitlines())


def test_how_it_was_made_names_hashes_and_the_certificate() -> None:
    made = describe(
        {
            "seed": 1,
            "versions": {"torch": "2.11.0"},
            "codec": {"name": "embedded", "hash": "ab", "certificate": {"batch": True, "lens": {"passed": False}}},
            "models": [
                {"name": "org/a", "revision": "r1", "dtype": "float32"},
                {"name": "org/b", "revision": "r2", "dtype": "float32"},
            ],
            "speakers": ["s1", "s2", "s3", "s4", "s5"],
            "settings": {"split": "session", "window_s": 3.0, "permutations": 999, "strict": True},
            "nothing": None,
        }
    )
    assert made == (
        "Made by: seed 1; torch 2.11.0; codec embedded (hash ab, certificate: 1 of 2 checks passed (not: lens)); "
        "2 models (dtype float32); model org/a (revision r1); model org/b (revision r2); 5 speakers; "
        "settings: split session, window 3 s, permutations 999, strict True."
    )
    assert describe({}) == ""
    assert describe({"certificate": {"summary": "all well"}}) == "Made by: certificate: all well."
