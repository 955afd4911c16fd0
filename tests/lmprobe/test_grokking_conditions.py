"""Conditions of members: means over seeds with their intervals, rows, and the phase at which members are compared."""

import math

import numpy as np
import pytest
from planted_members import SMALL, member, point

from lmprobe.grokking.conditions import conditions, curve_means, grok_rows, metric_rows
from lmprobe.grokking.means import mean_over_seeds
from lmprobe.grokking.spec import grid
from lmprobe.grokking.trajectory import at_phase, phase_note, steps_of


def test_means_over_seeds_are_t_intervals_and_censoring_takes_the_upper_end_away() -> None:
    """1, 2, 3: mean 2, sd 1, half-width 4.3027 / sqrt(3) (t with 2 degrees of freedom, .975)."""
    mean = mean_over_seeds([1.0, 2.0, 3.0])
    assert mean.value == 2 and mean.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert mean_over_seeds([2.0, 8.0], logarithm=True).value == pytest.approx(4.0)
    bound = mean_over_seeds([5.0, 65.0], n_censored=1)
    assert bound.high is None and "1 of 2" in bound.note
    agreeing = mean_over_seeds([4.0, 4.0])
    assert agreeing.value == 4 and agreeing.low is None and "agree exactly" in agreeing.note
    assert mean_over_seeds([]).value is None and mean_over_seeds([4.0]).low is None


def test_intervals_over_seeds_cover_and_their_p_is_uniform() -> None:
    """2,000 samples of 5 normal values: the interval covers in 95 % (binomial 3.5 sd: 1.7 %), p <= .05 in 5 %."""
    rng = np.random.default_rng(0)
    means = [mean_over_seeds(list(rng.normal(3.0, 2.0, 5))) for _ in range(2000)]
    covered = np.mean([m.low <= 3.0 <= m.high for m in means])
    assert abs(covered - 0.95) < 0.017
    rejected = np.mean([mean_over_seeds(list(rng.normal(0.0, 2.0, 5))).p_value <= 0.05 for _ in range(2000)])
    assert abs(rejected - 0.05) < 0.017


def test_conditions_are_named_by_what_differs_and_say_who_has_not_grokked() -> None:
    specs = grid(SMALL, weight_decay=[0.0, 1.0], seed=[0, 1])
    found = conditions([member(s, 300 if s.weight_decay else None) for s in specs])
    assert [c.name for c in found] == ["WD 0", "WD 1"]
    none, one = grok_rows(found)
    assert none["value"] is None and "2 of 2 have not grokked" in none["value_note"]
    assert (one["value"], one["n_seeds"], one["n_of"]) == (pytest.approx(300), 2, 2)


def test_members_are_compared_at_one_phase_and_a_mismatch_is_said() -> None:
    a, b = (member(s, 300) for s in grid(SMALL, seed=[0, 1]))
    points = [point(a, since, k95=since) for since in (0, 500, 1000)] + [point(b, 1500, k95=9)]
    at = at_phase(points, 500)
    assert [p.since for p in at.values()] == [500, 1500]
    assert phase_note(list(at.values())).startswith("PHASES DIFFER") and not phase_note([at[a.spec.key]])
    assert steps_of(a, 500) == [800] and steps_of(member(SMALL, None), 500) == [2000]
    assert at_phase([point(member(SMALL, None), 0, k95=3)], 0) == {}


def test_a_censored_k_is_the_least_it_can_be_and_stands_beside_its_control() -> None:
    members = [member(s, 300) for s in grid(SMALL, seed=[0, 1])]
    at = {
        m.spec.key: point(m, 500, k95=10, k95_censored=i == 1, random_k95=40, random_k95_censored=True)
        for i, m in enumerate(members)
    }
    row = metric_rows(conditions(members), at, {"k@95": "k95"}, controls={"k95": "random_k95"})[0]
    assert row["value"] == (10 + 64) / 2 and row["ci_high"] is None and row["n_censored"] == 1
    assert row["control"] == 64 and "never fell" in row["control_note"]


def test_curves_are_averaged_over_seeds() -> None:
    rows = [
        {"condition": "a", "op": "add", "removed": "its directions", "k": k, "accuracy": value, "seed": seed}
        for seed, curve in enumerate([[1.0, 0.8], [1.0, 0.6]]) for k, value in enumerate(curve)
    ]  # fmt: skip
    found = curve_means(rows)
    assert [r["accuracy"] for r in found] == [1.0, pytest.approx(0.7)] and found[1]["ci_low"] == 0.0
