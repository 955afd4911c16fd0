"""What is true of a frame: phones by overlap, inclusive slices, pitch, and frames of clips end to end."""

from itertools import pairwise

import numpy as np
import pytest
from reference.targets_reference import phone_seconds as slow_seconds

from codecprobe.corpora.corpus import Clip, Phone
from codecprobe.frames import (
    draw_clips,
    folded,
    frame_pitch,
    lay_frames,
    phone_seconds,
    speaker_groups,
    token_frames,
)
from codecprobe.tokenization import TokenizedCorpus
from probecore.errors import InputError


def phones_of(*parts):
    return tuple(Phone(name, start, end) for name, start, end in parts)


def tokenized_of(codes, speakers, toy_codec_info):
    clips = tuple(
        Clip(f"c{i}", s, f"{s}-0", read=lambda: None, content_hash=lambda: "x") for i, s in enumerate(speakers)
    )
    n = len(clips)
    return TokenizedCorpus("toy", clips, tuple(codes), (0,) * n, (1.0,) * n, (), toy_codec_info, {})


@pytest.fixture
def info():
    from toy_codec import ToyCodec

    return ToyCodec().info


def test_phones_fill_frames_by_their_overlap():
    """Against one overlap at a time; nothing of a phone is lost and nothing counted twice (sums agree to rounding)."""
    rng = np.random.default_rng(0)
    edges = np.concatenate([[0], np.sort(rng.uniform(0, 3, 25)), [3.0]])
    names = ["AA", "B", "S"]
    phones = phones_of(*((names[i % 3], a, b) for i, (a, b) in enumerate(pairwise(edges))))
    for rate, n in ((12.5, 38), (50.0, 150), (12.5, 20)):
        fast = phone_seconds(phones, names, n, rate)
        np.testing.assert_allclose(fast, slow_seconds(phones, names, n, rate), atol=1e-12)
        assert fast.sum() == pytest.approx(min(3.0, n / rate))


def test_silence_is_no_phone_and_stress_is_none():
    assert [folded(name) for name in ("sil", "SPN", "", "AH0", "ER2", "S")] == ["", "", "", "AH", "ER", "S"]
    seconds = phone_seconds(phones_of(("sil", 0, 0.08), ("AH1", 0.08, 0.2)), ("AH",), 3, 12.5)
    np.testing.assert_allclose(seconds[:, 0], [0.0, 0.08, 0.04], atol=1e-12)


def test_slices_hold_every_centre_and_both_ends():
    """At 12.5 Hz centres lie at .04, .12, .20, ...: a phone from .04 to .20 holds three. The slice of Libri-light ends
    one frame early and would hold two. Against all centres one by one."""
    assert token_frames(0.04, 0.20, 50, 12.5) == (0, 2, False)
    rng = np.random.default_rng(1)
    centres = (np.arange(60) + 0.5) / 12.5
    for _ in range(300):
        start = rng.uniform(0, 4)
        end = start + rng.uniform(0.01, 0.4)
        inside = np.flatnonzero((centres >= start) & (centres <= end))
        first, last, forced = token_frames(start, end, 60, 12.5)
        assert forced == (len(inside) == 0)
        if forced:
            assert first == last == np.abs(centres - (start + end) / 2).argmin()
        else:
            assert (first, last) == (inside[0], inside[-1])


def test_pitch_of_a_frame_is_the_median_of_what_is_voiced():
    f0 = np.array([100.0] * 8 + [0.0] * 5 + [200.0] * 3 + [0.0] * 8)
    pitch = frame_pitch(f0, 4, 12.5)
    assert pitch[0] == np.log(100) and np.isnan(pitch[1:]).all()  # frame 1 is voiced in 3 of 8 steps
    assert np.isnan(frame_pitch(np.zeros(0), 3, 12.5)).all()


def test_frames_meet_their_truth_at_the_lag(info):
    """Codes count 0, 1, 2, ...; with lag d the truth of frame t stands beside code t + d; ends repeat themselves."""
    codes = [np.repeat(np.arange(10)[:, None], 3, axis=1), np.repeat(np.arange(100, 108)[:, None], 3, axis=1)]
    tokenized = tokenized_of(codes, ["a", "b"], info)
    truth = [np.arange(10.0), np.arange(100.0, 108.0)]
    every = [np.ones(10, bool), np.ones(8, bool)]
    for lag in (-2, 0, 1):
        frames = lay_frames(tokenized, [0, 1], truth, every, lag)
        np.testing.assert_array_equal(frames.codes[:, 0], frames.truth + lag)
        assert frames.lengths.tolist() == [10 - abs(lag), 8 - abs(lag)]
    np.testing.assert_array_equal(lay_frames(tokenized, [0, 1], truth, every).around[[0, 9, 10], :, 0],
                                  [[0, 0, 1], [8, 9, 9], [100, 100, 101]])  # fmt: skip


def test_short_clips_are_counted_and_one_speaker_is_refused(info):
    codes = [np.zeros((n, 3), dtype=np.int64) for n in (10, 10, 3)]
    tokenized = tokenized_of(codes, ["a", "b", "b"], info)
    truth, every = [np.zeros(len(c)) for c in codes], [np.ones(len(c), bool) for c in codes]
    assert lay_frames(tokenized, [0, 1, 2], truth, every).too_short == 1
    with pytest.raises(InputError, match="at least 2 of them"):
        lay_frames(tokenized, [1, 2], truth[1:], every[1:])


def test_a_large_corpus_is_drawn_evenly(info):
    codes = [np.zeros((10, 3), dtype=np.int64)] * 40
    tokenized = tokenized_of(codes, ["a"] * 30 + ["b"] * 10, info)
    drawn = draw_clips(tokenized, 0, most=120)
    assert len(drawn) == 12 and drawn == sorted(drawn) and sum(i < 30 for i in drawn) == 6
    assert drawn == draw_clips(tokenized, 0, most=120) != draw_clips(tokenized, 1, most=120)
    assert draw_clips(tokenized, 0, most=400) == list(range(40))


def test_speakers_stay_together():
    speaker = np.repeat(np.arange(23), 4)
    groups = speaker_groups(speaker, 0)
    assert len(np.unique(groups)) == 10 and all(len(np.unique(groups[speaker == s])) == 1 for s in range(23))
    np.testing.assert_array_equal(speaker_groups(speaker[:40], 0), speaker[:40])
