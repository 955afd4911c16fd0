"""Entropies and counts of codes: closed forms, slow references, and the traps of few frames."""

import numpy as np
import pytest
from reference import codes_reference

from probecore import codebooks
from probecore.errors import InputError


def zipf(size: int) -> np.ndarray:
    p = 1 / np.arange(1, size + 1)
    return p / p.sum()


def exact_entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


@pytest.mark.parametrize("estimator", codebooks.ESTIMATORS)
@pytest.mark.parametrize("counts", [[5, 3, 1, 1, 0, 2], [7], [1, 1, 1, 1], [1000, 1, 0, 0], [12, 12, 12]])
def test_entropies_are_those_of_the_definitions(counts, estimator):
    """Both in double precision: a relative difference of 1e-12 is rounding."""
    reference = codes_reference.entropy(counts, estimator)
    assert float(codebooks.entropy(counts, estimator)) == pytest.approx(reference, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("estimator", codebooks.ESTIMATORS)
def test_many_rows_of_counts_at_once_are_each_row_alone(estimator):
    counts = np.random.default_rng(0).integers(0, 9, (3, 4, 40))
    together = codebooks.entropy(counts, estimator)
    assert together.shape == (3, 4)
    assert together[2, 1] == pytest.approx(float(codebooks.entropy(counts[2, 1], estimator)), rel=1e-13)


def test_zero_counts_add_nothing_and_one_code_has_no_entropy():
    """Trap: log(p + 1e-8). A code without a count changes no digit, and H of one code is 0 and not about 1e-8."""
    for estimator in codebooks.ESTIMATORS:
        padded = codebooks.entropy([5, 3, 0, 0, 2, 0], estimator)
        assert float(padded) == float(codebooks.entropy([5, 3, 2], estimator))
    assert float(codebooks.entropy([40, 0], "plug-in")) == float(codebooks.entropy([40, 0], "miller-madow")) == 0


@pytest.mark.parametrize(
    ("n_frames", "plug_in", "miller_madow"), [(100, 6.62, 7.33), (1000, 9.49, 10.04), (9600, 10.84, 10.99)]
)
def test_bias_of_a_uniform_book(n_frames, plug_in, miller_madow):
    """K = 2,048, truth 11 bits: means over 40 draws against the published single draws.

    A single draw of N = 100 has a spread of about .02 (from the number of coincidences), smaller at more frames: .06.
    """
    rng = np.random.default_rng(0)
    counts = np.stack([np.bincount(rng.integers(0, 2048, n_frames), minlength=2048) for _ in range(40)])
    assert codebooks.entropy(counts, "plug-in").mean() == pytest.approx(plug_in, abs=0.06)
    assert codebooks.entropy(counts, "miller-madow").mean() == pytest.approx(miller_madow, abs=0.11)


@pytest.mark.parametrize("size", [64, 1024])
@pytest.mark.parametrize("shape", ["uniform", "zipf"])
def test_entropies_reach_the_closed_form(size, shape):
    """Uniform log2 K and Zipf -sum p log2 p. The mean over 30 draws of 20 K frames lies within .02 bits of the truth.

    Plug-in is off by (m - 1) / (2 N ln 2) = .036 bits, which is what the corrections remove; what they leave is of the
    order of its square for a uniform book, and some .01 for Zipf, whose rare codes are still seen too seldom.
    """
    p = np.full(size, 1 / size) if shape == "uniform" else zipf(size)
    counts = np.random.default_rng(1).multinomial(20 * size, p, size=30)
    truth = exact_entropy(p)
    for estimator in ("miller-madow", "grassberger"):
        assert codebooks.entropy(counts, estimator).mean() == pytest.approx(truth, abs=0.02)
    assert {codebooks.default_estimator(each) for each in counts} == {"miller-madow"}
    assert truth - 0.045 < codebooks.entropy(counts, "plug-in").mean() < truth - 0.015
    # where every code was seen Chao-Shen has nothing to correct: it is plug-in, so it is not the default there
    assert codebooks.entropy(counts, "chao-shen").mean() == pytest.approx(truth, abs=0.045)


def test_chao_shen_is_nearest_where_most_codes_were_not_seen():
    """The published figures in form: Zipf-like K = 1,024 at N = 100, plug-in and Miller-Madow far below."""
    p = zipf(1024) ** 0.7
    p /= p.sum()
    counts = np.random.default_rng(2).multinomial(100, p, size=200)
    error = {e: abs(codebooks.entropy(counts, e).mean() - exact_entropy(p)) for e in codebooks.ESTIMATORS}
    assert min(error, key=error.__getitem__) == "chao-shen"
    assert error["chao-shen"] < error["miller-madow"] / 2 < error["plug-in"] / 2
    assert codebooks.default_estimator(counts[0]) == "chao-shen"
    assert codebooks.default_estimator(100 * counts[0]) == "miller-madow"


def test_rarefied_codes_are_the_exact_expectation():
    """Against exact fractions of binomial coefficients; lgamma of numbers below 1e4 is good to about 1e-11."""
    counts = [40, 7, 3, 1, 1, 0, 12]
    for n in (1, 2, 10, 63, 64):
        assert float(codebooks.rarefied_codes(counts, n)) == pytest.approx(
            codes_reference.rarefied(counts, n), rel=1e-9
        )
    with pytest.raises(InputError, match="budget of 65 frames"):
        codebooks.rarefied_codes(counts, 65)


def test_use_depends_on_the_frames_and_rarefaction_takes_that_away():
    """Trap: one source at two sample sizes. Codes seen differ by hundreds, rarefied to one budget they agree.

    The rarefied number of codes at 1,000 of N frames has a spread of at most sqrt(K) / 2 = 22 over draws; means of 20.
    """
    rng = np.random.default_rng(3)
    short, long = (rng.multinomial(n, np.full(2048, 1 / 2048), size=20) for n in (1000, 9600))
    assert (long > 0).sum(1).mean() == pytest.approx(2029, abs=3)  # a uniform book seems to have 19 dead codes
    assert (long > 0).sum(1).mean() - (short > 0).sum(1).mean() > 1000
    both = [codebooks.rarefied_codes(counts, 1000).mean() for counts in (short, long)]
    assert both[0] == pytest.approx(both[1], abs=15)


def test_chao1_sees_beyond_what_was_seen_and_stays_below_the_truth():
    counts = np.random.default_rng(4).multinomial(3000, np.full(2048, 1 / 2048), size=30)
    seen, estimate = (counts > 0).sum(1).mean(), codebooks.chao1(counts).mean()
    assert seen < 1600 and 2000 < estimate < 2100
    assert float(codebooks.chao1([3, 1, 1, 2, 0])) == 4 + 2 * 1 / (2 * 2)


def test_a_dead_code_is_claimed_only_above_the_detection_limit():
    """A code just above the limit is missed in 5 % of 4,000 draws, binomial 99.9 % band .039 to .062."""
    limit = codebooks.detection_limit(2000)
    missed = (np.random.default_rng(5).binomial(2000, limit, size=4000) == 0).mean()
    assert 0.039 < missed < 0.062
    assert codebooks.frames_to_see_all(2048) == 21751
    all_seen = [
        (np.bincount(np.random.default_rng(s).integers(0, 64, codebooks.frames_to_see_all(64)), minlength=64) > 0).all()
        for s in range(300)
    ]
    assert 0.91 <= np.mean(all_seen) <= 0.985  # 95 %, 99.9 % band of 300


def test_collisions_are_unbiased_at_any_number_of_frames():
    """sum p^2 of Zipf K = 50 from 5 frames: mean of 20,000 draws within 4 standard errors."""
    p = zipf(50)
    values = codebooks.collision(np.random.default_rng(6).multinomial(5, p, size=20_000))
    assert abs(values.mean() - (p**2).sum()) < 4 * values.std() / np.sqrt(20_000)


def test_divergence_from_a_prior():
    """0 where the usage is that of the prior, known elsewhere; at 5 frames a code plug-in would show .15 bits."""
    rng = np.random.default_rng(7)
    p, q = zipf(256), np.full(256, 1 / 256)
    counts = rng.multinomial(200_000, p)
    assert codebooks.divergence(counts, 3.5 * p) == pytest.approx(0, abs=0.01)
    assert codebooks.divergence(counts, q) == pytest.approx(8 - exact_entropy(p), abs=0.01)
    few = rng.multinomial(1280, p, size=50)
    corrected = np.mean([codebooks.divergence(each, p) for each in few])
    plug_in = np.mean([codebooks.divergence(each, p, "plug-in") for each in few])
    assert abs(corrected) < 0.1 < 0.12 < plug_in, (corrected, plug_in)
    with pytest.raises(InputError, match="not all 0"):
        codebooks.divergence(counts, np.zeros(256))


@pytest.mark.parametrize("counts", [[0, 0], [-1, 2], [0.5, 1], [[1, 2], [0, 0]], []])
def test_what_are_no_counts_is_refused(counts):
    with pytest.raises(InputError, match="whole numbers"):
        codebooks.entropy(counts)
