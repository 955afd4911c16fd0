"""What the embedded codec quantises: a waveform as frames of mel spectrum, pitch and voicing, and back.

Conventions: 16 kHz; a frame is 80 ms (12.5 Hz), made of 4 steps of 20 ms. A frame's latent has LATENT = 101 numbers:
24 log-mel powers (natural logarithm) for each of its steps, then the voicing (0 to 1) of each step, then the log pitch
relative to 150 Hz, times 3, averaged over the frame's voiced steps, 0 where none is voiced.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
STEP = 320
STEPS = 4
HOP = STEP * STEPS
BANDS = 24
LATENT = STEPS * BANDS + STEPS + 1
MEL = slice(0, STEPS * BANDS)
VOICING = slice(STEPS * BANDS, STEPS * BANDS + STEPS)
PITCH = STEPS * BANDS + STEPS
REFERENCE_HZ, PITCH_SCALE = 150.0, 3.0
FLOOR = 1e-7
VOICED = 0.5
_WINDOW, _FFT = 400, 512  # 25 ms
_PITCH_WINDOW, _PITCH_FFT = 640, 2048  # 40 ms
_LAGS = np.arange(40, 267)  # 60 to 400 Hz
_PITCH_BAND = _PITCH_FFT * 2000 // RATE_HZ  # autocorrelation of what lies below 2 kHz
_BLOCK = 1024  # steps at a time, so that memory does not grow with the clip


@dataclass(frozen=True)
class Analysis:
    """One clip by steps of 20 ms: log_mel (steps, 24), pitch_hz (steps,), voicing (steps,); 4 steps a frame."""

    log_mel: NDArray[np.float32]
    pitch_hz: NDArray[np.float64]
    voicing: NDArray[np.float64]

    @property
    def n_frames(self) -> int:
        """Number of frames of 80 ms."""
        return len(self.log_mel) // STEPS


def analyse(waveform: NDArray[np.float32]) -> Analysis:
    """Analyse a clip (samples,) at 16 kHz; the last frame is filled with silence."""
    n_steps = -(-len(waveform) // HOP) * STEPS
    padded = np.pad(waveform, (_PITCH_WINDOW // 2, n_steps * STEP - len(waveform) + _PITCH_WINDOW))
    log_mel, pitch, voicing = [], [], []
    for first in range(0, n_steps, _BLOCK):
        n = min(_BLOCK, n_steps - first)
        centre = np.lib.stride_tricks.sliding_window_view(padded[first * STEP + STEP // 2 :], _PITCH_WINDOW)
        frames = centre[: n * STEP : STEP]  # centred on the middle of each step
        inner = (_PITCH_WINDOW - _WINDOW) // 2
        power = np.abs(np.fft.rfft(frames[:, inner : inner + _WINDOW] * _HANN, _FFT)) ** 2
        log_mel.append(np.log(power @ _MEL_FILTERS.T + FLOOR).astype(np.float32))
        hertz, strength = _pitch(frames)
        pitch.append(hertz)
        voicing.append(strength)
    return Analysis(np.concatenate(log_mel), np.concatenate(pitch), np.concatenate(voicing))


def latent(clip: Analysis) -> NDArray[np.float64]:
    """Return the frames of a clip as (frames, 101)."""
    n = clip.n_frames
    result = np.zeros((n, LATENT))
    result[:, MEL] = clip.log_mel.reshape(n, -1)
    result[:, VOICING] = clip.voicing.reshape(n, STEPS)
    voiced = result[:, VOICING] > VOICED
    log_pitch = np.where(voiced, np.log(clip.pitch_hz.reshape(n, STEPS) / REFERENCE_HZ), 0.0)
    result[:, PITCH] = PITCH_SCALE * log_pitch.sum(axis=1) / np.maximum(voiced.sum(axis=1), 1)
    return result


def synthesise(frames: NDArray[np.floating], n_samples: int) -> NDArray[np.float32]:
    """Return a waveform (n_samples,) with the mel spectrum, pitch and voicing of a latent (frames, 101).

    Pulses of the given pitch and a fixed noise, mixed by the voicing, are shaped step by step by the mel spectrum
    (interpolated over frequency); no phase is kept, so the waveform differs from the clip that was analysed.
    """
    values = np.asarray(frames, dtype=np.float64)
    n_steps = len(values) * STEPS
    length = n_steps * STEP
    voicing = np.clip(values[:, VOICING].reshape(-1), 0, 1)
    hertz = np.repeat(REFERENCE_HZ * np.exp(np.clip(values[:, PITCH] / PITCH_SCALE, -1.2, 1.2)), STEPS)
    places = (np.arange(n_steps) + 0.5) * STEP
    cycles = np.cumsum(np.interp(np.arange(length), places, hertz)) / RATE_HZ
    pulses = np.diff(np.floor(cycles), prepend=0.0) * np.sqrt(RATE_HZ / np.interp(np.arange(length), places, hertz))
    noise = np.random.default_rng(0).standard_normal(length)  # the same noise for every clip: decoding is a function
    mix = np.interp(np.arange(length), places, np.clip((voicing - 0.3) / 0.4, 0, 1))
    source = np.sqrt(mix) * pulses + np.sqrt(1 - mix) * noise
    gains = np.exp(0.5 * np.clip(values[:, MEL].reshape(n_steps, BANDS), np.log(FLOOR), 8.0)) / np.sqrt(_WINDOW_POWER)
    response = gains @ _INTERPOLATION
    padded = np.pad(source, (STEP // 2, 2 * STEP))
    total = np.zeros(length + 2 * _FFT + STEP)
    for first in range(0, n_steps, _BLOCK):
        n = min(_BLOCK, n_steps - first)
        pieces = np.lib.stride_tricks.sliding_window_view(padded[first * STEP :], 2 * STEP)[: n * STEP : STEP]
        shaped = np.fft.irfft(np.fft.rfft(pieces * _OVERLAP, 2 * _FFT) * response[first : first + n], 2 * _FFT)
        for i, piece in enumerate(shaped):
            start = (first + i) * STEP
            total[start : start + 2 * _FFT] += piece
    return total[STEP // 2 : STEP // 2 + min(length, n_samples)].astype(np.float32)


def _pitch(frames: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return pitch (Hz) and its strength (0 to 1) of frames (n, 640): the largest peak of the autocorrelation.

    Autocorrelation of the window divided out, short lags preferred a little, parabola through the peak (Boersma 1993).
    """
    centred = frames - frames.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(centred * _PITCH_HANN, _PITCH_FFT)) ** 2
    power[:, _PITCH_BAND:] = 0
    correlation = np.fft.irfft(power)[:, : _LAGS[-1] + 2]
    correlation = correlation / (correlation[:, :1] + FLOOR) / _PITCH_NORM
    here = correlation[:, _LAGS]
    is_peak = (here > correlation[:, _LAGS - 1]) & (here >= correlation[:, _LAGS + 1])
    best = np.where(is_peak, here - 0.0008 * _LAGS, -1.0).argmax(axis=1)
    rows = np.arange(len(frames))
    before, peak, after = (correlation[rows, _LAGS[best] + d] for d in (-1, 0, 1))
    bend = before - 2 * peak + after
    shift = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, -1.0), 0.0)
    strength = np.where(is_peak[rows, best], np.clip(peak, 0, 1), 0.0)
    return RATE_HZ / (_LAGS[best] + np.clip(shift, -0.5, 0.5)), strength


