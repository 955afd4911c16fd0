"""How long codes stay: repeats, categorical autocorrelation and run lengths, on clips of unequal length.

Conventions. A clip is codes (frames, layers) and a mask (frames,) of the frames that count. No pair or run crosses the
border of a clip; both frames of a pair must count, and a run ends at a frame that does not. Lags and times are in
frames. r(lag) is the probability that two frames `lag` apart carry the same code, r_far that of two frames of one clip
more than `far` apart.

    rho(lag) = (r(lag) - r_far) / (1 - r_far)                the autocorrelation of one-hot vectors; 0 where r = r_far
    integrated time = 1/2 + rho(1) + ... + rho(M), M the first lag >= 5 times it              Sokal (1997), window 5

r_far is measured on pairs and not on a clip's own mean, which would pull every rho down by about 1 / frames. White
codes have an integrated time of 1/2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError
from probecore.validation import at_least

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
WINDOW = 5.0


@dataclass(frozen=True)
class Repeats:
    """Pairs of frames of one clip or, added up, of many: how many there are and how many carry the same code.

    equal (..., lags + 1, layers), total (..., lags + 1) by lag, lag 0 first; far_equal (..., layers), far_total (...).
    """

    equal: Floats
    total: Floats
    far_equal: Floats
    far_total: Floats

    def pooled(self, weights: Floats) -> "Repeats":
        """Return the pairs of clips (or groups of them), weighted: weights (..., clips)."""
        return Repeats(
            np.tensordot(weights, self.equal, axes=(-1, 0)),
            weights @ self.total,
            weights @ self.far_equal,
            weights @ self.far_total,
        )

    @property
    def repeat_rate(self) -> Floats:
        """r(lag), (..., lags + 1, layers); NaN where there is no pair."""
        return _ratio(self.equal, self.total[..., None])

    @property
    def baseline(self) -> Floats:
        """r_far, (..., layers); NaN where no clip has frames so far apart."""
        return _ratio(self.far_equal, self.far_total[..., None])

    @property
    def autocorrelation(self) -> Floats:
        """rho(lag), (..., lags + 1, layers); NaN where it is not defined (also where every code is the same)."""
        far = self.baseline[..., None, :]
        return _ratio(self.repeat_rate - far, 1 - far)


def repeats(codes: NDArray[np.integer], mask: Mask, far: int, n_lags: int) -> Repeats:
    """Count the pairs of one clip, codes (frames, layers), up to `n_lags` apart and those more than `far` apart."""
    at_least(n_lags, at_least(far, 1, "far"), "n_lags")
    _check(codes, mask)
    n_frames, n_layers = codes.shape
    equal, total = np.zeros((n_lags + 1, n_layers)), np.zeros(n_lags + 1)
    for lag in range(min(n_lags + 1, n_frames)):
        both = mask[lag:] & mask[: n_frames - lag]
        equal[lag] = (codes[lag:] == codes[: n_frames - lag])[both].sum(axis=0)
        total[lag] = both.sum()
    kept = codes[mask]
    n = len(kept)
    every = (
        np.array([(np.bincount(column).astype(np.float64) ** 2).sum() for column in kept.T])
        if n
        else np.zeros(n_layers)
    )
    far_equal = (every - n) / 2 - equal[1 : far + 1].sum(axis=0)
    far_total = n * (n - 1) / 2 - total[1 : far + 1].sum()
    return Repeats(equal, total, far_equal, np.asarray(far_total, dtype=np.float64))


def stack(parts: Sequence[Repeats]) -> Repeats:
    """Put the pairs of several clips along a first axis."""
    return Repeats(
        np.stack([part.equal for part in parts]),
        np.stack([part.total for part in parts]),
        np.stack([part.far_equal for part in parts]),
        np.stack([part.far_total for part in parts]),
    )


def integrated_time(rho: Floats) -> tuple[Floats, Ints]:
    """Return the integrated time in frames and the lag M where its window ends, each (..., layers).

    rho (..., lags + 1, layers). NaN and -1 where the window does not end before the lags do, or meets a NaN before it
    ends: then the codes are slower than these lags can show.
    """
    tau = 0.5 + np.cumsum(rho[..., 1:, :], axis=-2)
    lags = np.arange(1, tau.shape[-2] + 1)[:, None]
    ends = lags >= WINDOW * tau  # never where tau is NaN
    first = ends.argmax(axis=-2)
    found = ends.any(axis=-2)
    value = np.take_along_axis(tau, first[..., None, :], axis=-2)[..., 0, :]
    return np.where(found, value, np.nan), np.where(found, first + 1, -1)


def e_fold_time(rho: Floats) -> Floats:
    """Return the lag at which rho falls below 1/e, by linear interpolation, in frames, (..., layers).

    NaN where it never does within the lags. Below 1 the codes change faster than a frame can show, and the number is
    only the interpolation between rho(0) = 1 and rho(1): print "< 1 frame" instead.
    """
    below = rho < 1 / np.e
    first = below.argmax(axis=-2)
    after = np.take_along_axis(rho, first[..., None, :], axis=-2)[..., 0, :]
    before = np.take_along_axis(rho, np.maximum(first - 1, 0)[..., None, :], axis=-2)[..., 0, :]
    before = np.where(first == 1, 1.0, before)
    with np.errstate(invalid="ignore", divide="ignore"):
        lag = first - 1 + (before - 1 / np.e) / (before - after)
    return np.where(below.any(axis=-2) & (first > 0), lag, np.nan)


def runs(codes: NDArray[np.integer], mask: Mask, longest: int) -> tuple[Ints, Ints, Ints]:
    """Count the runs of one clip by length: ended, cut off, dropped, each (layers, longest + 1), longer ones last.

    A run is a stretch of one code between frames that count. It has *ended* when both its ends were seen. The last run
    of a stretch is *cut off*: it started where we saw it and lasts at least as long as it was seen. The first one is
    *dropped*: nobody saw it start, and stretches begin more often in long runs than in short ones.
    """
    at_least(longest, 1, "longest")
    _check(codes, mask)
    n_layers = codes.shape[1]
    found = np.zeros((3, n_layers, longest + 1), dtype=np.int64)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2):
        part = codes[start:stop]
        changes = part[1:] != part[:-1]
        for layer in range(n_layers):
            borders = np.concatenate([[0], np.flatnonzero(changes[:, layer]) + 1, [stop - start]])
            lengths = np.minimum(np.diff(borders), longest)
            found[2, layer, lengths[0]] += 1
            if len(lengths) > 1:
                found[1, layer, lengths[-1]] += 1
                found[0, layer] += np.bincount(lengths[1:-1], minlength=longest + 1)
    return found[0], found[1], found[2]


def survival(ended: NDArray[np.number], cut_off: NDArray[np.number]) -> Floats:
    """Return P(a run lasts longer than k frames), k = 0, 1, ... (..., longest + 1), by Kaplan & Meier (1958).

    A run cut off after k frames was at risk of ending after 1 to k - 1 frames; whether it ends after k was not seen.
    NaN beyond the longest run at risk.
    """
    ended, cut_off = np.asarray(ended, dtype=np.float64), np.asarray(cut_off, dtype=np.float64)
    at_least_k = np.cumsum((ended + cut_off)[..., ::-1], axis=-1)[..., ::-1]
    at_risk = at_least_k - cut_off
    with np.errstate(invalid="ignore", divide="ignore"):
        lasts = np.where(at_risk > 0, 1 - ended / at_risk, np.nan)
    lasts[..., 0] = 1.0
    return np.asarray(np.cumprod(lasts, axis=-1), dtype=np.float64)


def median_run(surviving: Floats) -> Floats:
    """Return the smallest k with P(run > k) <= 1/2, in frames, (...); NaN where the curve ends before."""
    reached = surviving <= 0.5 + 1e-12
    return np.where(reached.any(axis=-1), reached.argmax(axis=-1).astype(np.float64), np.nan)


def _ratio(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        out: Floats = np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
    return out


def _check(codes: NDArray[np.integer], mask: Mask) -> None:
    if codes.ndim != 2 or codes.dtype.kind not in "iu" or (codes.size and codes.min() < 0):
        raise InputError(
            f"codes must be whole numbers from 0 of shape (frames, layers); got {codes.dtype} {codes.shape}"
        )
    if mask.shape != codes.shape[:1] or mask.dtype != np.bool_:
        raise InputError(
            f"a mask must hold True or False for each of {len(codes)} frames; got {mask.dtype} {mask.shape}"
        )
