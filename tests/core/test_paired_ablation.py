"""Paired effects of ablations: against brute force, calibrated where nothing happens, honest where data are few."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom

from probecore import InputError
from probecore.ablation.paired import mean_with_interval, pair_weights, paired_effects, ratio_with_interval, t_test

SPEAKERS = np.repeat([f"s{i}" for i in range(8)], 5)


def measured(seed: int, effect: float, n_arms: int = 3, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Items of 8 speakers; each speaker reacts to an ablation in its own way around the effect."""
    rng = np.random.default_rng(seed)
    plain = rng.standard_normal(len(SPEAKERS))
    reaction = effect + spread * np.repeat(rng.standard_normal((n_arms, 8)), 5, axis=1)
    return plain + reaction + 0.3 * rng.standard_normal((n_arms, len(SPEAKERS))), plain


def test_values_are_those_of_plain_numpy():
    values, plain = measured(0, 0.5)
    controls = values - 0.25
    rows = paired_effects(values, plain, controls, clusters=SPEAKERS)
    for row, arm in zip(rows, values, strict=True):
        assert row["value"] == pytest.approx(arm.mean(), abs=1e-12)
        assert row["effect"] == pytest.approx((arm - plain).mean(), abs=1e-12)
        assert row["unablated_value"] == pytest.approx(plain.mean(), abs=1e-12)
        assert row["beyond_control"] == pytest.approx(0.25, abs=1e-12)
        assert row["n_items"] == 40 and row["n_clusters"] == 8


def test_p_equals_the_share_of_all_sign_flips_by_hand():
    values, plain = measured(1, 0.6, n_arms=1)
    means = (values[0] - plain).reshape(8, 5).mean(axis=1)
    flipped = [abs(np.dot(signs, means)) for signs in itertools.product((1, -1), repeat=8)]
    by_hand = np.mean(np.array(flipped) >= abs(means.sum()) - 1e-12)
    assert paired_effects(values, plain, clusters=SPEAKERS)[0]["p_value"] == pytest.approx(by_hand, abs=1e-12)


def test_holm_multiplies_the_smallest_p_by_the_number_of_arms():
    values, plain = measured(2, 3.0)
    rows = paired_effects(values, plain, clusters=SPEAKERS)
    assert [row["p_value"] for row in rows] == [2 / 256] * 3
    assert [row["p_adjusted"] for row in rows] == pytest.approx([6 / 256] * 3)


def test_without_an_effect_p_rejects_as_often_as_it_should_and_intervals_cover():
    """300 worlds, all dependence inside speakers: rejections at .05 and misses in the 99.9 % binomial band around .05.

    Flips of 8 clusters are discrete (steps of 1/128), so the exact level is 12/256 = .047. The interval is t with 7
    degrees of freedom; the bootstrap's error with its factor sqrt(8/7) is that of the t interval up to resampling.
    """
    rejected = missed = 0
    for seed in range(300):
        values, plain = measured(seed, 0.0, n_arms=1)
        row = paired_effects(values, plain, clusters=SPEAKERS, n_bootstrap=400, seed=seed)[0]
        rejected += row["p_value"] <= 0.05
        missed += not row["effect_low"] <= 0 <= row["effect_high"]
    low, high = binom.interval(0.999, 300, 0.05)
    assert low <= rejected <= high and low <= missed <= high


def test_items_of_a_speaker_are_not_independent():
    """Counting 40 items as 40 would reject far too often: the trap that clusters are for."""
    naive = sum(
        stats.ttest_1samp((v - p).ravel(), 0).pvalue <= 0.05 for v, p in (measured(s, 0.0, 1) for s in range(100))
    )
    assert naive > 25