def _mel_edges() -> NDArray[np.float64]:
    return np.asarray(700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE_HZ / 1400), BANDS + 2) / 2595) - 1))


def _mel_filters() -> NDArray[np.float64]:
    """Return triangular filters (24, bins), each a weighted mean of power."""
    edges, hertz = _mel_edges(), np.fft.rfftfreq(_FFT, 1 / RATE_HZ)
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    filters = np.clip(np.minimum(rising, falling), 0, None)
    return np.asarray(filters / filters.sum(axis=1, keepdims=True))


def _interpolation() -> NDArray[np.float64]:
    """Return weights (24, bins) that spread band gains over the bins of a synthesis frame, linearly in frequency."""
    hertz = np.fft.rfftfreq(2 * _FFT, 1 / RATE_HZ)
    return np.stack([np.interp(hertz, _mel_edges()[1:-1], row) for row in np.eye(BANDS)])


_HANN = np.hanning(_WINDOW + 2)[1:-1]
_WINDOW_POWER = float(np.sum(_HANN**2))
_PITCH_HANN = np.hanning(_PITCH_WINDOW)
_PITCH_NORM = np.fft.irfft(np.abs(np.fft.rfft(_PITCH_HANN, _PITCH_FFT)) ** 2)[: _LAGS[-1] + 2]
_PITCH_NORM = _PITCH_NORM / _PITCH_NORM[0]
_OVERLAP = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(2 * STEP) + 0.5) / (2 * STEP))
_MEL_FILTERS = _mel_filters()
_INTERPOLATION = _interpolation()
