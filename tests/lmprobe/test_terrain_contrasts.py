"""Contrasts by prompt: exact values, calibrated tests, and the traps (tokens counted as n, EOS, alpha's null)."""

import numpy as np
import pytest
from scipy import stats

from lmprobe.contrast_statistics import (
    alpha,
    between_variance,
    gap,
    log_variance_ratio,
    pooled_variance,
    within_variance,
)
from lmprobe.contrasts import contrast
from lmprobe.entropy import Entropies, effect_rows, gap_rows, variance_rows
from lmprobe.entropy_tables import category_rows, family_interval, token_table
from lmprobe.prompts import Prompts
from probecore.errors import DesignError, InputError
from probecore.stats.effects import cohen_d, welch
from probecore.stats.samples import exchange_test, sign_flip_test
from probecore.stats.variance_ratio import variance_ratio


def prompts_of(categories, families=None):
    n = len(categories)
    ids = tuple(f"p{i}" for i in range(n))
    return Prompts("test", ids, ids, tuple(categories), ids if families is None else tuple(map(str, families)))


def pairs(n):
    return prompts_of(["safe", "risk"] * n, np.repeat(range(n), 2))


def free(n_safe, n_risk):
    return prompts_of(["safe"] * n_safe + ["risk"] * n_risk)


def entropies_of(traces):
    traces = np.asarray(traces, dtype=np.float64)
    return Entropies({"prompt end": traces[:, :1], "own text": traces, "common text": traces}, np.log(1000))


def test_the_standardised_gap_is_cohens_d_and_its_interval_knows_families():
    """Values that families share: d is that of `cohen_d`, and whole families give a longer interval than prompts."""
    from lmprobe.contrast_statistics import standardised_gap
    from probecore.stats.effects import cohen_d

    rng = np.random.default_rng(5)
    families = np.repeat(np.arange(12), 5)
    values = rng.normal(size=12)[families] + 0.3 * rng.normal(size=60)
    names = ["risk" if f % 2 else "safe" for f in families]
    ids = tuple(map(str, range(60)))
    chosen = contrast(
        Prompts("t", ids, ids, tuple(names), tuple(map(str, families))), n_permutations=0, n_bootstrap=500
    )
    d = cohen_d(values[chosen.is_first], values[~chosen.is_first])
    assert chosen.observed(standardised_gap(values)) == pytest.approx(d.value)
    low, high = chosen.interval(standardised_gap(values))
    assert low < d.ci_low and high > d.ci_high


def test_the_gap_is_the_difference_of_means_and_its_sign_is_risk_minus_safe():
    prompts = free(3, 4)
    values = np.array([1.0, 2.0, 3.0, 5.0, 5.0, 6.0, 8.0])
    made = contrast(prompts, n_permutations=50)
    assert made.observed(gap(values)) == 6.0 - 2.0
    assert made.observed(gap(-values)) == -4.0


def test_pairs_are_tested_as_pairs():
    """Few pairs are enumerated: the p must be that of the sign-flip test, exactly."""
    rng = np.random.default_rng(0)
    for n in (6, 7):
        values = rng.normal(size=2 * n) + np.repeat(rng.normal(size=n) * 5, 2)
        made = contrast(pairs(n))
        assert made.paired and made.exhaustive and made.symmetric
        expected = sign_flip_test(values[1::2] - values[::2])
        assert made.p_value(gap(values)) == pytest.approx(expected.p_value, abs=1e-12)
        low, high = made.null_interval(gap(values))
        assert low == pytest.approx(-high, abs=1e-12)


def test_prompts_without_families_are_exchanged_freely():
    rng = np.random.default_rng(1)
    values = rng.normal(size=9)
    made = contrast(free(4, 5))
    assert made.exhaustive and not made.paired
    expected = exchange_test(values[4:], values[:4])
    assert made.p_value(gap(values)) == pytest.approx(expected.p_value, abs=1e-12)