def test_the_interval_is_that_of_speakers_means():
    """With equal numbers of items the mean over items is that of 8 speakers' means: t by hand, bootstrap noise 5 %."""
    values, plain = measured(3, 0.4, n_arms=1)
    row = paired_effects(values, plain, clusters=SPEAKERS, n_bootstrap=20_000)[0]
    means = (values[0] - plain).reshape(8, 5).mean(axis=1)
    half = stats.t.ppf(0.975, 7) * means.std(ddof=1) / np.sqrt(8)
    assert row["effect_high"] - row["effect"] == pytest.approx(half, rel=0.05)


def test_nan_leaves_means_and_counts():
    values, plain = measured(4, 1.0)
    values[0, :5] = np.nan  # the whole first speaker
    values[1] = np.nan
    rows = paired_effects(values, plain, clusters=SPEAKERS)
    assert rows[0]["n_items"] == 35 and rows[0]["n_clusters"] == 7
    assert rows[0]["value"] == pytest.approx(np.nanmean(values[0])) and rows[0]["unablated_value"] == plain[5:].mean()
    assert rows[1]["n_items"] == 0 and np.isnan(rows[1]["value"]) and rows[1]["p_value"] is None
    assert rows[1]["p_note"] == "nothing to compare" and rows[2]["p_adjusted"] is not None


def test_a_control_is_averaged_over_the_items_the_arm_has():
    """Item 0 exists under the control only: it would pull the control's mean away from the items compared."""
    arm, control = np.array([[np.nan, 1, 1, 1, 1, 1]]), np.array([[100.0, 2, 2, 2, 2, 2]])
    (row,) = paired_effects(arm, np.zeros(6), control, clusters=list("abcdef"))
    assert row["control_value"] == 2 and row["beyond_control"] == -1 and row["n_items"] == 5


def test_few_clusters_give_no_p_and_say_so():
    row = paired_effects([[1.0, 2.0, 3.0, 4.0]], np.zeros(4), clusters=["a", "a", "b", "b"])[0]
    assert row["p_value"] is None and row["p_adjusted"] is None and "2 cluster" in row["p_note"]
    one = paired_effects([[1.0, 2.0]], np.zeros(2), clusters=["a", "a"])[0]
    assert one["effect"] == 1.5 and np.isnan(one["effect_low"])


def test_an_untested_measure_has_its_reason_and_is_still_compared_with_control():
    values, plain = measured(5, 2.0)
    row = paired_effects(values, plain, values - 1, clusters=SPEAKERS, untested="a distance")[0]
    assert row["p_value"] is None and row["p_note"] == "a distance" and row["p_control"] == 2 / 256


def test_a_share_keeps_its_interval_inside_0_and_1():
    rng = np.random.default_rng(0)
    values = (rng.random(40) < 0.95).astype(float)
    row = paired_effects(values[None], np.ones(40), clusters=SPEAKERS, share=True)[0]
    assert 0 <= row["ci_low"] < row["value"] < row["ci_high"] <= 1


def test_pairs_are_drawn_with_both_their_clusters():
    partners = np.roll(SPEAKERS, 5)
    weights = pair_weights(SPEAKERS, partners, 500)
    plain = pair_weights(SPEAKERS, None, 500)
    of_partner = plain[:, [int(np.flatnonzero(SPEAKERS == name)[0]) for name in partners]]
    assert np.array_equal(weights, plain * of_partner)
    with pytest.raises(InputError, match="stranger"):
        pair_weights(SPEAKERS, ["stranger"] * 40, 5)


def test_intervals_over_pairs_are_no_narrower_where_both_sides_matter():
    """A value made of A's and B's speaker alike: resampling both must give the wider interval (true error x sqrt 2)."""
    rng = np.random.default_rng(1)
    of = dict(zip(sorted(set(SPEAKERS)), rng.standard_normal(8), strict=True))
    partners = np.roll(SPEAKERS, 15)
    value = np.array([of[a] + of[b] for a, b in zip(SPEAKERS, partners, strict=True)])
    codes = np.unique(SPEAKERS, return_inverse=True)[1]
    widths = [
        np.diff(mean_with_interval(value, codes, pair_weights(SPEAKERS, p, 4000))[1:])[0] for p in (None, partners)
    ]
    assert widths[1] > 1.2 * widths[0]


