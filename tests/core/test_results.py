"""Results hold JSON types only, whatever they were made of, and cannot be changed behind a reader's back."""

import json
import math

import numpy as np
import pytest

from probecore import Figure, Result
from probecore.results import plain


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(2.0), 2.0),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array([np.nan, np.inf, 1.0]), [None, None, 1.0]),
        (math.nan, None),
        (-math.inf, None),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ({"b", "a"}, ["a", "b"]),
        ({1: np.float64("nan"), "x": {"y": np.arange(2)}}, {"1": None, "x": {"y": [0, 1]}}),
        (2**80, 2**80),
        (True, True),
        ("text", "text"),
        (None, None),
        (range(3), [0, 1, 2]),
    ],
)
def test_plain_values(value: object, expected: object) -> None:
    made = plain(value)
    assert made == expected and type(made) is type(expected)
    assert json.loads(json.dumps(made, allow_nan=False)) == expected


def test_plain_is_plain_already() -> None:
    value = {"a": [1, None, "x", {"b": 0.1}], "c": True}
    assert plain(value) == value and plain(plain(value)) == plain(value)


def test_objects_become_their_text() -> None:
    assert plain({"path": ValueError("x")}) == {"path": "x"}


def test_a_result_is_made_plain_once() -> None:
    row = {"layer": np.str_("layer 0"), "p_value": np.nan, "n": np.int64(3)}
    result = Result("k", (row,), tables={"t": [{"x": np.arange(2)}]}, provenance={"seed": np.int64(0), "shape": (1, 2)})
    assert result.rows == ({"layer": "layer 0", "p_value": None, "n": 3},)
    assert result.tables == {"t": ({"x": [0, 1]},)} and result.provenance == {"seed": 0, "shape": [1, 2]}
    row["n"] = 4
    assert result.rows[0]["n"] == 3


def test_the_json_object_has_its_four_parts_and_full_precision() -> None:
    result = Result("k", ({"value": 1 / 3, "p_value": math.nan, "name": "ä"},), notes=("note",), provenance={"seed": 0})
    record = json.loads(result.to_json())
    assert record == {
        "kind": "k",
        "rows": [{"value": 1 / 3, "p_value": None, "name": "ä"}],
        "notes": ["note"],
        "provenance": {"seed": 0},
    }
    assert "NaN" not in result.to_json() and "ä" in result.to_json()


def test_records_and_frames_of_rows_and_tables() -> None:
    pandas = pytest.importorskip("pandas")
    result = Result("k", ({"a": 1},), tables={"curve": ({"x": 1.5}, {"x": None})})
    assert result.records() == ({"a": 1},) and result.records("curve")[0] == {"x": 1.5}
    assert isinstance(result.to_frame(), pandas.DataFrame)
    assert result.to_frame("curve")["x"].isna().tolist() == [False, True]


def test_printing_a_result_is_its_table() -> None:
    assert "Accuracy" in str(Result("k", ({"accuracy": 0.5},)))


def test_figures_are_compared_by_what_they_say() -> None:
    assert Figure("f", "lines", options={"x": "token"}) == Figure("f", "lines", options={"x": "token"})