def test_whole_families_are_exchanged_where_they_hold_one_category():
    """6 families of 3 prompts: 20 arrangements, so p cannot be below .1 whatever the 18 prompts say."""
    prompts = prompts_of(["safe"] * 9 + ["risk"] * 9, np.repeat(range(6), 3))
    made = contrast(prompts)
    assert made.labelings.shape[1] == 0 or made.p_value(gap(np.arange(18.0))) is None or (
        made.p_value(gap(np.arange(18.0))) >= 0.1
    )  # fmt: skip
    masks = made.labelings.reshape(6, 3, -1)
    assert (masks == masks[:, :1]).all()


def test_unmatched_families_are_left_out_where_most_are_matched():
    categories = ["safe", "risk"] * 6 + ["risk"] * 2
    families = [*np.repeat(range(6), 2), 6, 7]
    made = contrast(prompts_of(categories, families))
    assert made.left_out == 2 and made.n_prompts == 12 and made.paired
    mostly_single = prompts_of(["safe", "risk"] + ["safe"] * 6 + ["risk"] * 6, [0, 0, *range(1, 13)])
    assert contrast(mostly_single).left_out == 0


def test_resamples_draw_whole_families_and_keep_both_categories():
    made = contrast(pairs(10), n_bootstrap=200)
    drawn = made.resamples.reshape(10, 2, 200)
    assert (drawn[:, 0] == drawn[:, 1]).all() and (made.resamples.sum(0) == 20).all()
    both = contrast(free(4, 7), n_bootstrap=100)
    assert (both.resamples[:4].sum(0) == 4).all() and (both.resamples[4:].sum(0) == 7).all()


def test_refusals():
    with pytest.raises(InputError, match="no prompts of category 'safe'"):
        contrast(prompts_of(["risk"] * 3 + ["neutral"] * 3))
    with pytest.raises(DesignError, match="at least 3 prompts"):
        contrast(free(2, 5))
    with pytest.raises(DesignError, match="at least 2 families"):
        contrast(prompts_of(["safe"] * 3 + ["risk"] * 4, [0, 0, 0, 1, 2, 3, 4]))
    made = contrast(pairs(8), n_permutations=0, n_bootstrap=0)
    row = gap_rows(entropies_of(np.random.default_rng(0).normal(3, 1, (16, 4))), made)[0]
    assert row["p_value"] is None and "permutations" in row["p_note"]
    assert row["ci_low"] is None and "resamples" in row["ci_note"]


def rejections(n_sets, values_of, p_of):
    return np.mean([p_of(values_of(i)) <= 0.05 for i in range(n_sets)])


def test_the_prompt_test_is_calibrated_and_a_token_test_is_not():
    """20 + 20 prompts x 30 tokens, intra-prompt correlation .1, nothing planted.

    400 sets: with a true level of .05 the share of rejections lies within .05 +- 4 sqrt(.05 x .95 / 400) = [.006,
    .094] with probability above .9999; the token-level Welch test rejects .32 (research: .321 +- .02), so above .2.
    """
    rng = np.random.default_rng(3)
    made = contrast(free(20, 20), n_permutations=199, n_bootstrap=0)
    by_prompt = by_token = 0
    for _ in range(400):
        tokens = rng.normal(0, np.sqrt(0.1), (40, 1)) + rng.normal(0, np.sqrt(0.9), (40, 30))
        by_prompt += made.p_value(gap(tokens.mean(1))) <= 0.05
        by_token += stats.ttest_ind(tokens[:20].ravel(), tokens[20:].ravel(), equal_var=False).pvalue <= 0.05
    assert by_prompt / 400 < 0.094
    assert by_token / 400 > 0.2


