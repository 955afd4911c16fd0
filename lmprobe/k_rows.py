"""The rows of a k-sweep: k@q with its spread, effects of one size beside controls, ranks, curves.

Conventions. Intervals resample clusters of near-duplicate test prompts, harmful and neutral ones each by themselves,
the same resample for all k. A share has a logit interval (`share_interval`), k@q the nearest ranks of its resamples, in
which "not reached" is larger than any k. Share removed at k is 1 - R(k) / R(0), and 0 where capability is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmprobe.k_curves import Curves, Options, gated_share
from lmprobe.k_frames import contrast_frame
from probecore.geometry import subspace_overlap
from probecore.removal import Crossing, crossing_spread, gated_at
from probecore.results import Row
from probecore.stats.bootstrap import cluster_weights, share_interval
from probecore.stats.permutation import p_value
from probecore.validation import codes_of

if TYPE_CHECKING:
    from lmprobe.k_sweep import Sweep

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEVELS = (0.95, 0.5)
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


def _first(curves: Curves, n: int) -> Curves:
    from dataclasses import replace

    return replace(curves, k=curves.k[:n], refused=curves.refused[:, :n], kept=curves.kept[:, :n])
