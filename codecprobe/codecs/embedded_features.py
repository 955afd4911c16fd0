"""What the embedded codec listens to before it quantises: content without the voice, and the voice without content.

Conventions: one row per frame of 80 ms. Content features are smoothed mel spectra around the frame, relative to the
clip's own mean, so that what stays the same in a clip (voice, channel, gain) is gone; fixed random units and a linear
read-out turn them into scores of phones. Voice features are what the content leaves of the frames nearby.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.vocoder import BANDS, MEL, PITCH, STEPS, VOICED, Analysis

Weights = Mapping[str, NDArray[Any]]

CEPSTRA = 8  # of 24: the envelope without the harmonics of the pitch
SIDE_STEPS = 2
CONTENT_FEATURES = CEPSTRA * (STEPS + 2 * SIDE_STEPS)
VOICE_FEATURES = BANDS + 1
_LOUD = 5.0  # nats below the loudest step (22 dB) count for the clip's mean
_RANGE = 12.0  # nats below the mean level (52 dB) are all the same silence
_QUIETEST = -11.0  # nats: steps below never count as speech
_COSINES = np.cos(np.pi * np.outer(np.arange(CEPSTRA), np.arange(BANDS) + 0.5) / BANDS) * np.sqrt(2 / BANDS)
_REACH = 4  # frames to each side that tell of the voice
_HANN = np.hanning(2 * _REACH + 3)[1:-1]


def content_features(clip: Analysis, typical: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (frames, 64). typical : (24,) log-mel spectrum that stands in for the mean of a clip without speech."""
    log_mel = clip.log_mel.astype(np.float64)
    level = np.log(np.exp(log_mel).mean(axis=1))
    loud = (level > level.max() - _LOUD) & (level > _QUIETEST)
    mean_level = level[loud].mean() if loud.any() else float(np.mean(typical))
    floored = np.maximum(log_mel, mean_level - _RANGE)
    centred = floored - (floored[loud].mean(axis=0) if loud.any() else typical)
    cepstra = centred @ _COSINES.T
    padded = np.concatenate([cepstra[:1]] * SIDE_STEPS + [cepstra] + [cepstra[-1:]] * SIDE_STEPS)
    n_steps = clip.n_frames * STEPS
    around = [padded[i : i + n_steps : STEPS] for i in range(STEPS + 2 * SIDE_STEPS)]
    return np.concatenate(around, axis=1)


def content_units(features: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    """Return fixed random rectified units, the standardised features and a constant, (frames, units)."""
    standard = (features - weights["content.mean"]) / weights["content.scale"]
    hidden = np.maximum(standard @ weights["content.random"].astype(np.float64) + weights["content.bias"], 0)
    return np.concatenate([hidden, standard, np.ones((len(standard), 1))], axis=1)


def content_codes(clip: Analysis, weights: Weights) -> NDArray[np.int64]:
    """Return the phone with the largest score for every frame."""
    units = content_units(content_features(clip, weights["content.typical"]), weights)
    scores = units @ weights["content.readout"].astype(np.float64)
    return np.asarray(scores.argmax(axis=1), dtype=np.int64)


def voice_features(remainder: NDArray[np.float64], clip: Analysis) -> NDArray[np.float64]:
    """Return (frames, 25): spectrum and pitch that the content left over, averaged over the voiced frames nearby.

    remainder : (frames, 101), latent less the embedding of its content. Frames with nothing voiced nearby give 0, the
    average voice.
    """
    voiced = (clip.voicing.reshape(-1, STEPS) > VOICED).mean(axis=1)
    spectrum = remainder[:, MEL].reshape(len(remainder), STEPS, BANDS).mean(axis=1)
    here = np.concatenate([spectrum, remainder[:, PITCH : PITCH + 1]], axis=1) * voiced[:, None]
    padded, weight = (np.pad(x, ((_REACH, _REACH), (0, 0))) for x in (here, voiced[:, None]))
    total, share = (sum(h * x[i : i + len(here)] for i, h in enumerate(_HANN)) for x in (padded, weight))
    return np.where(share > 0, total / np.maximum(share, 1e-12), 0.0)


def nearest(rows: NDArray[np.float64], table: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the entry of `table` (size, dim) with the least squared distance to each row (n, dim)."""
    entries = table.astype(np.float64)
    distance = np.square(entries).sum(axis=1) - 2 * rows @ entries.T
    return np.asarray(distance.argmin(axis=1), dtype=np.int64)


def context(codes: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Return one-hot codes of the previous, this and the next frame, (frames, 3 x size); the ends repeat themselves."""
    padded = np.concatenate([codes[:1], codes, codes[-1:]])
    return np.concatenate([np.eye(size)[padded[i : i + len(codes)]] for i in range(3)], axis=1)
