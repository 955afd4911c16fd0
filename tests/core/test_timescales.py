"""Repeats, autocorrelation and runs: slow references, processes of known pace, and the traps of short clips."""

import numpy as np
import pytest
from reference import codes_reference

from probecore import timescales
from probecore.errors import InputError


def markov(n_clips: int, n_frames: int, stay: float, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Clips whose code is drawn anew with probability 1 - stay: rho(lag) = stay^lag, in both layers independently."""
    clips = []
    for _ in range(n_clips):
        fresh = rng.random((n_frames, 2)) >= stay
        fresh[0] = True
        drawn = rng.integers(0, size, (n_frames, 2))
        last = np.maximum.accumulate(np.where(fresh, np.arange(n_frames)[:, None], 0), axis=0)
        clips.append(np.take_along_axis(drawn, last, axis=0))
    return clips


def pooled(clips, far: int, n_lags: int, masks=None) -> timescales.Repeats:
    masks = [np.ones(len(clip), dtype=bool) for clip in clips] if masks is None else masks
    parts = [timescales.repeats(clip, mask, far, n_lags) for clip, mask in zip(clips, masks, strict=True)]
    return timescales.stack(parts).pooled(np.ones(len(clips)))


@pytest.mark.parametrize("n_frames", [3, 17, 40])
def test_pairs_are_those_of_double_loops(n_frames):
    rng = np.random.default_rng(n_frames)
    codes, mask = rng.integers(0, 3, (n_frames, 2)), rng.random(n_frames) < 0.7
    ours = timescales.repeats(codes, mask, far=4, n_lags=9)
    for layer in range(2):
        for lag in range(10):
            expected = codes_reference.pairs_by_lag(codes[:, layer], mask, lag)
            assert (ours.equal[lag, layer], ours.total[lag]) == expected
        assert (ours.far_equal[layer], ours.far_total) == codes_reference.far_pairs(codes[:, layer], mask, 4)


@pytest.mark.parametrize("stay", [0.3, 0.7, 0.85])
def test_a_markov_chain_shows_its_time_constant(stay):
    """rho = stay^lag, integrated time 1/2 + stay / (1 - stay), e-fold near 1 / -ln stay, repeats stay + (1 - stay) / K.

    100 clips of 600 frames; the spread of an integrated time is about tau sqrt(2 (2 W + 1) / N) with W = 5 tau: 4 % at
    the slowest, .12 allowed. Linear interpolation moves the e-fold time of a fast chain, so it is compared with the
    interpolation of the true curve.
    """
    clips = markov(100, 600, stay, 16, np.random.default_rng(0))
    pairs = pooled(clips, far=60, n_lags=120)
    rho = pairs.autocorrelation
    np.testing.assert_allclose(rho[:6], stay ** np.arange(6)[:, None] * np.ones(2), atol=0.02)
    value, window = timescales.integrated_time(rho)
    np.testing.assert_allclose(value, 0.5 + stay / (1 - stay), rtol=0.12)
    assert (window >= 5 * value).all() and (window - 1 < 5 * value + 1).all()
    exact = timescales.e_fold_time((stay ** np.arange(121.0))[:, None] * np.ones(2))
    np.testing.assert_allclose(timescales.e_fold_time(rho), exact, rtol=0.08)
    np.testing.assert_allclose(pairs.repeat_rate[1], stay + (1 - stay) / 16, atol=0.01)


def test_white_codes_have_no_autocorrelation_also_in_short_clips():
    """Trap: a clip's own mean gives rho = -1/T, here -.05. Ours: within 4 standard errors (600 clips of 20) of 0."""
    rng = np.random.default_rng(1)
    clips = [rng.integers(0, 8, (20, 2)) for _ in range(600)]
    rho = pooled(clips, far=5, n_lags=9).autocorrelation[1:]
    error = 1 / np.sqrt(600 * 11 * 7)  # one-hot vectors of 8 codes have 7 free directions
    assert np.abs(rho).max() < 5 * error < 0.03
    tau, _ = timescales.integrated_time(np.concatenate([np.ones((1, 2)), rho]))
    assert np.abs(tau - 0.5).max() < 0.05


def test_a_constant_of_the_clip_is_the_baseline_and_no_dynamics():
    """Each clip has its own code in 60 % of the frames: repeats far above those of all frames, rho still 0."""
    rng = np.random.default_rng(2)
    clips = []
    for _ in range(300):
        own, noise = rng.integers(0, 32), rng.integers(0, 32, (60, 1))
        clips.append(np.where(rng.random((60, 1)) < 0.6, own, noise))
    pairs = pooled(clips, far=12, n_lags=24)
    assert pairs.repeat_rate[1, 0] > 0.35
    assert np.abs(pairs.autocorrelation[1:, 0]).max() < 0.03


def test_times_that_cannot_be_had_are_nan():
    slow = np.ones((30, 1)) * 0.9  # never falls: neither window nor 1/e within the lags
    assert np.isnan(timescales.integrated_time(slow)[0]).all() and (timescales.integrated_time(slow)[1] == -1).all()
    assert np.isnan(timescales.e_fold_time(slow)).all()
    one_code = pooled([np.zeros((30, 1), dtype=int)], far=3, n_lags=6)
    assert np.isnan(one_code.autocorrelation).all()
    short = pooled([np.zeros((4, 1), dtype=int)], far=5, n_lags=6)
    assert np.isnan(short.baseline).all() and not short.far_total
    fast = np.array([[1.0], [0.2], [0.0]])
    assert timescales.e_fold_time(fast)[0] == pytest.approx((1 - 1 / np.e) / 0.8)


def test_runs_are_those_of_a_loop():
    rng = np.random.default_rng(3)
    for n_frames in (1, 2, 9, 60):
        codes, mask = rng.integers(0, 2, (n_frames, 2)), rng.random(n_frames) < 0.8
        ours = timescales.runs(codes, mask, longest=n_frames)
        for layer in range(2):
            for found, expected in zip(ours, codes_reference.runs(codes[:, layer], mask), strict=True):
                np.testing.assert_array_equal(found[layer], np.bincount(expected, minlength=n_frames + 1))


@pytest.mark.parametrize("stay", [0.3, 0.8])
def test_run_lengths_of_cut_clips_are_those_of_the_process(stay):
    """Clips of 12 frames of a chain whose runs end with probability h = (1 - stay)(1 - 1/K): P(run > k) = (1 - h)^k.

    15,000 clips: a share has a spread below .004. Trap 1: runs that end inside the clip alone are too short. Trap 2:
    counting a cut run as one that survived its last frame makes them too long.
    """
    clips = markov(15_000, 12, stay, 16, np.random.default_rng(4))
    mask = np.ones(12, dtype=bool)
    ended, cut_off, dropped = np.sum([timescales.runs(clip, mask, 12) for clip in clips], axis=0)
    truth = (1 - (1 - stay) * (1 - 1 / 16)) ** np.arange(6)
    ours = timescales.survival(ended, cut_off)
    np.testing.assert_allclose(ours[:, :6], truth * np.ones((2, 1)), atol=0.012)
    naive = timescales.survival(ended, np.zeros_like(cut_off))
    assert (naive[:, 2:6] < 0.9 * truth[2:]).all()
    late = np.cumprod(1 - ended[:, :6] / np.cumsum((ended + cut_off)[:, ::-1], axis=1)[:, ::-1][:, :6].clip(1), axis=1)
    assert (late[:, 4] > truth[4] + (0.01 if stay > 0.5 else 0)).all()
    assert dropped.sum() == 30_000
    median = np.flatnonzero((1 - (1 - stay) * (1 - 1 / 16)) ** np.arange(60) <= 0.5)[0]
    assert timescales.median_run(ours).tolist() == [median, median]


def test_a_first_run_would_bend_the_distribution():
    """Trap: stretches begin more often in long runs. Runs of 1 and 9 frames in turn, clips cut out anywhere."""
    rng = np.random.default_rng(5)
    stream = np.repeat(np.arange(2000) % 7, np.where(np.arange(2000) % 2, 9, 1))
    mask = np.ones(40, dtype=bool)
    clips = [stream[start : start + 40, None] for start in rng.integers(0, len(stream) - 40, 3000)]
    ended, cut_off, dropped = np.sum([timescales.runs(clip, mask, 40) for clip in clips], axis=0)
    ours = timescales.survival(ended, cut_off)[0]
    assert ours[1] == pytest.approx(0.5, abs=0.03) and ours[8] == pytest.approx(0.5, abs=0.03)
    with_first = timescales.survival(ended + dropped, cut_off)[0]
    assert with_first[1] > 0.53 and with_first[8] < 0.47


def test_survival_by_hand():
    """Ended after 1, 2, 2, 3 frames, cut off after 2: at risk of ending after 1: 5, after 2: 3 + 0 (the cut one was not
    seen to pass 2), after 3: 1."""  # fmt: skip
    ended, cut_off = np.array([0, 1, 2, 1]), np.array([0, 0, 1, 0])
    np.testing.assert_allclose(timescales.survival(ended, cut_off), [1, 4 / 5, 4 / 5 * 1 / 3, 0])
    assert timescales.median_run(timescales.survival(ended, cut_off)) == 2
    assert np.isnan(timescales.median_run(timescales.survival(np.array([0, 0, 0]), np.array([0, 0, 4]))))


def test_codes_stay_as_they_are_and_bad_ones_are_refused():
    codes, mask = np.arange(12).reshape(6, 2) % 3, np.ones(6, dtype=bool)
    before = codes.copy()
    timescales.repeats(codes, mask, 2, 3)
    timescales.runs(codes, mask, 6)
    np.testing.assert_array_equal(codes, before)
    with pytest.raises(InputError, match="from 0"):
        timescales.repeats(codes - 1, mask, 2, 3)
    with pytest.raises(InputError, match="6 frames"):
        timescales.runs(codes, mask[:4], 6)
