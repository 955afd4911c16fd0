"""The energy detector: levels of a frame's own samples, within 35 dB of the loudest frame, whatever the file's rate."""

import numpy as np
import pytest
from toy_codec import ToyCodec, toy_clip

from codecprobe.corpora.corpus import Audio, Corpus
from codecprobe.tokenization import tokenize
from codecprobe.voice_activity import activity_masks, describe_activity, speech_frames
from probecore.store import ArrayCache


def steps(levels_db, rate_hz, seconds=0.08):
    """A clip of noise whose level changes every 80 ms."""
    n = round(seconds * rate_hz)
    noise = np.random.default_rng(0).standard_normal(n)
    noise /= np.sqrt((noise**2).mean())
    return Audio(np.concatenate([0.3 * 10 ** (db / 20) * noise for db in levels_db]).astype(np.float32), rate_hz)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_frames_within_35_db_of_the_loudest_are_speech(rate_hz):
    audio = steps([-60, 0, -20, -34.5, -35.5, -50, -3], rate_hz)
    assert speech_frames(audio, 7, 12.5).tolist() == [False, True, True, True, False, False, True]


def test_loudness_of_the_file_does_not_matter_and_silence_is_no_speech():
    audio = steps([-40, 0, -10], 16_000)
    quiet = Audio(audio.samples * 0.01, 16_000)
    assert speech_frames(quiet, 3, 12.5).tolist() == speech_frames(audio, 3, 12.5).tolist() == [False, True, True]
    assert not speech_frames(Audio(np.zeros(1600, np.float32), 16_000), 2, 12.5).any()


def test_frames_past_the_end_of_the_audio_are_no_speech():
    """A codec that adds a frame has nothing to judge there; a half-filled frame is judged by the samples it has."""
    audio = steps([0, 0, 0], 16_000)
    assert speech_frames(audio, 5, 12.5).tolist() == [True, True, True, False, False]
    half = Audio(audio.samples[:1920], 16_000)
    assert speech_frames(half, 2, 12.5).tolist() == [True, True]


def test_masks_fit_the_codes_and_are_read_from_the_cache(tmp_path):
    corpus = Corpus("toy", tuple(toy_clip(i) for i in range(3)))
    tokenized = tokenize(corpus, ToyCodec(), cache=tmp_path / "codes", quiet=True)
    cache = ArrayCache(tmp_path / "activity")
    masks = activity_masks(tokenized, cache, quiet=True)
    assert [len(mask) for mask in masks["speech"]] == [len(codes) for codes in tokenized.codes]
    assert all(mask.all() for mask in masks["all"]) and "35 dB" in describe_activity(masks)

    def gone():
        raise AssertionError("read again")

    for clip in tokenized.clips:
        object.__setattr__(clip, "read", gone)
    again = activity_masks(tokenized, cache, quiet=True)
    for a, b in zip(masks["speech"], again["speech"], strict=True):
        np.testing.assert_array_equal(a, b)
