"""Two behaviours in a k-sweep: whether their directions overlap, and what removing one does to the other.

Conventions. As in `lmprobe.k_rows`. Overlap is that of `probecore.geometry.subspace_overlap`, beside its closed-form
chance and that of covariance-matched frames. Sizes are those at which half of a behaviour's refusal is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.k_frames import contrast_frame, covariance_frames
from lmprobe.k_rows import NO_TEST, WORDS, Resamples
from probecore.errors import DesignError
from probecore.geometry import subspace_overlap
from probecore.removal import Crossing, gated_at, selective_kill
from probecore.results import Row
from probecore.stats.permutation import p_value

if TYPE_CHECKING:
    from lmprobe.k_curves import Options
    from lmprobe.k_sweep import Sweep

Floats = NDArray[np.float64]

OVERLAP_K = (1, 2, 3, 4, 6, 8, 12, 16, 20, 25, 30)
N_OVERLAP, N_CURVE = 199, 50


def overlap_rows(found: Sweep, options: Options, draws: Resamples) -> tuple[list[Row], list[Row]]:
    """Return rows of two behaviours, and their overlap at every k: geometry, collateral, selective kill."""
    names = list(found.by_behaviour)
    if len(names) < 2:
        return [], []
    rows: list[Row] = []
    curve: list[Row] = []
    sizes, d = {}, found.x.shape[1]
    for name in names:
        curves, mine = found.by_behaviour[name], found.behaviour == name
        try:
            crossing = gated_at(curves.refused[0][:, mine].mean(axis=1), curves.capability[0], 0.5, keeps=options.keeps)
        except DesignError:
            crossing = Crossing(None, found.k_max)
        sizes[name] = crossing.k or found.k_star
        rows.append({
            "metric": f"k@50 %, {name}", "measure": "k@q", "model": found.name, "value": crossing.k,
            "censored": crossing.censored, "n_prompts": int(mine.sum()), "k_max": found.k_max, "p_value": None,
            "p_note": NO_TEST, "detail": True,
        })  # fmt: skip
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = _frame(found, first, options), _frame(found, second, options)
            row = _overlap(found, a[: sizes[first]], b[: sizes[second]], options)
            row |= {"metric": f"overlap, {first} with {second}", "k": sizes[first], "k_other": sizes[second]}
            truth = _planted_overlap(found, first, second)
            rows.append(row if truth is None else {**row, "planted": truth})
            drawn = covariance_frames(found.x, found.is_signal, len(a), 2 * N_CURVE, options.seed + 4)
            for k in (k for k in OVERLAP_K if k <= min(len(a), len(b))):
                matched = np.array(
                    [subspace_overlap(p[:k], q[:k]).overlap for p, q in zip(drawn[::2], drawn[1::2], strict=True)]
                )
                low, high = (float(v) for v in np.quantile(matched, [0.025, 0.975]))
                base: Row = {"model": found.name, "pair": f"{first} with {second}", "k": k}
                curve += [
                    {**base, "arm": "measured", "overlap": subspace_overlap(a[:k], b[:k]).overlap},
                    {**base, "arm": "chance k / d", "overlap": k / d},
                    {**base, "arm": WORDS["covariance"], "overlap": float(matched.mean()), "ci_low": low,
                     "ci_high": high},
                ]  # fmt: skip
    for name in names:
        curves = found.by_behaviour[name]
        k = sizes[name]
        for other in (n for n in names if n != name):
            theirs = found.behaviour == other
            chosen = theirs & (curves.refused[0, 0] > 0)
            if not chosen.any():
                continue
            at = curves.k.index(k)
            rows.append({
                "metric": f"refusal of {other} removed by {name}", "measure": "collateral", "model": found.name, "k": k,
                **draws.share(0, 1 - curves.refused[0, at], chosen), "p_value": None,
                "p_note": "compare it with what the same directions do to their own prompts",
                "own": float(1 - curves.refused[0, at][found.behaviour == name].mean()),
            })  # fmt: skip
            own_curve = curves.refused[0][:, found.behaviour == name].mean(axis=1)
            other_curve = curves.refused[0][:, theirs].mean(axis=1)
            kill = selective_kill(own_curve, other_curve) if own_curve[0] >= 0.5 else None
            rows.append({
                "metric": f"selective kill of {name}, {other} kept", "measure": "selective kill",
                "model": found.name, "value": None if kill is None else kill.k,
                "censored": bool(kill and kill.censored), "n_prompts": int((theirs | (found.behaviour == name)).sum()),
                "k_max": found.k_max, "p_value": None,
                "p_note": NO_TEST if kill else "it is refused less than half the time with nothing removed",
                **({"reads": f"> {curves.k[-1]}"} if kill and kill.censored else {}),
            })  # fmt: skip
    return rows, curve


def behaviour_curve_rows(found: Sweep, draws: Resamples) -> list[Row]:
    """Return what the removal of each behaviour's own directions does to every behaviour, and to capability."""
    rows: list[Row] = []
    for name, curves in found.by_behaviour.items():
        panel = f"{found.name}: directions of {name}"
        for j, k in enumerate(curves.k):
            for other in found.by_behaviour:
                values = draws.share(0, curves.refused[0, j], found.behaviour == other)
                rows.append({"panel": panel, "k": k, "of": f"refusal of {other}", **values})
            rows.append({"panel": panel, "k": k, "of": "capability", **draws.share(2, curves.kept[0, j])})
    return rows


def _frame(found: Sweep, behaviour: str, options: Options) -> Floats:
    part = (found.extract_behaviour == behaviour) | ~found.is_signal
    return contrast_frame(found.x[part], found.is_signal[part], found.k_max, options.contrast)


def _overlap(found: Sweep, a: Floats, b: Floats, options: Options) -> Row:
    """Return the overlap of two frames with its closed-form chance and that of covariance-matched frames."""
    there = subspace_overlap(a, b)
    draws = [
        covariance_frames(found.x, found.is_signal, len(frame), N_OVERLAP, options.seed + 2 + i)
        for i, frame in enumerate((a, b))
    ]
    null = np.array([subspace_overlap(p, q).overlap for p, q in zip(*draws, strict=True)])
    low, high = (float(v) for v in np.quantile(null, [0.025, 0.975]))
    return {
        "measure": "overlap", "model": found.name, "value": there.overlap, "chance": there.chance,
        "control": WORDS["covariance"], "null_mean": float(null.mean()), "null_low": low, "null_high": high,
        "distance": there.distance, "n_prompts": len(found.x),
        "p_value": float(p_value(np.concatenate([[there.overlap], null]))),
        "p_note": "share of pairs of covariance-matched frames that overlap at least as much",
    }  # fmt: skip


def _planted_overlap(found: Sweep, first: str, second: str) -> float | None:
    planted: dict[str, Any] = found.truth.get("planted", {})
    topics = planted.get("topics", {})
    rows = [sorted({topics[t]["direction"] for t in name.split(" and ") if t in topics}) for name in (first, second)]
    if not all(rows) or any(r is None for part in rows for r in part):
        return None
    whole = np.asarray(planted["directions"], dtype=np.float64)
    return subspace_overlap(whole[rows[0]], whole[rows[1]]).overlap
