"""A sweep against random directions: its rows are their definition, its p are calibrated over places."""

import math

import numpy as np
import pytest

from probecore import InputError
from probecore.ablation.sweep import sweep_effects
from probecore.seeds import generator


def drawn(name, *shape):
    return generator(0, name).standard_normal(shape)


def test_rows_are_their_definition():
    """Slow: counted one by one. float64 means of 8 numbers: 1e-12."""
    values, plain, controls = drawn("v", 3, 8) + 2, drawn("u", 8), drawn("c", 9, 3, 8)
    rows = sweep_effects(values, plain, {"random": controls}, clusters=np.arange(8) // 2)
    for k, row in enumerate(rows):
        effect = math.fsum(values[k] - plain) / 8
        others = [math.fsum(controls[r, k] - plain) / 8 for r in range(9)]
        assert row["effect"] == pytest.approx(effect, abs=1e-12)
        assert row["random_effect"] == pytest.approx(np.mean(others), abs=1e-12)
        assert row["random_low"] == pytest.approx(np.quantile(others, 0.025), abs=1e-12)
        assert row["p_random"] == (1 + sum(abs(o) >= abs(effect) for o in others)) / 10
        assert row["p_random"] <= row["p_random_adjusted"] <= 1
        assert (row["n_items"], row["n_clusters"], row["n_random"]) == (8, 4, 9)


def test_p_over_places_is_calibrated_with_the_choice_of_the_place_inside():
    """400 sweeps in which the change is one more random direction: the smallest adjusted p over 6 places is at most .1
    in a share of .1, within 3.3 binomial errors (.05). Places vary differently, and together.
    """
    rng = generator(0, "sweep null")
    scale = np.array([1.0, 3.0, 0.2, 1.0, 1.0, 10.0])[:, None]
    hits = 0
    for _ in range(400):
        replicate = rng.standard_normal((20, 6, 1)) + rng.standard_normal((20, 1, 1))
        everything = (replicate + 0.1 * rng.standard_normal((20, 6, 5))) * scale
        rows = sweep_effects(everything[0], np.zeros(5), {"c": everything[1:]}, clusters=np.arange(5), n_bootstrap=0)
        hits += min(row["p_c_adjusted"] for row in rows) <= 0.1
    assert abs(hits / 400 - 0.1) < 0.05


def test_what_is_not_there_has_no_value():
    values, plain = drawn("v", 2, 6), drawn("u", 6)
    values[0] = np.nan
    rows = sweep_effects(values, plain, {"a": np.empty((0, 2, 6)), "b": drawn("b", 4, 2, 6)}, clusters=np.arange(6))
    assert rows[0]["p_b"] is None and rows[0]["p_b_note"] == "the effect has no value"
    assert rows[1]["p_a"] is None and rows[1]["p_a_note"] == "no random directions were asked for"
    assert rows[1]["p_b_adjusted"] is not None
    with pytest.raises(InputError, match=r"control 'a' must have shape \(replicates, places, items\)"):
        sweep_effects(values, plain, {"a": plain}, clusters=np.arange(6))