def test_paired_tests_of_gap_and_spread_are_calibrated_with_large_family_effects():
    """Pairs that share a large family effect, nothing planted: both tests must keep their level (bound as above)."""
    rng = np.random.default_rng(4)
    made = contrast(pairs(20), n_permutations=199, n_bootstrap=0)
    hits = np.zeros(2)
    for _ in range(400):
        values = np.repeat(rng.normal(0, 3, 20), 2) + rng.normal(0, 0.5, 40)
        flat = made.centred(values)
        hits += [
            made.p_value(gap(values)) <= 0.05,
            made.p_value(log_variance_ratio(between_variance(flat))) <= 0.05,
        ]
    assert (hits / 400 < 0.094).all() and (hits > 0).all()


def test_intervals_cover():
    """Gap of 20 pairs: 600 intervals of nominal .95 must cover at least .93 - 2 sqrt(.95 x .05 / 600) = .912.

    Plain percentile intervals of 20 clusters would cover .92 to .93; the expanded ones .95.
    """
    rng = np.random.default_rng(5)
    base = contrast(pairs(20), n_permutations=0, n_bootstrap=500)
    covered = 0
    for _ in range(600):
        values = np.repeat(rng.normal(0, 1, 20), 2) + rng.normal(0, 1, 40) + np.tile([0.0, 0.7], 20)
        low, high = base.interval(gap(values))
        covered += low <= 0.7 <= high
    assert covered / 600 >= 0.93
    wide, narrow = base.interval(gap(values)), base.interval(gap(values), 0.9)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_t_interval_over_families_is_the_textbook_one_for_single_prompts():
    x = np.random.default_rng(6).normal(size=12)
    low, high = family_interval(x, range(12))
    expected = stats.t.interval(0.95, 11, x.mean(), stats.sem(x))
    assert (low, high) == pytest.approx(expected, abs=1e-12)
    assert family_interval(np.repeat(x, 5), np.repeat(range(12), 5)) == pytest.approx(expected, abs=1e-12)


def test_variance_readings_obey_the_law_of_total_variance_and_alpha_its_swap():
    rng = np.random.default_rng(7)
    traces = rng.normal(2, 0.3, (30, 25)) + rng.normal(0, 0.5, (30, 1))
    one = np.ones((30, 1))
    between = traces.mean(1).var()
    assert pooled_variance(traces)(one)[0] == pytest.approx(within_variance(traces)(one)[0] + between, rel=1e-12)
    assert between_variance(traces.mean(1))(one)[0] == pytest.approx(traces.mean(1).var(ddof=1), rel=1e-12)
    made = contrast(free(14, 16), n_permutations=0)
    swapped = contrast(free(14, 16), "safe", "risk", n_permutations=0)
    value = made.observed(alpha(between_variance(traces.mean(1))))
    assert swapped.observed(alpha(between_variance(traces.mean(1)))) == pytest.approx(-value / (1 - value), rel=1e-10)
    safe, risk = traces[:14].mean(1), traces[14:].mean(1)
    assert value == pytest.approx(1 - safe.var(ddof=1) / risk.var(ddof=1), rel=1e-10)


def test_readings_of_alpha_carry_their_nulls_and_a_planted_ratio_is_found():
    """Risk prompts spread twice as wide: alpha = .75, LVR = log 2 = .693; n = 200 a class gives LVR an SE of .05."""
    rng = np.random.default_rng(8)
    means = np.r_[rng.normal(3, 0.2, 200), rng.normal(3, 0.4, 200)]
    made = contrast(free(200, 200), n_permutations=199, n_bootstrap=200)
    rows = variance_rows(entropies_of(means[:, None] + np.zeros((400, 3))), made)
    a1 = next(r for r in rows if r["measure"] == "alpha" and r["reading"] == "A1" and r["mode"] == "own text")
    lvr = next(r for r in rows if r["measure"] == "LVR" and r["reading"] == "A1" and r["mode"] == "own text")
    assert lvr["value"] == pytest.approx(np.log(2), abs=0.2) and lvr["ci_low"] < np.log(2) < lvr["ci_high"]
    assert a1["value"] == pytest.approx(0.75, abs=0.1) and a1["p_value"] == 1 / 200
    assert a1["null_low"] < 0 < a1["null_high"] < a1["value"] and a1["mean_coupled"] is False
    expected = variance_ratio(means[:200], means[200:])
    assert a1["value"] == pytest.approx(expected.alpha, rel=1e-9) and a1["null_f_low"] == expected.null_low
    a3 = next(r for r in rows if r["measure"] == "alpha" and r["reading"] == "A3" and r["mode"] == "own text")
    assert a3["value"] is None and "do not vary" in a3["p_note"]


