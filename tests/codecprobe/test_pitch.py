"""Pitch against exact truth, and against librosa as an independent implementation of YIN."""

import numpy as np
import pytest

from codecprobe import embedded_corpus
from codecprobe.pitch import HOP_S, pitch_track

RATE_HZ = 16_000


def tone(hertz: float, seconds: float = 1.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return 0.1 * sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 6))


@pytest.mark.parametrize("hertz", [65, 110.5, 157.3, 220, 393])
@pytest.mark.parametrize("rate_hz", [8000, 16_000, 24_000])
def test_a_steady_tone_has_its_pitch(hertz, rate_hz):
    """Parabolic interpolation leaves under 0.5 % (0.09 semitones); ends where the tone starts and stops left out."""
    track = pitch_track(tone(hertz, rate_hz=rate_hz), rate_hz)[5:-5]
    assert (track > 0).all() and np.abs(track / hertz - 1).max() < 0.005


def test_pitch_of_the_embedded_voices_is_the_truth():
    """Truth every 10 ms: median error under a fifth of a semitone, gross errors (2 semitones) under 1 %.

    Voicing differs at edges of phones, where the truth switches and the window of 33 ms hears both: under 15 %.
    """
    errors, wrong = [], []
    for clip in embedded_corpus(speakers=6, sessions=1, clips=2).clips:
        track = pitch_track(clip.read().samples, RATE_HZ)
        n = min(len(track), len(clip.f0_hz))
        track, truth = track[:n], clip.f0_hz[:n]
        both = (track > 0) & (truth > 0)
        errors.append(12 * np.log2(track[both] / truth[both]))
        wrong.append(((track > 0) != (truth > 0)).mean())
    error = np.abs(np.concatenate(errors))
    assert np.median(error) < 0.2 and (error > 2).mean() < 0.01 and np.mean(wrong) < 0.15


def test_librosa_agrees_where_both_hear_a_voice():
    """librosa takes the first dip under .1 with a longer window, so some frames differ by octaves: medians agree."""
    import librosa

    clip = embedded_corpus(speakers=1, sessions=1, clips=1).clips[0].read().samples
    track = pitch_track(clip, RATE_HZ)
    other = librosa.yin(clip.astype(float), fmin=60, fmax=400, sr=RATE_HZ, hop_length=160)[: len(track)]
    voiced = track[: len(other)] > 0
    assert np.median(np.abs(12 * np.log2(track[: len(other)][voiced] / other[voiced]))) < 0.2


def test_noise_and_silence_have_no_pitch():
    noise = np.random.default_rng(0).standard_normal(RATE_HZ)
    assert (pitch_track(noise, RATE_HZ) > 0).mean() < 0.05
    assert not pitch_track(np.zeros(RATE_HZ), RATE_HZ).any()
    assert not pitch_track(np.full(RATE_HZ, 0.5), RATE_HZ)[3:-3].any()


def test_quiet_frames_are_unvoiced():
    """A tone 60 dB below the loudest frame is beyond the range of 40 dB."""
    wave = np.concatenate([tone(120), 1e-3 * tone(120)])
    track = pitch_track(wave, RATE_HZ)
    assert (track[5:95] > 0).all() and not (track[110:] > 0).any()


@pytest.mark.parametrize("n", [1, 100, 159, 160, 161, 3200])
def test_short_clips_have_a_frame_every_10_ms(n):
    assert len(pitch_track(tone(100)[:n], RATE_HZ)) == -(-n // round(HOP_S * RATE_HZ))


def test_loudness_does_not_matter():
    a, b = (pitch_track(gain * tone(150), RATE_HZ) for gain in (1.0, 0.01))
    assert np.allclose(a, b, rtol=1e-9)
