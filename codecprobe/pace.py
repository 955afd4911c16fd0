"""Pairs and runs of many clips, added up by speaker, and the times that follow from them.

Conventions. Frames of the codec; the first axis of a `Pace` is the speaker, so that resampled speakers are a product
with their weights. `far` is the largest lag in frames that is not yet far; lags reach `LAGS_PER_FAR` times as far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError
from probecore.timescales import Repeats, e_fold_time, integrated_time, median_run, repeats, runs, survival
from probecore.validation import codes_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
LAGS_PER_FAR = 6


@dataclass(frozen=True)
class Pace:
    """Pairs and runs added up by speaker; ended, cut_off, dropped (speakers, layers, longest + 1): runs by length."""

    pairs: Repeats
    ended: Floats
    cut_off: Floats
    dropped: Floats
    n_frames: int
    n_clips: int

    @property
    def n_speakers(self) -> int:
        """Speakers with a frame that counts."""
        return len(self.ended)


@dataclass(frozen=True)
class Times:
    """In frames, each (..., layers). rho_1 : autocorrelation at one frame. window : where the integrated time ends."""

    repeat_rate: Floats
    median: Floats
    integrated: Floats
    window: Ints
    e_fold: Floats
    rho_1: Floats


def far_frames(far_s: float, frame_rate_hz: float) -> int:
    """Return the largest lag in frames that is not yet far."""
    far = int(np.floor(far_s * frame_rate_hz + 1e-9))
    if far < 1:
        raise InputError(f"--far must hold at least 1 frame of {1 / frame_rate_hz:g} s; got {far_s:g} s")
    return far


def measure_pace(codes: Sequence[Ints], masks: Sequence[Mask], speaker: Ints, far: int) -> Pace:
    """Count pairs and runs of clips, codes (frames, layers) and mask (frames,) of each, and add them up by speaker.

    Raises `InputError` when no clip has a frame that counts.
    """
    kept = [i for i, mask in enumerate(masks) if mask.any()]
    if not kept:
        raise InputError("no clip has a frame that counts: give clips with speech")
    member, names = codes_of(speaker[kept])
    longest, n_layers, n_lags = max(len(codes[i]) for i in kept), codes[kept[0]].shape[1], LAGS_PER_FAR * far
    equal, total = np.zeros((len(names), n_lags + 1, n_layers)), np.zeros((len(names), n_lags + 1))
    far_equal, far_total = np.zeros((len(names), n_layers)), np.zeros(len(names))
    lengths = np.zeros((3, len(names), n_layers, longest + 1))
    for who, i in zip(member, kept, strict=True):
        pairs = repeats(codes[i], masks[i], far, n_lags)
        equal[who] += pairs.equal
        total[who] += pairs.total
        far_equal[who] += pairs.far_equal
        far_total[who] += pairs.far_total
        lengths[:, who] += np.stack(runs(codes[i], masks[i], longest))
    n_frames = sum(int(masks[i].sum()) for i in kept)
    ended, cut_off, dropped = lengths
    return Pace(Repeats(equal, total, far_equal, far_total), ended, cut_off, dropped, n_frames, len(kept))


def in_time(pace: Pace, weights: Floats) -> Times:
    """Return the times with speakers weighted: weights (..., speakers)."""
    pairs = pace.pairs.pooled(weights)
    rho = pairs.autocorrelation
    integrated, window = integrated_time(rho)
    ended, cut_off = (np.tensordot(weights, part, axes=(-1, 0)) for part in (pace.ended, pace.cut_off))
    return Times(
        repeat_rate=pairs.repeat_rate[..., 1, :],
        median=median_run(survival(ended, cut_off)),
        integrated=integrated,
        window=window,
        e_fold=e_fold_time(rho),
        rho_1=rho[..., 1, :],
    )


def shuffle_frames(codes: Sequence[Ints], masks: Sequence[Mask], rng: np.random.Generator) -> list[Ints]:
    """Return the clips with the frames that count in random order among their places; what is given stays as it is."""
    shuffled = []
    for clip, mask in zip(codes, masks, strict=True):
        mixed = clip.copy()
        mixed[mask] = rng.permutation(clip[mask], axis=0)
        shuffled.append(mixed)
    return shuffled
