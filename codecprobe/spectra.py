"""Spectra of a waveform, and how far two waveforms of one length are apart.

Conventions. Waveforms are (samples,) float in [-1, 1] at one rate; spectra have a frame every 10 ms, centred, zeros at
both ends, so that every clip of at least one sample has a frame. Levels are in dB (10 log10 of power), with a floor of
1e-10. The phase is never compared: a codec does not keep it.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from codecprobe.acoustics import MEL_TOP_HZ
from codecprobe.pitch import HOP_S

Floats = NDArray[np.float64]
FLOOR = 1e-10
CEPSTRA = 13
RESOLUTIONS_S = (0.02, 0.04, 0.08)  # windows; a hop is a quarter of its window


def power_spectrum(wave: NDArray[np.floating], rate_hz: int, window_s: float = 0.032, hop_s: float = HOP_S) -> Floats:
    """Return the power spectrum (frames, bins) of Hann windows; a frame's sum is the mean power of its samples."""
    from scipy import fft

    n, hop = max(16, round(window_s * rate_hz)), max(1, round(hop_s * rate_hz))
    padded = np.pad(np.asarray(wave, dtype=np.float64), (n // 2, n))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n)[: -(-len(wave) // hop) * hop : hop]
    window = np.hanning(n + 1)[:-1]
    power: Floats = np.abs(fft.rfft(frames * window)) ** 2 * (2 / (n * np.square(window).sum()))
    return power


def mel_levels(power: Floats, rate_hz: int, bands: int = 80, top_hz: float | None = None) -> Floats:
    """Return mel band levels in dB, (frames, bands), of a power spectrum with the default window."""
    filters = _mel_filters(rate_hz, 2 * (power.shape[1] - 1), bands, min(top_hz or rate_hz / 2, rate_hz / 2))
    levels: Floats = 10 * np.log10(power @ filters.T + FLOOR)
    return levels


def cepstra(power: Floats, rate_hz: int) -> Floats:
    """Return MFCC 0 to 12, (frames, 13), of 40 bands up to 5.5 kHz (Davis & Mermelstein 1980)."""
    from scipy.fft import dct

    levels = mel_levels(power, rate_hz, 40, MEL_TOP_HZ)
    coefficients: Floats = dct(levels, axis=1, norm="ortho")[:, :CEPSTRA]
    return coefficients


def frame_levels(power: Floats) -> Floats:
    """Return the level of each frame in dB, (frames,)."""
    levels: Floats = 10 * np.log10(power.sum(axis=1) + FLOOR)
    return levels


def magnitudes(wave: NDArray[np.floating], rate_hz: int) -> tuple[NDArray[np.float32], ...]:
    """Return magnitudes (frames, bins) with windows of 20, 40 and 80 ms and hops of a quarter of them."""
    return tuple(
        np.sqrt(power_spectrum(wave, rate_hz, window_s, window_s / 4)).astype(np.float32) for window_s in RESOLUTIONS_S
    )


def spectral_distance(own: tuple[NDArray[np.float32], ...], other: tuple[NDArray[np.float32], ...]) -> float:
    """Return the multi-resolution STFT distance of two sets of `magnitudes`; NaN where the second is silent.

    The mean over windows of spectral convergence | |S| - |R| | / | |R| | plus the mean of |log |S| - log |R||
    (Yamamoto et al. 2020, eq. 4 to 6). Log magnitudes have a floor 100 dB below full scale.
    """
    parts = []
    for mine, theirs in zip(own, other, strict=True):
        norm = float(np.linalg.norm(theirs))
        if norm == 0:
            return float("nan")
        logs = np.abs(np.log(np.maximum(mine, 1e-5)) - np.log(np.maximum(theirs, 1e-5)))
        parts.append(float(np.linalg.norm(mine - theirs)) / norm + float(logs.mean(dtype=np.float64)))
    return float(np.mean(parts))


@lru_cache(maxsize=8)
def _mel_filters(rate_hz: int, n_fft: int, bands: int, top_hz: float) -> Floats:
    from librosa.filters import mel

    filters: Floats = mel(sr=rate_hz, n_fft=n_fft, n_mels=bands, fmax=top_hz, htk=True, norm=None)
    return filters.astype(np.float64)
