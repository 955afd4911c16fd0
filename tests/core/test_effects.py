"""Effect sizes, two-sample tests, variance ratios: scipy as oracle, published figures, calibration on known truth.

Rates of R simulated nulls at level .05 are held to the exact 99.9 % binomial band of R, so a right procedure fails a
fixed seed with probability .001 and a procedure with twice the rate is caught.
"""

import math

import numpy as np
import pytest
from scipy import stats

from probecore.errors import DesignError, InputError
from probecore.stats import effects, samples
from probecore.stats.variance_ratio import alpha_null_interval, alpha_p_value, variance_ratio


def band(runs, rate=0.05):
    return stats.binom.ppf([0.0005, 0.9995], runs, rate) / runs


def test_welch_and_d_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 2, 23), rng.normal(0, 1, 17)
    ours, reference = effects.welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    interval = reference.confidence_interval()
    np.testing.assert_allclose(
        [ours.t, ours.df, ours.p_value, ours.ci_low, ours.ci_high],
        [reference.statistic, reference.df, reference.pvalue, interval.low, interval.high],
        rtol=1e-10,
    )
    # d is the pooled t statistic divided by sqrt(n1 n2 / (n1 + n2))
    t = stats.ttest_ind(a, b).statistic
    assert effects.cohen_d(a, b).value == pytest.approx(t / math.sqrt(23 * 17 / 40), rel=1e-12)
    assert effects.cohen_d(b, a).value == -effects.cohen_d(a, b).value


@pytest.mark.parametrize(
    ("d", "low", "high"), [(0.32, -0.31, 0.94), (3.24, 2.28, 4.19), (1.36, 0.66, 2.04), (-1.36, -2.04, -0.66)]
)
def test_d_intervals_of_the_terrain_table(d, low, high):
    e = effects.effect_from_d(d, 20, 20)
    assert (round(e.ci_low, 2), round(e.ci_high, 2)) == (low, high)
    # the defining equation: the observed t is the 97.5 % and 2.5 % quantile at the two ends
    t, per = d * math.sqrt(10), math.sqrt(10)
    np.testing.assert_allclose(stats.nct.cdf(t, 38, [e.ci_low * per, e.ci_high * per]), [0.975, 0.025], atol=1e-8)


def test_d_and_g_intervals_cover_and_g_is_unbiased():
    """5 v 7 normal units, true d = .8, 1500 runs: coverage inside the band of .95, |bias of g| < 4 standard errors."""
    rng = np.random.default_rng(1)
    runs, truth = 1500, 0.8
    covered = 0
    g = np.empty(runs)
    for i in range(runs):
        a, b = rng.normal(truth, 1, 5), rng.normal(0, 1, 7)
        e = effects.cohen_d(a, b)
        covered += e.ci_low <= truth <= e.ci_high
        g[i] = e.value * effects.small_sample_factor(10)
    low, high = band(runs, 0.95)
    assert low <= covered / runs <= high
    assert abs(g.mean() - truth) < 4 * g.std() / math.sqrt(runs) + 0.003  # J is itself good to .002
    d = g / effects.small_sample_factor(10)
    assert d.mean() - truth > 4 * g.std() / math.sqrt(runs) - 0.02  # uncorrected d is .06 too large


def test_hedges_g_is_d_times_j():
    a, b = [1.0, 2.0, 4.0, 4.5], [0.0, 1.0, 1.5]
    d, g = effects.cohen_d(a, b), effects.hedges_g(a, b)
    j = 1 - 3 / (4 * 5 - 1)
    np.testing.assert_allclose([g.value, g.ci_low, g.ci_high], [j * d.value, j * d.ci_low, j * d.ci_high], rtol=1e-14)


