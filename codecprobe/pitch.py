"""Pitch and voicing of a waveform, frame by frame (YIN).

Conventions. Frames every 10 ms, frame i centred on i x 10 ms, the signal continued with zeros at both ends; a clip of
n samples has ceil(n / hop) frames. Pitch in Hz between 60 and 400, 0 where unvoiced. A frame is voiced when the
cumulative mean normalised difference has a dip below 0.3 and its level lies within 40 dB of the loudest frame.

Source: YIN (de Cheveigné & Kawahara 2002), steps 1 to 5, but the lag is the first dip within 0.05 of the deepest one
instead of the first below a fixed threshold, which takes a strong first formant for the pitch (octave errors on the
embedded voices: .002 of voiced frames instead of .028). Frames are independent of each other.
"""

import numpy as np
from numpy.typing import NDArray

LOWEST_HZ, HIGHEST_HZ = 60.0, 400.0
HOP_S = 0.01
APERIODICITY, MARGIN = 0.3, 0.05
_RANGE_DB = 40.0
_SILENCE = 1e-8  # power; below it (-80 dB of full scale) nothing is voiced


def pitch_track(wave: NDArray[np.floating], sample_rate_hz: int) -> NDArray[np.float64]:
    """Return the pitch of a waveform (samples,) in Hz, (frames,), 0 where unvoiced."""
    hop = max(1, round(HOP_S * sample_rate_hz))
    n_frames = -(-len(wave) // hop)
    window = int(np.ceil(sample_rate_hz / LOWEST_HZ))  # one period of the lowest pitch
    lags = window + 2
    padded = np.pad(wave.astype(np.float64), ((window + lags) // 2, window + lags + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window + lags)[: n_frames * hop : hop]
    frames = frames - frames.mean(axis=1, keepdims=True)  # an offset has no pitch
    difference = _difference(frames, window, lags)
    normalised = difference[:, 1:] * np.arange(1, lags) / np.maximum(difference[:, 1:].cumsum(axis=1), 1e-30)
    normalised = np.concatenate([np.ones((n_frames, 1)), normalised], axis=1)
    shortest = int(sample_rate_hz / HIGHEST_HZ)
    lag, depth = _first_dip(normalised, shortest, window)
    hertz = sample_rate_hz / np.maximum(_parabola(difference, lag), 1.0)
    power = np.square(frames).mean(axis=1)
    loud = power > max(_SILENCE, power.max() * 10 ** (-_RANGE_DB / 10))
    voiced = (depth < APERIODICITY) & loud & (hertz >= LOWEST_HZ) & (hertz <= HIGHEST_HZ)
    return np.where(voiced, hertz, 0.0)


def _difference(frames: NDArray[np.float64], window: int, lags: int) -> NDArray[np.float64]:
    """Return d(lag) = sum over the window of (x[t] - x[t + lag])^2, (frames, lags), lags 0 to lags - 1."""
    from scipy import fft

    size = fft.next_fast_len(frames.shape[1], real=True)  # no lag asked for wraps around
    start = fft.rfft(frames[:, :window], size)
    products = fft.irfft(fft.rfft(frames, size) * start.conj(), size)[:, :lags]
    energy = np.pad(np.square(frames).cumsum(axis=1), ((0, 0), (1, 0)))
    shifted = energy[:, window : window + lags] - energy[:, :lags]
    result: NDArray[np.float64] = np.maximum(shifted[:, :1] + shifted - 2 * products, 0.0)
    return result


def _first_dip(
    normalised: NDArray[np.float64], shortest: int, longest: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the first local minimum of each frame that is nearly as deep as its deepest: lag and depth."""
    here = normalised[:, shortest : longest + 1]
    dips = (here < normalised[:, shortest - 1 : longest]) & (here <= normalised[:, shortest + 1 : longest + 2])
    deepest = np.where(dips, here, np.inf).min(axis=1, keepdims=True)
    first = np.where(dips.any(axis=1), (dips & (here <= deepest + MARGIN)).argmax(axis=1), here.argmin(axis=1))
    return first + shortest, here[np.arange(len(here)), first]


def _parabola(difference: NDArray[np.float64], lag: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the lags of minima moved to the lowest point of a parabola through the three values around each."""
    rows = np.arange(len(lag))
    before, at, after = (difference[rows, lag + step] for step in (-1, 0, 1))
    bend = before - 2 * at + after
    shift = np.where(bend > 0, 0.5 * (before - after) / np.where(bend > 0, bend, 1.0), 0.0)
    moved: NDArray[np.float64] = lag + np.clip(shift, -1.0, 1.0)
    return moved
