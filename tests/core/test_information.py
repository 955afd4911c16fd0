"""Information between streams: nothing or a refusal between independent ones, the right amount where it is planted."""

import numpy as np
import pytest
from reference import codes_reference
from scipy.stats import binom

from probecore import information
from probecore.errors import InputError
from probecore.stats.permutation import p_value


def dependent(n: int, size: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """b repeats a in a share of the frames and is drawn anew in the others."""
    a = rng.integers(0, size, n)
    return a, np.where(rng.random(n) < share, a, rng.integers(0, size, n))


def truth(size: int, share: float) -> float:
    joint = np.full((size, size), (1 - share) / size**2) + np.diag(np.full(size, share / size))
    return float((joint * np.log2(joint * size**2)).sum())


def test_plug_in_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    a, b = dependent(60, 4, 0.5, rng)
    assert information.mutual_information(a, b) == pytest.approx(codes_reference.information(a, b), abs=1e-12)


@pytest.mark.parametrize(
    ("size", "bias"),
    [(32, (0.76, 0.08, 0.02)), (64, (2.22, 0.34, 0.07)), (256, (5.63, 2.87, 1.28)), (2048, (9.08, 8.45, 6.68))],
)
def test_independent_streams_show_the_published_bias_of_counting(size, bias):
    """Plug-in information of independent uniform streams at N = 1,000, 9,600, 39,000; single draws vary by below .1."""
    rng = np.random.default_rng(1)
    for n, published in zip((1000, 9600, 39_000), bias, strict=True):
        a, b = rng.integers(0, size, (2, n))
        assert information.mutual_information(a, b) == pytest.approx(published, abs=0.1)


@pytest.mark.parametrize("size", [8, 32, 64, 256, 2048])
@pytest.mark.parametrize("n", [1000, 9600, 39_000])
def test_independent_streams_give_nothing_or_a_refusal(size, n):
    """Where N >= 10 m^2 what is left after Miller-Madow is below .02 bits (the bias was up to .07); else no number."""
    a, b = np.random.default_rng(size + n).integers(0, size, (2, n))
    found = information.counted_information(a, b)
    if n < 10 * found.seen_a * found.seen_b:
        assert np.isnan(found.value) and np.isnan(found.given_b) and f"{n} frames are fewer" in found.reason
    else:
        assert abs(found.value) < 0.02 and not found.reason
        assert found.given_b == pytest.approx(found.entropy_a - found.value, abs=1e-12)


def test_planted_information_is_found():
    """Copies in 60 % of 40,000 frames of 16 codes: 1.33 bits; the spread of the estimate is about .01 bits."""
    a, b = dependent(40_000, 16, 0.6, np.random.default_rng(2))
    found = information.counted_information(a, b)
    assert found.value == pytest.approx(truth(16, 0.6), abs=0.03)
    assert found.entropy_a == pytest.approx(4, abs=0.005)
    same = information.counted_information(a, a)
    assert same.given_b == pytest.approx(0, abs=0.005)


def slow_stream(lengths, size, rng, stay=0.7):
    clips = []
    for n in lengths:
        codes = rng.integers(0, size, n)
        for t in range(1, n):
            codes[t] = codes[t - 1] if rng.random() < stay else codes[t]
        clips.append(codes)
    return np.concatenate(clips)


def test_the_shift_null_is_calibrated_where_a_shuffle_rejects():
    """300 worlds of two slow, independent streams (6 clips of 50): the shift rejects at .05 inside its 99.9 % band.

    Trap: a shuffle of single frames destroys the streams' own pace and finds information that is not there.
    """
    lengths, ours, naive = [50] * 6, 0, 0
    for world in range(300):
        rng = np.random.default_rng(world)
        a, b = slow_stream(lengths, 6, rng, 0.8), slow_stream(lengths, 6, rng, 0.8)
        orders = information.shift_orders(lengths, 59, 12, seed=world)
        ours += float(p_value(information.shifted_information(a, b, orders))) <= 0.05
        if world < 60:
            shuffled = np.stack([rng.permutation(300) for _ in range(59)])
            naive += float(p_value(information.shifted_information(a, b, shuffled))) <= 0.05
    low, high = binom.interval(0.999, 300, 0.05)
    assert low <= ours <= high
    assert naive > 40


def test_excess_over_shifts_finds_what_frames_share_and_not_what_clips_share():
    """A code of the clip in both streams is in the null as well; a copy of frames is not."""
    rng = np.random.default_rng(3)
    lengths = [60] * 40
    clip = np.repeat(rng.integers(0, 8, 40), 60)
    a, b = (np.where(rng.random(2400) < 0.6, clip, rng.integers(0, 8, 2400)) for _ in range(2))
    orders = information.shift_orders(lengths, 99, 15)
    values = information.shifted_information(a, b, orders)
    assert values[0] > 0.3 and abs(values[0] - values[1:].mean()) < 0.02
    copied = np.where(rng.random(2400) < 0.3, a, b)
    values = information.shifted_information(a, copied, orders)
    assert values[0] - values[1:].mean() > 0.1 and float(p_value(values)) == 0.01


def test_shifts_turn_every_clip_by_at_least_the_least():
    lengths = np.array([4, 20, 100])
    orders = information.shift_orders(lengths, 200, 25, seed=1)
    assert orders.shape == (200, 124)
    starts = np.array([0, 4, 24])
    for order in orders[:20]:
        for start, n in zip(starts, lengths, strict=True):
            by = (order[start : start + n] - start - np.arange(n)) % n
            assert len(set(by.tolist())) == 1  # one turn for the whole clip, and it stays inside
            least = min(25, n // 4)
            assert least <= by[0] <= n - least
    again = information.shift_orders(lengths, 200, 25, seed=1)
    np.testing.assert_array_equal(orders, again)
    with pytest.raises(InputError, match="at least 4 frames; got 3"):
        information.shift_orders([10, 3], 5, 2)


def test_merging_codes_finds_the_groups_and_loses_no_more_than_it_must():
    """Codes in 4 clusters: merged to 4 groups they are the clusters; groups never share more than their codes do."""
    rng = np.random.default_rng(4)
    centre = np.repeat(np.arange(4), 16)
    table = 10 * np.eye(4)[centre] + 0.1 * rng.standard_normal((64, 4))
    counts = rng.integers(0, 50, 64)
    counts[5] = 0
    groups = information.merge_codes(table, counts, 4, seed=0)
    assert [len(set(groups[centre == c].tolist())) for c in range(4)] == [1] * 4 and len(set(groups.tolist())) == 4
    np.testing.assert_array_equal(groups, information.merge_codes(table, counts, 4, seed=0))
    a, b = dependent(60_000, 64, 0.5, rng)
    fine = information.counted_information(a, b)
    coarse = information.counted_information(groups[a], groups[b])
    assert 0.3 < coarse.value < fine.value
    assert information.merge_codes(np.ones((5, 2)), np.ones(5), 4).tolist() == [0] * 5  # one distinct vector, one group


def test_streams_must_fit():
    with pytest.raises(InputError, match="same frames; got 3 and 4"):
        information.mutual_information([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(InputError, match="whole numbers from 0"):
        information.mutual_information([1, -1], [0, 0])