def test_nothing_that_varies_is_refused():
    with pytest.raises(DesignError):
        effects.cohen_d([1.0, 1.0], [2.0, 2.0])
    with pytest.raises(DesignError):
        effects.welch([1.0, 1.0], [2.0, 2.0])
    with pytest.raises(DesignError):
        variance_ratio([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(InputError):
        effects.welch([1.0], [2.0, 3.0])
    with pytest.raises(InputError):
        effects.welch([1.0, np.nan], [2.0, 3.0])
    with pytest.raises(DesignError):
        samples.bootstrap_interval(np.mean, [1.0, 2.0], clusters=[["a", "a"]])


def test_wilson_brown_forsythe_mcnemar_are_those_of_scipy():
    for k, n in ((0, 5), (3, 10), (40, 40)):
        reference = stats.binomtest(k, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(effects.wilson_interval(k, n), (reference.low, reference.high), atol=1e-12)
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, 12), rng.normal(5, 3, 19)
    reference = stats.levene(a, b, center="median")
    np.testing.assert_allclose(effects.brown_forsythe(a, b), (reference.statistic, reference.pvalue), rtol=1e-10)
    assert effects.mcnemar_exact(2, 9) == pytest.approx(2 * stats.binom.cdf(2, 11, 0.5))
    assert effects.mcnemar_exact(0, 0) == 1.0


def test_exhaustive_exchanges_equal_brute_force_of_scipy():
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 1, 4), rng.normal(0, 1, 5)

    def difference(x, y, axis):
        return x.mean(axis) - y.mean(axis)

    for alternative in ("two-sided", "greater", "less"):
        ours = samples.exchange_test(a, b, alternative=alternative)
        custom = samples.exchange_test(a, b, lambda x, y: float(x.mean() - y.mean()), alternative=alternative)
        assert ours.exhaustive and ours.n_exchanges == 126 and custom.p_value == ours.p_value
        if alternative != "two-sided":  # scipy doubles the smaller tail; ours counts absolute values
            reference = stats.permutation_test((a, b), difference, vectorized=True, alternative=alternative)
            assert ours.p_value == pytest.approx(reference.pvalue)
    d = rng.normal(0.5, 1, 8)
    reference = stats.permutation_test(
        (d,), lambda x, axis: x.mean(axis), permutation_type="samples", vectorized=True, alternative="greater"
    )
    assert samples.sign_flip_test(d, alternative="greater").p_value == pytest.approx(reference.pvalue)
    assert samples.sign_flip_test(d).smallest_p == 2 / 256


def test_the_smallest_p_is_reached_and_never_zero():
    assert samples.exchange_test([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]).p_value == pytest.approx(2 / 20)
    unequal = samples.exchange_test([7.0, 8.0], [1.0, 2.0, 3.0])
    assert unequal.p_value == unequal.smallest_p == pytest.approx(1 / 10)
    far = samples.exchange_test(np.arange(20) + 100.0, np.arange(20.0), n_exchanges=199)
    assert far.p_value == far.smallest_p == 1 / 200
    assert samples.exchange_test([1.0, 1.0], [1.0, 1.0]).p_value == 1.0
    assert samples.sign_flip_test([0.0, 0.0]).p_value == 1.0


def test_exchange_and_sign_flip_tests_hold_their_level():
    """800 skewed nulls each: rejection rates at .05 in the band; a shifted alternative is found more often than not."""
    rng = np.random.default_rng(4)
    runs, rejected, flipped, found = 800, 0, 0, 0
    for i in range(runs):
        a, b = rng.exponential(1, 9), rng.exponential(1, 12)
        rejected += samples.exchange_test(a, b, n_exchanges=199, seed=i).p_value <= 0.05
        d = rng.standard_t(3, 15)
        flipped += samples.sign_flip_test(d, n_exchanges=199, seed=i).p_value <= 0.05
        found += samples.sign_flip_test(d + 1, n_exchanges=199, seed=i).p_value <= 0.05
    low, high = band(runs)
    assert low <= rejected / runs <= high
    assert low <= flipped / runs <= high
    assert found / runs > 0.5


def test_tokens_counted_as_n_reject_far_too_often_and_prompts_do_not():
    """Trap: 20 prompts x 30 tokens, ICC .1, 600 nulls. Token-level Welch about .32; prompt level inside the band."""
    rng = np.random.default_rng(5)
    runs, by_token, by_prompt = 600, 0, 0
    prompts = np.repeat(np.arange(20), 30)
    for _ in range(runs):
        a, b = (
            (rng.normal(0, math.sqrt(0.1), (20, 1)) + rng.normal(0, math.sqrt(0.9), (20, 30))).ravel() for _ in range(2)
        )
        by_token += effects.welch(a, b).p_value < 0.05
        by_prompt += effects.welch(effects.unit_means(a, prompts)[0], effects.unit_means(b, prompts)[0]).p_value < 0.05
    low, high = band(runs)
    assert low <= by_prompt / runs <= high
    assert by_token / runs > 0.2


def test_bootstrap_interval_resamples_clusters():
    """Clusters of identical values carry G values, not n: the interval is that of the cluster means, drawn alike."""
    rng = np.random.default_rng(6)
    means = rng.normal(0, 1, 12)
    values, clusters = np.repeat(means, 25), np.repeat(np.arange(12), 25)
    whole = samples.bootstrap_interval(np.mean, values, clusters=[clusters], seed=3)
    np.testing.assert_allclose(whole, samples.bootstrap_interval(np.mean, means, seed=3), rtol=1e-12)
    naive = samples.bootstrap_interval(np.mean, values, seed=3, n_resamples=500)
    assert whole[1] - whole[0] > 3 * (naive[1] - naive[0])


def test_bca_agrees_with_scipy():
    """Same estimator, other random numbers, 6000 resamples: ends within 8 % of the width."""
    rng = np.random.default_rng(7)
    a, b = rng.exponential(1, 25), rng.exponential(1.5, 30)

    def ratio(x, y, axis=-1):
        return x.mean(axis=axis) / y.mean(axis=axis)

    low, high = samples.bootstrap_interval(ratio, a, b, method="bca", n_resamples=6000)
    reference = stats.bootstrap((a, b), ratio, n_resamples=6000, method="BCa", rng=np.random.default_rng(0))
    ends = reference.confidence_interval
    assert abs(low - ends.low) < 0.08 * (high - low) and abs(high - ends.high) < 0.08 * (high - low)


def test_alpha_null_is_the_f_distribution():
    """Published: [-1.526, .604] at 20/20, p .828 / .019 / .186; 10,000 simulated nulls cover 95 % +- 1 %."""
    low, high = alpha_null_interval(20, 20)
    assert (round(low, 3), round(high, 3)) == (-1.526, 0.604)
    assert [round(alpha_p_value(a, 20, 20), 3) for a in (0.096, 0.674, 0.462)] == [0.828, 0.019, 0.186]
    rng = np.random.default_rng(8)
    a, b = rng.normal(3, 2, (10_000, 12)), rng.normal(9, 2, (10_000, 30))
    alpha = 1 - a.var(1, ddof=1) / b.var(1, ddof=1)
    low, high = alpha_null_interval(12, 30)
    assert abs(((alpha >= low) & (alpha <= high)).mean() - 0.95) < 0.01


def test_variance_ratio_is_antisymmetric_and_recovers_a_planted_ratio():
    """SD 1 and 2: LVR = log 2; n = 4000 has standard error sqrt(1 / 4000), 4 of them are .063. alpha -> .75."""
    rng = np.random.default_rng(9)
    a, b = rng.normal(10, 1, 4000), rng.normal(10, 2, 4000)
    r, s = variance_ratio(a, b, n_splits=200), variance_ratio(b, a, n_splits=200)
    assert abs(r.lvr.value - math.log(2)) < 0.063 and r.lvr.ci_low <= math.log(2) <= r.lvr.ci_high
    assert abs(r.alpha - 0.75) < 0.04 and not r.mean_coupled
    assert r.p_split == 1 / 201 and r.p_brown_forsythe < 1e-10
    assert s.lvr.value == pytest.approx(-r.lvr.value) and s.alpha == pytest.approx(r.swapped)


def test_split_null_of_normal_samples_is_the_f_null():
    rng = np.random.default_rng(10)
    ends = np.array(
        [
            (r.split_low, r.split_high)
            for r in (variance_ratio(rng.normal(size=20), rng.normal(size=20), seed=i) for i in range(40))
        ]
    ).mean(0)
    np.testing.assert_allclose(ends, alpha_null_interval(20, 20), atol=0.25)


def jittered_entropy(scale, rng, n, vocabulary=1000):
    """Entropies (nats) of softmax(Gaussian logits x a scale that jitters by .3): the same jitter whatever the scale."""
    z = rng.normal(size=(n, vocabulary)) * (scale + 0.3 * rng.normal(size=(n, 1)))
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return -(p * np.log(p + 1e-30)).sum(1)


def test_alpha_moved_by_the_mean_alone_is_flagged():
    """Published: equal jitter, only the mean confidence differs: alpha .760 (scale 1 and 2); nothing planted: .027.

    2000 items a class: the standard error of log(var ratio) is about .05 (kurtosis about 4), so alpha .76 +- .04.
    """
    rng = np.random.default_rng(0)
    safe, risk, same = (jittered_entropy(s, rng, 2000) for s in (1.0, 2.0, 1.0))
    coupled = variance_ratio(safe, risk, upper=math.log(1000), n_splits=100)
    assert abs(coupled.alpha - 0.76) < 0.04 and coupled.mean_coupled
    assert coupled.lvr.sign == 1 and coupled.lvr_logit.sign == -1
    nothing = variance_ratio(safe, same, upper=math.log(1000), n_splits=100)
    assert abs(nothing.alpha) < 0.15 and not nothing.mean_coupled
    few = variance_ratio(safe[:20], risk[:20], upper=math.log(1000), n_splits=100)
    assert few.mean_coupled  # also at the size people use


def test_values_beyond_the_bound_are_refused():
    with pytest.raises(InputError, match="upper"):
        variance_ratio([0.1, 0.2, 0.3], [0.5, 1.5, 0.7], upper=1.0)


def test_paired_difference_interval_covers_and_is_newcombes() -> None:
    """The published example to 4 decimals (docstring); 2000 draws at four truths cover .95 within 4 binomial errors.

    Where most pairs agree the interval is conservative, so only the lower end is bounded there.
    """
    rng = np.random.default_rng(0)
    for truth, exact in (((0.3, 0.4, 0.1, 0.2), True), ((0.1, 0.8, 0.0, 0.1), True), ((0.5, 0.02, 0.02, 0.46), False)):
        drawn = rng.multinomial(60, truth, 2000)
        ends = np.array([effects.paired_difference_interval(*map(int, counts)) for counts in drawn])
        covered = ((ends[:, 0] <= truth[1] - truth[2] + 1e-12) & (ends[:, 1] >= truth[1] - truth[2] - 1e-12)).mean()
        assert covered > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 2000), truth
        assert not exact or covered < 0.95 + 4 * np.sqrt(0.95 * 0.05 / 2000), truth
    low, high = effects.paired_difference_interval(0, 14, 0, 0)
    assert high == 1.0 and 0.6 < low < 0.8, "all changed: the end is not 1 but what 14 of 14 allow"
    assert effects.paired_difference_interval(3, 5, 2, 4) == tuple(
        -v for v in reversed(effects.paired_difference_interval(3, 2, 5, 4))
    )
    with pytest.raises(InputError, match="pairs must be counted"):
        effects.paired_difference_interval(0, 0, 0, 0)
