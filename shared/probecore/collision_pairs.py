"""Pairs of frames that carry the same code, counted without listing the pairs.

Conventions. Codes (frames, layers) and masks (frames,), which frames count, of each clip; see `probecore.collisions`
for what the pairs are taken for.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError
from probecore.validation import codes_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def session_collisions(counts: NDArray[np.number], member: Ints) -> Floats:
    """Return the mean collision probability over pairs of different clips, one of each session, (sessions, sessions).

    counts (clips, codes); member (clips,) session codes. NaN on the diagonal of a session with one clip.
    """
    total = counts.sum(axis=1, keepdims=True).astype(np.float64)
    if (total < 1).any():
        raise InputError("every clip of a ladder needs a frame that counts: leave out those without")
    share = counts / total
    sums = np.zeros((int(member.max()) + 1, counts.shape[1]))
    np.add.at(sums, member, share)
    pairs = sums @ sums.T
    pairs[np.diag_indices(len(pairs))] -= np.bincount(member, weights=(share**2).sum(axis=1))
    size = np.bincount(member).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        n_pairs = np.outer(size, size) - np.diag(size)
        out: Floats = np.where(n_pairs > 0, pairs / n_pairs, np.nan)
    return out


def far_collisions(codes: Sequence[Ints], masks: Sequence[NDArray[np.bool_]], far: int) -> tuple[Floats, Floats]:
    """Return how often two far frames of one session carry the same code, in one clip and in two clips, (layers,) each.

    Far: distances from the clip's start that differ by more than `far`. Pairs count equally. NaN where there are none.
    """
    every = _ordered_pairs(codes, masks, far)
    alone = [_ordered_pairs([clip], [mask], far) for clip, mask in zip(codes, masks, strict=True)]
    within = np.sum(alone, axis=0)
    found = []
    for equal, total in (within, every - within):
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(np.where(total > 0, equal / np.where(total > 0, total, 1.0), np.nan))
    return found[0], found[1]


def _ordered_pairs(codes: Sequence[Ints], masks: Sequence[NDArray[np.bool_]], far: int) -> Floats:
    """Return ordered pairs of far frames, of any two clips or of one: equal and all, (2, layers)."""
    place = np.concatenate([np.flatnonzero(mask) for mask in masks])
    frames = np.concatenate([clip[mask] for clip, mask in zip(codes, masks, strict=True)])
    lasts = np.arange(int(place.max(initial=-1)) + 1)
    upper, lower = np.minimum(lasts + far, len(lasts) - 1), lasts - far - 1

    def far_pairs(values: Ints, n_values: int) -> float:
        at = np.zeros((len(lasts), n_values))  # how many clips have this value at this distance from their start
        np.add.at(at, (place, values), 1.0)
        until = np.cumsum(at, axis=0)
        near = until[upper] - np.where(lower[:, None] >= 0, until[np.maximum(lower, 0)], 0.0)
        return float((until[-1] ** 2).sum() - (at * near).sum()) if len(lasts) else 0.0

    total = far_pairs(np.zeros(len(place), dtype=np.int64), 1)
    equal = [far_pairs(dense, int(dense.max(initial=0)) + 1) for dense in (codes_of(column)[0] for column in frames.T)]
    return np.array([equal, [total] * len(equal)])
