"""Confounds of the sweep: what initialisation and time do at one weight decay, size and share of the data."""

from dataclasses import replace

import pytest
from planted_members import SMALL, member, point

from lmprobe.grokking.conditions import base_note, conditions
from lmprobe.grokking.confounds import confound_notes, confound_rows
from lmprobe.grokking.spec import grid

BASE = replace(SMALL, weight_decay=1.0)


def test_one_confound_at_a_time_and_nothing_of_another_weight_decay() -> None:
    """Planted: fan-in groks at 1,200 instead of 300 and has 6 directions; the base has 1, 3, 4 along its training."""
    plain = [member(s, 300, last=1400) for s in grid(BASE, seed=[0, 1])]
    other = [member(s, 1200, last=1800) for s in grid(replace(BASE, init="fan-in"), seed=[0, 1])]
    decay = [member(s, 300) for s in grid(replace(BASE, weight_decay=0.1), seed=[0, 1])]
    points = [point(m, since, k95=k, rank99=10) for m in plain for since, k in ((0, 1), (500, 3), (1000, 4))]
    points += [point(m, 500, k95=6, rank99=16) for m in other] + [point(m, 500, k95=50, rank99=60) for m in decay]
    rows = confound_rows(conditions([*plain, *other, *decay]), points, BASE, 500)
    found = {(r["confound"], r["level"], r["metric"]): r["value"] for r in rows}
    assert found["initialisation", "fan-in", "grok step"] == pytest.approx(1200)
    assert found["initialisation", "normal:0.02", "k@95"] == 3 and found["initialisation", "fan-in", "k@95"] == 6
    by_time = [found["steps since grokking", str(since), "k@95"] for since in (0, 500, 1000)]
    assert by_time == [1, 3, 4]
    assert found["steps since grokking", "200", "k@95"] is None  # no state near that time stands in for it
    assert all(row["value"] is None or row["value"] < 50 for row in rows if row["metric"] == "k@95")
    notes = confound_notes(rows)
    assert "at weight decay 1, k@95 by steps since grokking: 1 at 0 (2 of 2 seeds), 3 at 500 (2 of 2 seeds)" in notes[3]
    assert notes[0].startswith("at weight decay 1, grok step by initialisation: 300 at normal:0.02")
    assert "1,200 at fan-in" in notes[0]


def test_conditions_of_a_sweep_are_named_by_what_differs_from_its_base() -> None:
    specs = [
        *grid(BASE, weight_decay=[0.0, 1.0], seed=[0]),
        replace(BASE, layers=2, seed=0, data_seed=0),
        replace(BASE, fraction=0.9),
    ]
    found = conditions([member(s, 300) for s in specs], base=BASE)
    assert [c.name for c in found] == ["WD 0", "base", "2L d64", "fraction 0.9"]
    assert base_note(found, BASE).startswith("base: 1L d64, WD 1, fraction 0.8; every other")
