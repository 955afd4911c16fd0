"""The rows of a k-sweep: k@q with its spread, effects of one size beside controls, ranks, overlap of behaviours.

Conventions. Intervals resample clusters of near-duplicate test prompts, harmful and neutral ones each by themselves,
the same resample for all k. A share has a logit interval (`share_interval`), k@q the nearest ranks of its resamples, in
which "not reached" is larger than any k. Share removed at k is 1 - R(k) / R(0), and 0 where capability is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.k_frames import contrast_frame, covariance_frames
from probecore.errors import DesignError
from probecore.geometry import subspace_overlap
from probecore.removal import Crossing, crossing_spread, gated_at, selective_kill
from probecore.results import Row
from probecore.stats.bootstrap import cluster_weights, share_interval
from probecore.stats.permutation import p_value
from probecore.validation import codes_of

if TYPE_CHECKING:
    from lmprobe.k_sweep import Curves, Options, Sweep

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEVELS = (0.95, 0.5)
OVERLAP_K = (1, 2, 3, 4, 6, 8, 12, 16, 20, 25, 30)
N_OVERLAP, N_CURVE = 199, 50
WORDS = {
    "contrast": "contrast", "weakest": "weakest directions", "random": "random frames",
    "covariance": "covariance-matched frames", "harmless": "contrast of harmless halves",
}  # fmt: skip
NO_TEST = "no null is fixed for it: read the interval"


class Resamples:
    """Weights of resampled clusters of harmful, harmless and neutral test prompts, (resamples, prompts) each."""

    def __init__(self, found: Sweep, options: Options) -> None:
        self.codes = [codes_of(c)[0] for c in found.clusters]
        self.weights = [cluster_weights(c, options.n_bootstrap, seed=options.seed) for c in self.codes]

    def means(self, kind: int, values: Floats, chosen: NDArray[np.bool_] | None = None) -> Floats:
        """Return weighted means (resamples, ...) of values (..., prompts); kind : 0 harmful, 1 harmless, 2 neutral."""
        w = self.weights[kind] if chosen is None else self.weights[kind] * chosen
        total = w.sum(axis=1)
        kept = w[total > 0] / total[total > 0, None]
        return np.asarray(kept @ np.moveaxis(np.asarray(values, dtype=np.float64), -1, 0))

    def share(self, kind: int, values: Floats, chosen: NDArray[np.bool_] | None = None) -> Row:
        """Return value and interval of the mean of values (prompts,) in [0, 1]."""
        mask = np.ones(len(self.codes[kind]), dtype=bool) if chosen is None else chosen
        value, n_clusters = float(np.mean(values[mask])), len(np.unique(self.codes[kind][mask]))
        draws = self.means(kind, values, chosen)
        error = float(draws.std(ddof=1)) * float(np.sqrt(n_clusters / max(n_clusters - 1, 1)))
        low, high = share_interval(
            value, error, max(n_clusters - 1, 1), int(mask.sum()), n_clusters, measured_at=float(draws.mean())
        )
        return {
            "value": value, "ci_low": low, "ci_high": high, "n_prompts": int(mask.sum()), "n_clusters": n_clusters
        }  # fmt: skip


def crossing_rows(found: Sweep, options: Options, draws: Resamples) -> list[Row]:
    """Return k@95 % and k@50 %, gated, and what they would be without the gate (details)."""
    rows: list[Row] = []
    curves = found.curves["contrast"]
    planted = found.truth.get("planted", {}).get("k")
    n = curves.refused.shape[2]
    for q in LEVELS:
        for gated in (True, False):
            row: Row = {
                "metric": f"k@{100 * q:.0f} %" + ("" if gated else ", capability not asked"), "model": found.name,
                "measure": "k@q", "q": q, "gated": gated, "detail": not gated, "n_prompts": n, "k_max": found.k_max,
                "p_value": None, "p_note": found.why_none or NO_TEST,
            }  # fmt: skip
            if found.why_none:
                rows.append({**row, "value": None, "ci_low": None, "ci_high": None, "not_reached": None})
                continue
            gate = curves.capability[0] if gated else np.ones(len(curves.k))
            crossing = gated_at(curves.refusal[0], gate, q, keeps=options.keeps)
            refusal = draws.means(0, curves.refused[0])
            capability = draws.means(2, curves.kept[0]) if gated else np.ones_like(refusal)
            again = [
                gated_at(r, c, q, keeps=options.keeps) if r[0] > 0 else Crossing(None, found.k_max)
                for r, c in zip(refusal, capability, strict=True)
            ]
            spread = crossing_spread(again)
            row |= {
                "value": crossing.k, "censored": crossing.censored, "ci_low": spread.low, "ci_high": spread.high,
                "median": spread.median, "not_reached": spread.not_reached,
            }  # fmt: skip
            if crossing.censored:
                row["reads"] = f"> {found.k_max}"
            if planted and q == LEVELS[0] and gated:
                row["planted"] = planted
            rows.append(row)
    if found.again is not None:
        rows.append(_again_row(found, options))
    return rows


def _again_row(found: Sweep, options: Options) -> Row:
    """Return k@95 % of the directions of resampled extract prompts, on the same test prompts."""
    curves = found.again
    assert curves is not None
    spread = crossing_spread([
        gated_at(refusal, capability, LEVELS[0], keeps=options.keeps)
        for refusal, capability in zip(curves.refusal, curves.capability, strict=True)
    ])  # fmt: skip
    row: Row = {
        "metric": "k@95 %, directions of resampled prompts", "measure": "k@q again", "model": found.name,
        "value": spread.median, "ci_low": spread.low, "ci_high": spread.high, "not_reached": spread.not_reached,
        "censored": spread.median is None, "n_resamples": len(curves.refused), "k_max": curves.k[-1],
        "n_prompts": len(found.x), "p_value": None,
        "p_note": f"median and range of {len(curves.refused)} resamples of the extract prompts",
    }  # fmt: skip
    return row | ({"reads": f"> {curves.k[-1]}"} if spread.median is None else {})


def size_rows(found: Sweep, options: Options, draws: Resamples) -> list[Row]:
    """Return what k* directions remove, beside each control of that size, and what their removal costs."""
    from lmprobe.k_sweep import gated_share

    k, name, curves = found.k_star, found.name, found.curves["contrast"]
    at = curves.k.index(k)
    base: Row = {"model": name, "k": k}
    rows: list[Row] = []
    if not found.why_none:
        share = draws.share(0, 1 - curves.refused[0, at], curves.refused[0, 0] > 0)
        lost = float(curves.capability[0, at]) < options.keeps
        own = 0.0 if lost else share["value"]
        for arm, values in found.one_size.items():
            low, high = (float(v) for v in np.quantile(values, [0.025, 0.975]))
            rows.append({
                "metric": "share of refusal removed by k*", "measure": "removed", **base, **share, "value": own,
                "control": WORDS[arm], "null_mean": float(values.mean()), "null_low": low, "null_high": high,
                "n_control": len(values), "p_value": float(p_value(np.concatenate([[own], values]))),
                "p_note": "share of control frames that remove at least as much; k* is chosen on other prompts",
            })  # fmt: skip
        for arm in ("weakest", "harmless"):
            control = found.curves[arm]
            near = [j for j, other in enumerate(control.k) if 0 < other <= k]
            if near:
                cut = _first(control, near[-1] + 1)
                rows.append({
                    "metric": "share of refusal removed by k*", "measure": "removed", **base, **share, "value": own,
                    "control": f"{WORDS[arm]}, k = {control.k[near[-1]]}",
                    "null_mean": float(gated_share(cut, options).mean()), "p_value": None, "detail": True,
                    "p_note": "one frame is no null: compare the two values",
                })  # fmt: skip
    before = {"metric": "refusal of harmful prompts, untouched", "measure": "cost", "model": name,
              **draws.share(0, curves.refused[0, 0]), "p_value": None, "p_note": NO_TEST}  # fmt: skip
    if found.why_none:
        return [*rows, before]
    rows.append(before)
    costs: list[tuple[str, Row]] = [
        ("refusal of harmful prompts, k* removed", draws.share(0, curves.refused[0, at])),
        ("refusal of harmless prompts, k* removed", draws.share(1, curves.over[0, at])),
        ("capability, k* removed", draws.share(2, curves.kept[0, at])),
    ]
    rows += [
        {"metric": metric, "measure": "cost", **base, **values, "p_value": None, "p_note": NO_TEST}
        for metric, values in costs
    ]
    rise = draws.means(2, curves.ce_rise[0, at])
    low, high = (float(v) for v in np.quantile(rise, [0.025, 0.975]))
    rows.append({
        "metric": "rise of CE of own answers (nats), k* removed", "measure": "cost", **base,
        "value": float(curves.ce_rise[0, at].mean()), "ci_low": low, "ci_high": high,
        "n_prompts": curves.kept.shape[2], "p_value": None, "p_note": NO_TEST, "detail": True,
    })  # fmt: skip
    return rows


def rank_rows(found: Sweep) -> list[Row]:
    """Return the dimensions of the contrast with their nulls, and how far its span would be found again."""
    rows: list[Row] = [
        {**row, "metric": row["measure"], "model": found.name, "detail": row["measure"] != "signal rank"}
        for row in found.spectrum.rows()
    ]
    for row in rows:
        row |= {"measure": "rank", "n_prompts": row["n_signal"] + row["n_reference"]}
    k = found.k_star
    if not found.drawn:
        return rows
    own = contrast_frame(found.x, found.is_signal, k, found.spectrum.contrast)
    span = np.array([subspace_overlap(own, frame[:k]).overlap for frame in found.drawn])
    low, high = (float(v) for v in np.quantile(span, [0.025, 0.975]))
    rows.append({
        "metric": "span of k* found again", "measure": "span", "model": found.name, "k": k,
        "value": float(span.mean()), "ci_low": low, "ci_high": high, "chance": k / found.x.shape[1],
        "n_prompts": len(found.x), "p_value": None, "detail": True,
        "p_note": "overlap with the spans of resampled clusters; chance is that of random spans",
    })  # fmt: skip
    return rows


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


def curve_rows(found: Sweep, draws: Resamples) -> list[Row]:
    """Return refusal and capability of every arm at every k; random controls have the range of their frames."""
    rows: list[Row] = []
    for arm, curves in found.curves.items():
        for j, k in enumerate(curves.k):
            for what, kind, values in (("refusal", 0, curves.refused), ("capability", 2, curves.kept)):
                row: Row = {"model": found.name, "arm": WORDS[arm], "k": k, "measure": what,
                            "panel": f"{found.name}: {what}"}  # fmt: skip
                if len(values) == 1:
                    row |= draws.share(kind, values[0, j])
                else:
                    means = values[:, j].mean(axis=1)
                    row |= {"value": float(means.mean()), "ci_low": float(means.min()), "ci_high": float(means.max())}
                rows.append(row)
    return rows


def over_rows(found: Sweep, draws: Resamples) -> list[Row]:
    """Return the share of harmless prompts that are refused at every k."""
    curves = found.curves["contrast"]
    return [{"model": found.name, "k": k, **draws.share(1, curves.over[0, j])} for j, k in enumerate(curves.k)]


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


def _first(curves: Curves, n: int) -> Curves:
    from dataclasses import replace

    return replace(curves, k=curves.k[:n], refused=curves.refused[:, :n], kept=curves.kept[:, :n])


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
