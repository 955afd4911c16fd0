"""The checks at the door: what they let in, and the rule, the value and the next step where they do not."""

import numpy as np
import pytest

from probecore import DesignError, InputError, MissingExtraError, ProbeError
from probecore.errors import shorten
from probecore.validation import at_least, codes_of, constant_inside, finite_matrix, one_of, one_per_item


def test_a_finite_matrix_keeps_its_float_type() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        assert finite_matrix(np.ones((2, 3), dtype), "x").dtype == dtype
    for made_of in ([[1, 2], [3, 4]], np.array([[True, False]]), np.ones((1, 1), np.uint8)):
        assert finite_matrix(made_of, "x").dtype == np.float64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(3), r"x must have shape \(items, features\); got shape \(3,\)"),
        (np.ones((1, 2, 3)), r"got shape \(1, 2, 3\)"),
        (np.array([["a"]]), "x must hold numbers; got dtype <U1"),
        (np.ones((1, 1), complex), "must hold numbers"),
        ([[1.0], [np.nan], [np.inf]], "items 1, 2 hold NaN or infinity: leave them out or repair them"),
        (np.full((9, 1), np.nan), "items 0, 1, 2, 3, 4 and 4 more hold"),
    ],
)
def test_what_is_not_a_finite_matrix_is_refused(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        finite_matrix(values, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "b"], r"shape \(3,\); got \(2,\)"),
        ([["a"], ["b"], ["c"]], r"got \(3, 1\)"),
        (np.array(["a", None, "c"], dtype=object), "speaker is missing for items 1: give each item one"),
        ([1.0, np.nan, np.inf], "missing for items 1, 2"),
        (["a", "", "c"], "missing for items 1"),
    ],
)
def test_a_missing_entry_is_refused_with_its_item(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        one_per_item(values, 3, "speaker")  # type: ignore[arg-type]


def test_falsy_entries_are_not_missing() -> None:
    assert one_per_item([0, 0, 1], 3, "x").tolist() == [0, 0, 1]
    assert one_per_item([False, True, False], 3, "x").tolist() == [False, True, False]
    assert one_per_item([0.0, 1.0, -1.0], 3, "x").tolist() == [0.0, 1.0, -1.0]


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "2", True, None])
def test_a_number_below_the_least_or_no_int_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="permutations must be an int of at least 1; got"):
        at_least(value, 1, "permutations")  # type: ignore[arg-type]


def test_a_numpy_int_is_an_int() -> None:
    assert at_least(np.int32(3), 1, "x") == 3 and type(at_least(np.int32(3), 1, "x")) is int


def test_one_of_names_the_choices() -> None:
    assert one_of("ridge", ("ridge", "lda"), "solver") == "ridge"
    with pytest.raises(InputError, match="solver must be one of ridge, lda; got 'svm'"):
        one_of("svm", ("ridge", "lda"), "solver")


def test_codes_stand_for_their_values() -> None:
    values = np.array(["b", "a", "c", "a"])
    codes, names = codes_of(values)
    assert codes.dtype == np.int64 and [names[code] for code in codes] == values.tolist() and names == ["a", "b", "c"]


def test_constant_inside_units() -> None:
    units = np.array([1, 1, 2, 2, 1])
    assert constant_inside(["x", "x", "y", "y", "x"], units)
    assert not constant_inside(["x", "x", "y", "y", "y"], units)
    assert constant_inside(np.array([]), np.array([]))


def test_the_error_tree() -> None:
    assert issubclass(InputError, ValueError) and issubclass(MissingExtraError, ImportError)
    for error in (InputError, DesignError, MissingExtraError):
        assert issubclass(error, ProbeError)
    assert (
        str(MissingExtraError("the codec", "qwen"))
        == "the codec needs the 'qwen' extra: pip install 'codecprobe[qwen]'"
    )


def test_long_lists_stop() -> None:
    assert shorten([]) == "" and shorten(["a"]) == "a"
    assert shorten(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert shorten(range(11)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1 more"
