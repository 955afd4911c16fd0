"""Baselines from the waveform: closed forms for energy and length, an independent cepstrum, and no band edge."""

import numpy as np
import pytest
from scipy.fft import dct

from codecprobe import acoustics
from codecprobe.corpora.corpus import Audio, Clip
from probecore.store import ArrayCache

RATE_HZ = 16_000


def noise(seed: int = 0, seconds: float = 1.0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(RATE_HZ * seconds))


def test_clip_length_is_log_and_its_square():
    np.testing.assert_allclose(acoustics.clip_length(np.e**2), [2.0, 4.0])


def test_energy_of_a_sine_is_half_its_squared_amplitude():
    """A sine of 500 Hz has 16 whole periods in 32 ms, so each frame's power is exactly a^2 / 2."""
    sine = 0.2 * np.sin(2 * np.pi * 500 * np.arange(RATE_HZ) / RATE_HZ)
    level, spread = acoustics.energy(sine, RATE_HZ)
    assert level == pytest.approx(10 * np.log10(0.02), abs=1e-6) and spread < 1e-6
    louder, _ = acoustics.energy(10 * sine, RATE_HZ)
    assert louder - level == pytest.approx(20, abs=1e-5)


def slow_mfcc(samples: np.ndarray) -> np.ndarray:
    """Mel cepstra by the textbook, frame by frame: Hann (periodic), power, triangles of equal area, log, DCT-II."""
    n_fft, hop = 512, 256
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 5500 / 700), 42) / 2595) - 1)
    hertz = np.arange(n_fft // 2 + 1) * RATE_HZ / n_fft
    frames = []
    for start in range(0, len(samples) - n_fft + 1, hop):
        power = np.abs(np.fft.rfft(window * samples[start : start + n_fft])) ** 2
        bands = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            triangle = np.clip(np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)), 0, None)
            bands.append(2 / (high - low) * triangle @ power)
        frames.append(dct(np.log(np.array(bands) + 1e-10), norm="ortho")[1:20])
    return np.concatenate([np.mean(frames, axis=0), np.std(frames, axis=0)])


def test_mfcc_against_the_textbook():
    """librosa keeps its filters in float32, so powers agree to 1e-6 and cepstra of order 1 to 1e-5."""
    np.testing.assert_allclose(acoustics.mfcc(noise(), RATE_HZ), slow_mfcc(noise()), atol=1e-4)


def test_mfcc_does_not_know_level_or_what_lies_above_its_band():
    samples = noise(1)
    np.testing.assert_allclose(acoustics.mfcc(10 * samples, RATE_HZ), acoustics.mfcc(samples, RATE_HZ), atol=1e-3)
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE_HZ)
    band_limited = np.fft.irfft(np.where(hertz < 6000, spectrum, 0))
    difference = np.abs(acoustics.mfcc(band_limited, RATE_HZ) - acoustics.mfcc(samples, RATE_HZ)).max()
    assert difference < 0.2  # what the Hann window's side lobes carry across the edge; a full-band cepstrum moves by 10


def test_a_clip_shorter_than_a_frame_is_padded():
    assert np.isfinite(acoustics.mfcc(noise(2, 0.01), RATE_HZ)).all()
    assert np.isfinite(acoustics.energy(noise(2, 0.01), RATE_HZ)).all()


def test_windows_are_read_once(tmp_path):
    reads: list[str] = []

    def read() -> Audio:
        reads.append("x")
        return Audio(noise(3, 4.0).astype(np.float32), RATE_HZ)

    clips = [Clip("c", "s", "s-1", read, lambda: "hash of c")]
    cache = ArrayCache(tmp_path)
    first = acoustics.of_windows(clips, 3.0, cache, quiet=True)
    again = acoustics.of_windows(clips, 3.0, cache, quiet=True)
    assert len(reads) == 1 and all((a == b).all() for a, b in zip(first, again, strict=True))
    np.testing.assert_array_equal(first[1][0], acoustics.mfcc(noise(3, 4.0).astype(np.float32)[:48_000], RATE_HZ))
    acoustics.of_windows(clips, 2.0, cache, quiet=True)
    assert len(reads) == 2
