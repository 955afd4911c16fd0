"""Frames of directions whose first k are removed together: those of a contrast, and what they are compared with.

Conventions. x (items, d) float64 states at one site, is_signal (items,). A frame is (K, d) orthonormal rows, in the
order of removal; frames are nested, the first k rows are what k removes.

contrast    leading directions of the contrast matrix (`probecore.directions.contrastive_svd`)
weakest     those of the same matrix from the last one on: directions the states have, but not the behaviour
random      Haar frames, uniform over all
covariance  random weighted sums of reference states without their mean: directions the states vary along anyway
harmless    the contrast of one half of the reference items with the other, where the labels mean nothing
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lmprobe.refusal_nulls import exchanged
from probecore.directions import Contrast, contrastive_svd
from probecore.errors import DesignError
from probecore.removal import random_frames
from probecore.seeds import generator

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
ARMS = ("contrast", "weakest", "random", "covariance", "harmless")


def contrast_frame(x: Floats, is_signal: Flags, k: int, contrast: Contrast) -> Floats:
    """Return the k leading directions of a contrast, fewer where there are fewer signal items."""
    return contrastive_svd(x[is_signal], x[~is_signal], min(k, int(is_signal.sum()), x.shape[1]), contrast).vectors


def weakest_frame(x: Floats, is_signal: Flags, k: int, contrast: Contrast) -> Floats:
    """Return the k last directions of a contrast, the weakest first."""
    whole = contrast_frame(x, is_signal, x.shape[1], contrast)
    return np.ascontiguousarray(whole[::-1][:k])


def harmless_frame(x: Floats, is_signal: Flags, k: int, contrast: Contrast, seed: int) -> Floats:
    """Return the contrast of two random halves of the reference items."""
    reference = x[~is_signal]
    half = generator(seed, "k sweep", "harmless halves").permutation(len(reference)) < len(reference) // 2
    return contrast_frame(reference, half, k, contrast)


def covariance_frames(x: Floats, is_signal: Flags, k: int, n: int, seed: int) -> Floats:
    """Return n frames (n, k, d) whose directions are drawn with the covariance of the reference items."""
    reference = x[~is_signal] - x[~is_signal].mean(axis=0)
    rng = generator(seed, "k sweep", "covariance", k)
    most = min(k, len(reference) - 1, x.shape[1])
    draws = rng.standard_normal((n, most, len(reference))) @ reference
    return np.stack([np.linalg.qr(draw.T)[0].T for draw in draws])


def frames_of(arm: str, x: Floats, is_signal: Flags, k: int, n: int, contrast: Contrast, seed: int) -> list[Floats]:
    """Return the frames of an arm of `ARMS`: n of "random" and "covariance", else one."""
    if arm == "random":
        return list(random_frames(x.shape[1], k, n, seed))
    if arm == "covariance":
        return list(covariance_frames(x, is_signal, k, n, seed))
    if arm == "weakest":
        return [weakest_frame(x, is_signal, k, contrast)]
    if arm == "harmless":
        return [harmless_frame(x, is_signal, k, contrast, seed)]
    return [contrast_frame(x, is_signal, k, contrast)]


def labelings(is_signal: Flags, unit: Ints, n: int, seed: int) -> list[Flags]:
    """Return n random exchanges of the labels, inside the units as their design allows."""
    rng = generator(seed, "k sweep", "labelings")
    return [exchanged(is_signal, unit, rng) for _ in range(n)]


def resampled(is_signal: Flags, cluster: Ints, least: int, n_resamples: int, seed: int) -> Iterator[Ints]:
    """Yield items of resampled clusters, with more than `least` of each kind; no more than 100 draws for each.

    Raises `DesignError` where the clusters do not allow that.
    """
    names = np.unique(cluster)
    members = {name: np.flatnonzero(cluster == name) for name in names}
    rng = generator(seed, "k sweep", "resampled")
    made = 0
    for _ in range(100 * n_resamples):
        if made == n_resamples:
            return
        items = np.concatenate([members[name] for name in rng.choice(names, len(names))])
        kinds = is_signal[items]
        if min(kinds.sum(), (~kinds).sum()) > max(least, 2):
            made += 1
            yield items
    if made < n_resamples:
        raise DesignError(
            f"resamples of {len(names)} clusters must hold more than {least} prompts of each kind: give more"
        )


def frames_again(
    x: Floats, is_signal: Flags, cluster: Ints, k: int, contrast: Contrast, n_resamples: int, seed: int
) -> list[Floats]:
    """Return the first k directions of each of `n_resamples` resamples of clusters of items."""
    return [
        contrast_frame(x[items], is_signal[items], k, contrast)
        for items in resampled(is_signal, cluster, k, n_resamples, seed)
    ]
