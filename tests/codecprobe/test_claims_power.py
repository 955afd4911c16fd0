"""Power of a design: calibrated without an effect, rising with it, larger for larger studies, kept in the cache."""

import numpy as np
import pytest

from codecprobe import power as power_module
from codecprobe.power import EFFECTS, Power, design_power
from probecore.errors import DesignError
from probecore.store import ArrayCache


def design(n_speakers: int, clips: int = 5, sessions: int = 3):
    speakers = [f"s{i}" for i in range(n_speakers) for _ in range(clips)]
    return speakers, [f"c{k % sessions}" for _ in range(n_speakers) for k in range(clips)]


@pytest.fixture(scope="module")
def small() -> Power:
    return design_power(*design(5), 2, n_studies=40)


def test_without_an_effect_a_study_rejects_as_often_as_it_should(small: Power) -> None:
    """At most .05 + 4 sqrt(.05 * .95 / 40) = .19 of 40 studies, accuracy near 1 / 5."""
    assert small.share[0] <= 0.19
    assert small.accuracy[0] == pytest.approx(0.2, abs=0.06)


def test_power_and_accuracy_rise_with_the_effect(small: Power) -> None:
    assert (np.diff(small.accuracy) > -0.02).all()
    assert small.share[-1] > small.share[0] + 0.5


def test_more_speakers_find_the_same_effect_more_often(small: Power, monkeypatch) -> None:
    """At a third effect, 5 speakers find little; 10 speakers, over as many layers, more."""
    monkeypatch.setattr(power_module, "EFFECTS", (0.0, 0.45))
    large = design_power(*design(10), 2, n_studies=40)
    assert large.share[1] > small.share[EFFECTS.index(0.45)]


def test_power_is_interpolated_and_not_extrapolated() -> None:
    power = Power(np.array([0.1, 0.2, 0.4]), np.array([0.0, 0.4, 1.0]), 80)
    assert power.at(0.3) == pytest.approx(0.7)
    assert power.at(0.2) == pytest.approx(0.4)
    assert power.at(0.5) is None
    assert power.at(0.05) is None


def test_a_design_that_gives_no_p_has_no_power() -> None:
    with pytest.raises(DesignError, match="no power without a p"):
        design_power(*design(3, sessions=1), 2, n_studies=1)


def test_the_cache_gives_the_same_numbers_and_knows_designs_apart(tmp_path, monkeypatch) -> None:
    store = ArrayCache(tmp_path)
    first = design_power(*design(4, 2, 2), 1, n_studies=2, cache=store)
    monkeypatch.setattr(power_module, "_studies", lambda *_: (0.5, 0.5))
    again = design_power(*design(4, 2, 2), 1, n_studies=2, cache=store)
    assert again.share.tolist() == first.share.tolist()
    other = design_power(*design(4, 2, 2), 1, n_studies=2, seed=1, cache=store)
    assert other.share.tolist() == [0.5] * len(EFFECTS)
