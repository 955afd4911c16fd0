"""Activations and labels: checked at the door, read when asked, never changed."""

import numpy as np
import pytest

from probecore import Activations, InputError, Label

VALUES = {"layer 0": np.arange(12.0).reshape(4, 3), "layer 1": np.arange(4.0).reshape(4, 1)}
GROUPS = ["s1", "s1", "s2", "s2"]


def build(**changed: object) -> Activations:
    given = {"values": VALUES, "groups": GROUPS, "labels": {"voice": Label(["x", "x", "y", "y"], units=GROUPS)}}
    return Activations.from_arrays(**{**given, **changed})  # type: ignore[arg-type]


def test_layers_keep_their_order_width_and_values() -> None:
    acts = build()
    assert acts.layers == ("layer 0", "layer 1") and (acts.n_items, acts.n_groups) == (4, 2)
    for name, values in VALUES.items():
        np.testing.assert_array_equal(acts.values(name), values)
    assert acts.items == ("item 0", "item 1", "item 2", "item 3")


def test_a_stack_is_layers_by_items_by_features() -> None:
    stack = np.arange(24.0).reshape(2, 3, 4)
    acts = build(values=stack, groups=["a", "b", "c"], labels={})
    assert acts.layers == ("layer 0", "layer 1")
    np.testing.assert_array_equal(acts.values("layer 1"), stack[1])


def test_nothing_that_is_given_out_can_be_changed() -> None:
    acts = build()
    for array in (acts.values("layer 0"), acts.groups, acts.label("voice").values, acts.label("voice").units):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
    labels = {"voice": Label(GROUPS)}
    kept = build(labels=labels)
    labels.clear()
    assert "voice" in kept.labels


def test_taking_items_takes_everything_that_belongs_to_them() -> None:
    acts = build(
        labels={
            "voice": Label(["x", "y", "x", "y"], units=[1, 2, 3, 4], blocks=GROUPS),
            "f0": Label([1.0, 2.0, 3.0, 4.0], kind="real"),
        }
    )
    for items in (np.array([3, 0]), np.array([True, False, False, True])):
        taken = acts.take(items)
        index = np.arange(4)[items]
        np.testing.assert_array_equal(taken.values("layer 0"), VALUES["layer 0"][index])
        assert taken.groups.tolist() == [GROUPS[i] for i in index] and taken.items == tuple(f"item {i}" for i in index)
        voice = taken.label("voice")
        assert voice.units is not None and voice.units.tolist() == [(1, 2, 3, 4)[i] for i in index]
        assert voice.blocks is not None and voice.blocks.tolist() == taken.groups.tolist()
        assert taken.label("f0").kind == "real"
    np.testing.assert_array_equal(acts.take(np.array([3, 0])).take(np.array([1])).values("layer 1"), [[0.0]])


def test_layers_are_read_only_when_asked_for() -> None:
    asked: list[str] = []

    def read(layer: str) -> np.ndarray:
        asked.append(layer)
        return VALUES[layer]

    acts = Activations(("layer 0", "layer 1"), read, np.array(GROUPS), {}, tuple("abcd"))
    taken = acts.take(np.array([0]))
    assert asked == []
    taken.values("layer 1")
    assert asked == ["layer 1"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": np.ones((2, 3))}, r"shape \(layers, items, features\); got \(2, 3\)"),
        ({"values": {}}, "at least 1 layer"),
        (
            {"values": {"a": np.ones((4, 1)), "b": np.ones((3, 1))}},
            "all layers must hold the same items; got lengths 3, 4",
        ),
        ({"values": {"a": np.full((4, 1), np.nan)}}, "a must be finite"),
        ({"groups": ["a", "b"]}, r"groups must have one entry per item, shape \(4,\)"),
        ({"groups": ["a", "b", "", "d"]}, "groups is missing for items 2"),
        ({"labels": {"voice": Label(["x"])}}, "label 'voice' must have 4 values; got 1"),
        ({"items": ["a"]}, "items must name each of the 4 items; got 1 names"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**changed)


def test_an_unknown_layer_or_label_names_those_there_are() -> None:
    with pytest.raises(InputError, match="no layer 'layer 9'; there are layer 0, layer 1"):
        build().values("layer 9")
    with pytest.raises(InputError, match="no label 'sex'; there are voice"):
        build().label("sex")
    with pytest.raises(InputError, match="there are none"):
        build(labels={}).label("sex")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": ["a", None]}, "a label is missing for items 1"),
        ({"values": ["a", "b"], "units": [1]}, "units must have one entry per item"),
        ({"values": ["a", "b"], "blocks": [1, 2, 3]}, "blocks must have one entry per item"),
        ({"values": [1.0, 2.0], "kind": "ordinal"}, "the kind of a label must be one of class, real; got 'ordinal'"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Label(**arguments)
