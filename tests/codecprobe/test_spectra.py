"""Spectra against librosa and Parseval, distances against a slow loop."""

import librosa
import numpy as np
import pytest
from scipy.fft import dct

from codecprobe.spectra import cepstra, frame_levels, magnitudes, mel_levels, power_spectrum, spectral_distance

RATE_HZ = 16_000


@pytest.fixture
def noise() -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ)


def test_the_level_of_a_full_scale_sine_is_minus_3_db():
    """Mean square of a sine is 1/2: -3.01 dB, up to the window's ripple at a bin-centred frequency (1e-6)."""
    wave = np.sin(2 * np.pi * 1000 * np.arange(RATE_HZ) / RATE_HZ)
    levels = frame_levels(power_spectrum(wave, RATE_HZ))[5:-5]
    assert np.allclose(levels, 10 * np.log10(0.5), atol=1e-3)


def test_the_spectrum_is_librosas_up_to_its_scale(noise):
    ours = power_spectrum(noise, RATE_HZ)
    theirs = np.abs(librosa.stft(noise, n_fft=512, hop_length=160, window="hann", pad_mode="constant")).T ** 2
    n = min(len(ours), len(theirs))
    ratio = ours[2 : n - 2] / theirs[2 : n - 2]
    assert np.allclose(ratio, ratio[0, 0], rtol=1e-5)


def test_cepstra_are_the_cosine_transform_of_band_levels(noise):
    power = power_spectrum(noise, RATE_HZ)
    by_hand = dct(mel_levels(power, RATE_HZ, 40, 5500.0), axis=1, norm="ortho")[:, :13]
    assert np.allclose(cepstra(power, RATE_HZ), by_hand)


def test_the_distance_is_that_of_a_slow_loop(noise):
    """Written out frame by frame in float64; magnitudes are kept in float32, so 1e-5 relative."""
    other = noise + 0.05 * np.random.default_rng(1).standard_normal(len(noise))
    total = 0.0
    for window_s in (0.02, 0.04, 0.08):
        n = round(window_s * RATE_HZ)
        hop, window = round(window_s / 4 * RATE_HZ), np.hanning(n + 1)[:-1]
        spectra = []
        for wave in (other, noise):
            padded = np.concatenate([np.zeros(n // 2), wave, np.zeros(n)])
            rows = []
            for start in range(0, len(wave), hop):
                rows.append(
                    np.abs(np.fft.rfft(padded[start : start + n] * window)) * np.sqrt(2 / (n * (window**2).sum()))
                )
            spectra.append(np.array(rows))
        mine, theirs = spectra
        total += np.sqrt(((mine - theirs) ** 2).sum() / (theirs**2).sum())
        total += np.abs(np.log(np.maximum(mine, 1e-5)) - np.log(np.maximum(theirs, 1e-5))).mean()
    ours = spectral_distance(magnitudes(other, RATE_HZ), magnitudes(noise, RATE_HZ))
    assert ours == pytest.approx(total / 3, rel=1e-5)


def test_a_clip_is_at_no_distance_from_itself_and_silence_has_no_distance(noise):
    own, silent = magnitudes(noise, RATE_HZ), magnitudes(np.zeros(RATE_HZ), RATE_HZ)
    assert spectral_distance(own, own) == 0.0
    assert np.isnan(spectral_distance(own, silent)) and spectral_distance(silent, own) > 1


def test_half_the_amplitude_is_half_the_convergence_and_log_2(noise):
    """Bins at the floor (1e-5) cannot halve: a few in a thousand of noise at -20 dB would make 1e-3, here 2e-5."""
    own, half = magnitudes(noise, RATE_HZ), magnitudes(noise / 2, RATE_HZ)
    assert spectral_distance(half, own) == pytest.approx(0.5 + np.log(2), rel=1e-3)


@pytest.mark.parametrize("n", [1, 50, 160, 3200])
@pytest.mark.parametrize("rate_hz", [8000, 24_000, 44_100])
def test_short_clips_have_frames(n, rate_hz, noise):
    power = power_spectrum(noise[:n], rate_hz)
    assert len(power) == -(-n // round(0.01 * rate_hz)) and np.isfinite(mel_levels(power, rate_hz)).all()
