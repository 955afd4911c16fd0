"""How codes behave, as evidence: how long those of layer 0 stay against later layers, and how much of a book is used.

Conventions. Every speaker counts once, and every comparison of layers is made inside speakers (codes that stay) or on
the same left-out speakers (codes used), never from two intervals. Functions return evidence by the key of its claim.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from codecprobe.codebook_counts import Counts, chosen_budget
from codecprobe.notes_claims import FLIPPED, OF_A_HALF
from codecprobe.pace import Pace
from probecore.codebooks import rarefied_codes
from probecore.stats.bootstrap import jackknife_error, t_p_value, t_quantile
from probecore.stats.samples import sign_flip_test
from probecore.verdicts import LEVEL, Evidence

Floats = NDArray[np.float64]
FEWEST_SPEAKERS = 3
TOO_FEW = f"fewer than {FEWEST_SPEAKERS} speakers: no interval over speakers"
FEWEST_LAYERS = 3


def pace_evidence(pace: Pace) -> dict[str, Evidence]:
    """Evidence on how long codes stay, from pairs of frames of speech added up by speaker."""
    own = pace.pairs.pooled(np.eye(pace.n_speakers))
    rates, correlations = own.repeat_rate[:, 1, :], own.autocorrelation[:, 1, :]
    return {
        "persists": against_slowest(rates, pace.n_clips),
        "persists-beyond-use": against_slowest(correlations, pace.n_clips),
        "faster": falls_with_layer(rates, pace.n_clips),
    }


def against_slowest(values: Floats, n_clips: int | None = None) -> Evidence:
    """Return by how much layer 0 exceeds the later layer that comes nearest, from values (speakers, layers).

    The smallest of several differences: its lower end is the smallest of all lower ends (each at .95; an intersection
    of claims needs no correction, Berger 1982), its upper end the smallest upper end at .95 over all layers together.
    """
    kept = values[np.isfinite(values).all(axis=1)]
    if len(kept) < FEWEST_SPEAKERS:
        return Evidence(reason=TOO_FEW, n_clusters=len(kept))
    differences = kept[:, :1] - kept[:, 1:]
    means, n = differences.mean(axis=0), len(kept)
    error = differences.std(axis=0, ddof=1) / np.sqrt(n)
    highs = means + t_quantile(n - 1, LEVEL / differences.shape[1]) * error
    exceeded = np.flatnonzero(highs < 0) + 1
    slowest = int(means.argmin()) + 1
    detail = f"layer 0: {kept[:, 0].mean():.3f}; the slowest later layer is {slowest}: {kept[:, slowest].mean():.3f}"
    detail += f"; surely slower than layer 0: {', '.join(map(str, exceeded))}" if len(exceeded) else ""
    return Evidence(
        float(means.min()),
        float((means - t_quantile(n - 1) * error).min()),
        float(highs.min()),
        p_note=f"the smallest of {differences.shape[1]} differences is read by its interval",
        detail=detail,
        unit="share",
        n_items=n_clips,
        n_clusters=n,
    )


def falls_with_layer(values: Floats, n_clips: int | None = None) -> Evidence:
    """Return the mean over speakers of the rank correlation of layer number and values (speakers, layers)."""
    from scipy.stats import rankdata

    kept = values[np.isfinite(values).all(axis=1)]
    if len(kept) < FEWEST_SPEAKERS or kept.shape[1] < FEWEST_LAYERS:
        return Evidence(reason=TOO_FEW if len(kept) < FEWEST_SPEAKERS else "fewer than 3 layers", n_clusters=len(kept))
    ranks = rankdata(kept, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    order = np.arange(kept.shape[1]) - (kept.shape[1] - 1) / 2
    scale = np.linalg.norm(ranks, axis=1) * np.linalg.norm(order)
    each = np.where(scale > 0, ranks @ order / np.where(scale > 0, scale, 1.0), 0.0)
    mean, n = float(each.mean()), len(each)
    half = t_quantile(n - 1) * float(each.std(ddof=1)) / np.sqrt(n)
    return Evidence(
        mean, mean - half, mean + half, sign_flip_test(each).p_value, FLIPPED, unit="rho", n_items=n_clips,
        n_clusters=n,
    )  # fmt: skip


def usage_evidence(counts: Sequence[Counts]) -> dict[str, Evidence]:
    """Evidence on how much of each codebook is used, from the counts of the codes of each layer by speaker.

    Share of codes used: expected distinct codes in as many frames for all layers, over those that an evenly used book
    of that size would show in as many frames; so neither few frames nor a small book look like little use.
    """
    budget = chosen_budget(counts[0], None)

    def first(each: Floats) -> Floats:
        return np.asarray(each[..., 0] - each[..., 1:].mean(axis=-1) / 2)

    def later(each: Floats) -> Floats:
        return np.asarray(each[..., 1:].mean(axis=-1))

    whole = np.stack([share_used(one.total, budget) for one in counts], axis=-1)
    said = f"at {budget} frames: layer 0 {whole[0]:.2f}, layers 1 to L {whole[1:].mean():.2f} on average"
    if not counts[0].can_jackknife:
        return dict.fromkeys(("uses-less", "uses-most"), Evidence(reason=TOO_FEW, detail=said))
    without = np.stack([share_used(one.without_one, budget) for one in counts], axis=-1)
    freedom, strata = len(without) - 1, np.zeros(len(without), dtype=np.int64)
    found = {}
    for key, function in (("uses-less", first), ("uses-most", later)):
        value, error = float(function(whole)), jackknife_error(function(without), strata)
        half = t_quantile(freedom) * error
        evidence = Evidence(
            value, value - half, value + half, p_note=OF_A_HALF, detail=said, unit="share",
            n_items=counts[0].n_clips, n_clusters=len(without),
        )  # fmt: skip
        found[key] = evidence
    less = found["uses-less"]
    assert less.value is not None and less.high is not None
    error = (less.high - less.value) / t_quantile(freedom)
    p = t_p_value(less.value / error, freedom) if error > 0 else float(less.value == 0)
    found["uses-less"] = replace(less, p_value=p, p_note="p of no difference, jackknife t over speakers")
    return found


def share_used(counts: Floats, budget: int) -> Floats:
    """Return codes expected in `budget` frames over those of an evenly used book, counts (..., codes)."""
    size = counts.shape[-1]
    return np.asarray(rarefied_codes(counts, budget) / (size * -np.expm1(budget * np.log1p(-1 / size))))