def test_alpha_moved_by_the_mean_alone_is_flagged():
    """The research's example: equal log-scale jitter, only the mean confidence differs, alpha about .76."""
    rng = np.random.default_rng(9)

    def entropy(scale, n):
        z = rng.normal(0, 1, (n, 1000)) * (scale + 0.3 * rng.normal(0, 1, (n, 1)))
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return -(p * np.log(p + 1e-30)).sum(1)

    made = contrast(free(300, 300), n_permutations=99, n_bootstrap=0)
    for scale, flagged in ((2.0, True), (1.0, False)):
        values = np.r_[entropy(1.0, 300), entropy(scale, 300)]
        rows = variance_rows(entropies_of(values[:, None]), made)
        a1 = next(r for r in rows if r["measure"] == "alpha" and r["mode"] == "own text")
        assert a1["mean_coupled"] is flagged
        assert (a1["value"] > 0.5) is flagged


def test_steps_after_the_end_token_never_count():
    """NaN after the end: nothing may depend on how many steps follow it."""
    rng = np.random.default_rng(10)
    traces = rng.uniform(0.5, 2, (40, 12))
    lengths = rng.integers(4, 12, 40)
    traces[np.arange(12)[None] >= lengths[:, None]] = np.nan
    longer = np.concatenate([traces, np.full((40, 9), np.nan)], axis=1)
    made = contrast(pairs(20), n_permutations=99, n_bootstrap=100)
    short_rows, long_rows = (
        [*gap_rows(e, made), *variance_rows(e, made), *effect_rows(e, made)]
        for e in (entropies_of(traces), entropies_of(longer))
    )
    for one, other in zip(short_rows, long_rows, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():  # sums over other array shapes round differently, by a few 2^-53
            assert other[key] == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value), key
    categories, families = ["safe", "risk"] * 20, [str(i) for i in np.repeat(range(20), 2)]
    assert token_table(traces, categories, families) == token_table(longer, categories, families)
    row = category_rows(entropies_of(longer), categories, families)[2]
    assert row["n_tokens"] == int(lengths[::2].sum()) and row["category"] == "safe"


def test_effects_and_welch_are_those_of_the_core_on_prompt_means():
    rng = np.random.default_rng(11)
    traces = rng.uniform(0, 1, (30, 6))
    made = contrast(free(15, 15), n_permutations=99)
    risk, safe = traces[15:].mean(1), traces[:15].mean(1)
    row = next(r for r in effect_rows(entropies_of(traces), made) if r["metric"] == "Cohen's d, own text")
    expected = cohen_d(risk, safe)
    assert (row["value"], row["ci_low"]) == pytest.approx((expected.value, expected.ci_low))
    gaps = gap_rows(entropies_of(traces), made)
    assert gaps[1]["p_welch"] == pytest.approx(welch(risk, safe).p_value)
    assert gaps[1]["n_prompts"] == 30 and gaps[1]["n_tokens"] == 180
    p = [row["p_value"] for row in gaps]
    assert all(row["p_adjusted"] >= row["p_value"] for row in gaps) and min(p) > 0


def test_equal_entropies_give_no_effect_and_say_why():
    made = contrast(pairs(5), n_permutations=9)
    row = next(r for r in effect_rows(entropies_of(np.ones((10, 3))), made) if r["measure"] == "Cohen's d")
    assert row["value"] is None and "vary" in row["value_note"]
