"""The statistics of a style contrast: against loops over pairs, with a calibrated null and planted peaks."""

import itertools
import math

import numpy as np
import pytest

from codecprobe.style_effect import (
    EXHAUSTIVE_UP_TO,
    RANDOM_CHOICES,
    choices,
    neutral_effects,
    parts_of,
    peak_of,
    style_effect,
    text_interval,
)
from probecore.errors import DesignError
from probecore.seeds import generator


def random_kl(seed, texts=5, layers=4, n=8, shift=()):
    """Divergences of lenses that lie at random points: squared distances, equal in layout to real ones.

    Every instruction has a place of its own, common to the texts, and every text adds noise. `shift` moves
    instruction 0 away by so much in each layer.
    """
    rng = generator(seed, "style effect test")
    places = rng.standard_normal((layers, n, 3))
    if len(shift):
        places[:, 0, 0] += np.asarray(shift)
    points = places + 0.3 * rng.standard_normal((texts, layers, n, 3))
    points[:, 0] = 0
    kl = ((points[:, :, :, None] - points[:, :, None]) ** 2).sum(axis=-1) / 2
    return kl * (1 + 0.5 * rng.random(n))[:, None]  # not symmetric, as KL is not


@pytest.mark.parametrize("n_styles", [1, 3])
def test_the_parts_are_means_over_pairs(n_styles):
    kl = random_kl(0)
    roles = choices(8, n_styles, 0)
    style, null = parts_of(kl, roles)
    assert len(roles) == math.comb(8, n_styles) and (roles[0] == (np.arange(8) < n_styles)).all()
    for c in (0, 3, len(roles) - 1):
        chosen = [i for i in range(8) if roles[c, i]]
        rest = [i for i in range(8) if not roles[c, i]]
        for text, layer in ((0, 1), (4, 3)):
            of = kl[text, layer]
            assert style[text, layer, c] == pytest.approx(np.mean([of[a, b] for a in chosen for b in rest]), rel=1e-12)
            among = [of[a, b] for a, b in itertools.permutations(rest, 2)]
            assert null[text, layer, c] == pytest.approx(np.mean(among), rel=1e-12)


def test_the_null_range_is_that_of_each_neutral_against_the_others():
    kl = random_kl(1).mean(axis=0)
    found = neutral_effects(kl, 2)
    for i, own in enumerate(range(2, 8)):
        rest = [j for j in range(2, 8) if j != own]
        for layer in range(4):
            against = np.mean([kl[layer, own, j] for j in rest])
            among = np.mean([kl[layer, a, b] for a, b in itertools.permutations(rest, 2)])
            assert found[layer, i] == pytest.approx(against - among, rel=1e-9, abs=1e-12)


def test_value_and_rise_are_means_over_texts_and_layer_0_is_not_tested():
    kl = random_kl(2)
    found = style_effect(kl, 1)
    by_text = found.style_kl - found.null_kl
    np.testing.assert_allclose(found.effect.value, by_text.mean(axis=0))
    np.testing.assert_allclose(found.rise.value[1:], np.diff(by_text.mean(axis=0)), atol=1e-12)
    low, high = text_interval(by_text)
    half = 2.7764 * by_text.std(axis=0, ddof=1) / np.sqrt(5)  # t with 4 degrees of freedom
    np.testing.assert_allclose(high - low, 2 * half, rtol=1e-4)
    assert found.effect.value[0] == 0
    assert np.isnan(found.effect.p_value[0]) and np.isnan(found.effect.p_adjusted[0])


def test_p_is_the_share_of_instructions_that_reach_the_style():
    """One style of 8: 8 choices, and p counts the instructions with at least the style's effect."""
    kl = random_kl(3)
    found = style_effect(kl, 1)
    style, null = parts_of(kl.mean(axis=0, keepdims=True), np.eye(8))
    effects = (style - null)[0]
    for layer in range(1, 4):
        assert found.effect.p_value[layer] == (effects[layer] >= effects[layer, 0] - 1e-9).mean()
    assert found.n_choices == 8 and found.smallest_p == 1 / 8
    assert (found.effect.p_adjusted[1:] >= found.effect.p_value[1:]).all()


def test_p_is_calibrated_over_layers_when_the_style_is_one_more_neutral():
    """400 worlds, 20 instructions: some layer is called below .05 in at most 5 % (1 of 20 choices), sd .011.

    Texts as units would not do: the places of two fixed instructions differ, so a sign-flip over texts rejects
    nearly always.
    """
    smallest = [
        np.nanmin(style_effect(random_kl(seed, texts=3, n=20), 1, n_bootstrap=0).effect.p_adjusted)
        for seed in range(400)
    ]
    rejected = np.mean(np.array(smallest) <= 0.05)
    assert 0.01 <= rejected <= 0.05 + 3 * 0.011


def test_a_planted_layer_is_found_with_an_interval_on_it():
    found = style_effect(random_kl(4, texts=6, n=24, shift=(0, 0, 6, 2)), 1)
    assert found.peak is not None and found.peak_of_rise is not None
    assert (found.peak.layer, found.peak.ci_low, found.peak.ci_high, found.peak.share) == (2, 2, 2, 1.0)
    assert found.peak_of_rise.layer == 2
    assert found.effect.p_adjusted[2] == pytest.approx(1 / 24)
    assert found.effect.null_high[2] < found.effect.ci_low[2]


def test_several_wordings_make_smaller_p_possible():
    kl = random_kl(5, n=10)
    kl[:, 1:, :3, 3:] += 8
    kl[:, 1:, 3:, :3] += 8
    found = style_effect(kl, 3)
    assert found.n_choices == math.comb(10, 3)
    assert found.effect.p_adjusted[1:] == pytest.approx(1 / math.comb(10, 3))
    assert math.comb(30, 5) > EXHAUSTIVE_UP_TO
    drawn = choices(30, 5, 0)
    assert len(drawn) == RANDOM_CHOICES + 1 and (drawn.sum(axis=1) == 5).all()
    assert (drawn[0] == (np.arange(30) < 5)).all() and np.array_equal(drawn, choices(30, 5, 0))


def test_the_peak_is_the_first_of_equals_and_wide_where_texts_disagree():
    weights = generator(0, "peak test").multinomial(6, np.full(6, 1 / 6), size=500) / 6
    plateau = np.tile([0.0, 0.0, 2.0, 2.0 + 1e-13, 1.0], (6, 1))
    peak = peak_of(plateau, weights)
    assert peak is not None and (peak.layer, peak.ci_low, peak.ci_high) == (2, 2, 2)
    split = np.tile([0.0, 1.0, 0.0, 0.0], (6, 1))
    split[:3] = [0.0, 0.0, 0.0, 1.0 + 1e-3]
    wide = peak_of(split, weights)
    assert wide is not None and (wide.ci_low, wide.ci_high) == (1, 3) and 0.3 < wide.share < 0.8
    assert peak_of(-plateau, weights) is None and peak_of(np.zeros((6, 3)), weights) is None
    alone = peak_of(plateau[:1], weights[:, :1])
    assert alone is not None and alone.ci_low is None


def test_one_text_has_no_interval_and_two_neutrals_are_needed():
    found = style_effect(random_kl(6, texts=1), 1)
    assert np.isnan(found.effect.ci_low).all() and found.effect.p_value[1] > 0
    with pytest.raises(DesignError, match="2 neutral instructions beside it; got 1 and 1"):
        style_effect(random_kl(6, n=2), 1)