def test_p_of_pairs_knows_that_both_clusters_differ():
    """300 worlds in which nothing moves on average, but each speaker gives and receives in its own way.

    Flipping the signs of receivers alone rejects far too often; ours at most as often as it should (99.9 % band).
    """
    ours = naive = 0
    partners = np.concatenate([np.roll(SPEAKERS.reshape(8, 5)[:, k], 1 + k) for k in range(5)])
    receivers = np.tile(np.unique(SPEAKERS), 5)
    codes, others = (np.unique(x, return_inverse=True)[1] for x in (receivers, partners))
    for seed in range(300):
        rng = np.random.default_rng(seed)
        value = rng.standard_normal(8)[codes] + 3 * rng.standard_normal(8)[others] + 0.3 * rng.standard_normal(40)
        plain = np.zeros(40)
        paired = paired_effects(value, plain, clusters=receivers, partners=partners, n_bootstrap=300, seed=seed)
        ours += paired[0]["p_value"] <= 0.05
        naive += paired_effects(value, plain, clusters=receivers, n_bootstrap=2, seed=seed)[0]["p_value"] <= 0.05
    assert ours <= binom.ppf(0.9995, 300, 0.05) < naive


def test_pairs_that_all_change_alike_have_no_p_but_a_reason():
    row = paired_effects(np.ones((1, 40)), np.zeros(40), clusters=SPEAKERS, partners=np.roll(SPEAKERS, 5))[0]
    assert row["p_value"] is None and "no spread" in row["p_note"]


def test_a_ratio_is_recovered_and_refused_where_the_whole_is_nothing():
    rng = np.random.default_rng(2)
    codes = np.unique(SPEAKERS, return_inverse=True)[1]
    whole = 2 + 0.5 * rng.standard_normal(40)
    part = 0.7 * whole + 0.05 * rng.standard_normal(40)
    weights = pair_weights(SPEAKERS, None, 2000)
    ratio, low, high, p = ratio_with_interval(part, whole, codes, weights)
    assert low < 0.7 < high and ratio == pytest.approx(part.mean() / whole.mean()) and high - low < 0.1
    assert np.isnan(ratio_with_interval(part, whole - whole.mean(), codes, weights)).all()
    assert p < 1e-6
    assert ratio_with_interval(whole, whole, codes, weights)[:3] == pytest.approx((1.0, 1.0, 1.0))
    unrelated = rng.standard_normal(40)
    tested = t_test(unrelated, codes, weights)[0]
    assert ratio_with_interval(unrelated, 50 + 0.1 * whole, codes, weights)[3] == pytest.approx(tested, rel=0.02)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="shapes"):
        paired_effects(np.zeros((2, 3)), np.zeros(4), clusters=["a"] * 4)


def test_one_seed_gives_the_same_numbers():
    values, plain = measured(6, 0.3)
    again = [paired_effects(values, plain, values + 1, clusters=SPEAKERS) for _ in range(2)]
    assert again[0] == again[1]


def test_a_ratio_of_nothing_is_seldom_taken_for_something():
    """300 worlds: the part has mean 0 but both speakers of a pair shape it; at most the 99.9 % band around .05."""
    partners = np.concatenate([np.roll(np.unique(SPEAKERS), 1 + k) for k in range(5)])
    receivers = np.tile(np.unique(SPEAKERS), 5)
    codes, others = (np.unique(x, return_inverse=True)[1] for x in (receivers, partners))
    found = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        part = rng.standard_normal(8)[codes] + rng.standard_normal(8)[others] + 0.3 * rng.standard_normal(40)
        whole = 5 + np.abs(rng.standard_normal(8))[codes] + 0.3 * rng.standard_normal(40)
        weights = pair_weights(receivers, partners, 300, seed)
        found += ratio_with_interval(part, whole, codes, weights)[3] <= 0.05
    assert found <= binom.ppf(0.9995, 300, 0.05)
