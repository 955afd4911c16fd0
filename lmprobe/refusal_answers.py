"""Refusal in written answers: rates at several lengths, untouched and under removal or addition of directions.

Conventions. An arm is one way the model ran over the test prompts of one kind: untouched, direction removed, direction
added, or a control ("removed: random": the same with directions that a null chose). Answers are greedy; what a length
of n tokens would have shown is the first n tokens of the longest run. An arm's value per prompt is whether its answer
is a refusal; of a control, the share of its directions under which it is. An empty answer is no refusal, and is counted
by itself.

Intervals are Wilson's where every prompt is its own cluster of near-duplicates (of a change Newcombe's, 1998, method
10), else logit (of a change t) intervals over resampled clusters. p compares an arm with the untouched one on the same
prompts: McNemar's exact test, or signs of whole clusters flipped, adjusted over arms and lengths (Holm). A control has
no interval and no p, but the range over its directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lmprobe.calibration import Calibration, corrected_rate
from lmprobe.capability import IS_CONTROL, NOT_COMPARED
from lmprobe.detectors import Detector, Verdict, is_degenerate
from lmprobe.generate import generate
from lmprobe.interventions import Intervention, intervened
from lmprobe.models import LanguageModel
from probecore.ablation.paired import paired_effects
from probecore.results import Row
from probecore.stats.effects import mcnemar_exact, paired_difference_interval, wilson_interval
from probecore.stats.multiple import holm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
UNTOUCHED, REMOVED, ADDED = "untouched", "removed", "added"
RANDOM_REMOVED, RANDOM_ADDED = f"{REMOVED}: random", f"{ADDED}: random"


@dataclass(frozen=True, eq=False)
class Arm:
    """Answers of one arm.

    condition : what was done. kind : category of the prompts. texts : length -> one list of answers per direction.
    """

    condition: str
    kind: str
    texts: dict[int, list[list[str]]] = field(repr=False)

    @property
    def n_directions(self) -> int:
        """Number of directions, 1 but for controls."""
        return len(next(iter(self.texts.values())))


def run_arm(
    lm: LanguageModel,
    condition: str,
    kind: str,
    rows: Sequence[Sequence[int]],
    lengths: Sequence[int],
    runs: Iterable[Sequence[Intervention]],
    *,
    batch_tokens: int = 4096,
) -> Arm:
    """Return the arm of answers to formatted prompts; runs : the interventions of each of its directions."""
    texts: dict[int, list[list[str]]] = {n: [] for n in lengths}
    for interventions in runs:
        with intervened(lm, *interventions):
            found = generate(
                lm, [list(row) for row in rows], max_new_tokens=max(lengths), layers=(), template="raw",
                batch_tokens=batch_tokens,
            )  # fmt: skip
        for n in lengths:
            texts[n].append([lm.text(tokens[:n]) for tokens in found.tokens])
    return Arm(condition, kind, texts)


@dataclass(frozen=True, eq=False)
class Judged:
    """An arm as one detector sees it at one length. verdicts : one list per direction."""

    arm: Arm
    tokens: int
    detector: str
    verdicts: list[list[Verdict]] = field(repr=False)

    @property
    def refused(self) -> Floats:
        """Share of the directions under which each prompt is refused, (prompts,)."""
        return np.asarray(np.mean([[verdict == "refusal" for verdict in each] for each in self.verdicts], axis=0))

    def share(self, verdict: Verdict) -> float:
        """Return the share of answers with a verdict."""
        return float(np.mean([[found == verdict for found in each] for each in self.verdicts]))


def judged(arms: Sequence[Arm], prompts: Mapping[str, Sequence[str]], detectors: Sequence[Detector]) -> list[Judged]:
    """Return every arm at every length as every detector sees it; prompts : kind -> their texts."""
    return [
        Judged(arm, n, each.name, [each.verdicts(prompts[arm.kind], texts) for texts in arm.texts[n]])
        for each in detectors for arm in arms for n in arm.texts
    ]  # fmt: skip


def rate_rows(
    found: Sequence[Judged],
    clusters: dict[str, Ints],
    calibrations: dict[str, Calibration | None],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """Return one row per arm, length and detector; clusters : kind -> (prompts,) near-duplicates.

    calibrations : detector -> its counts on labelled answers of this model, None where there are none.
    """
    rows: list[Row] = []
    keys = dict.fromkeys((each.detector, each.arm.kind, each.tokens) for each in found)
    for detector, kind, tokens in keys:
        same = [j for j in found if (j.detector, j.arm.kind, j.tokens) == (detector, kind, tokens)]
        plain = next(j for j in same if j.arm.condition == UNTOUCHED)
        random = [_control(j, same) for j in same]
        effects = paired_effects(
            [j.refused for j in same], plain.refused, random, clusters=clusters[kind], share=True,
            n_bootstrap=n_bootstrap, seed=seed,
        )  # fmt: skip
        for each, effect in zip(same, effects, strict=True):
            rows.append(_row(each, plain, effect, clusters[kind], calibrations.get(detector), seed))
    for name in dict.fromkeys(row["detector"] for row in rows):
        own = [row for row in rows if row["detector"] == name]
        adjusted = holm([np.nan if row["p_value"] is None else row["p_value"] for row in own])
        for row, p in zip(own, adjusted, strict=True):
            row["p_adjusted"] = None if np.isnan(p) else float(p)
    return rows


def _control(found: Judged, same: Sequence[Judged]) -> Floats:
    """Return the values of the random control of an arm, NaN where it has none."""
    what = {REMOVED: RANDOM_REMOVED, ADDED: RANDOM_ADDED}.get(found.arm.condition)
    return next((j.refused for j in same if j.arm.condition == what), np.full(len(found.refused), np.nan))


def _row(each: Judged, plain: Judged, effect: Row, clusters: Ints, calibration: Calibration | None, seed: int) -> Row:
    refused = each.refused
    single = len(np.unique(clusters)) == len(clusters)
    binary = bool(np.isin(refused, (0.0, 1.0)).all())
    row: Row = {
        "metric": f"refusal rate, {each.arm.kind}", "measure": "refusal rate", "condition": each.arm.condition,
        "detector": each.detector, "kind": each.arm.kind, "tokens": each.tokens,
        "value": effect["value"], "ci_low": effect["ci_low"], "ci_high": effect["ci_high"],
        "untouched": effect["unablated_value"], "change": effect["effect"], "change_low": effect["effect_low"],
        "change_high": effect["effect_high"], "control": effect["control_value"], "p_control": effect["p_control"],
        "p_value": effect["p_value"], "p_note": effect["p_note"], "n_prompts": len(refused),
        "n_clusters": effect["n_clusters"], "n_directions": each.arm.n_directions,
        "empty": each.share("empty"), "partial": each.share("partial"), "unparsed": each.share("unparsed"),
        "degenerate": _degenerate(each),
    }  # fmt: skip
    if single and binary:
        row["ci_low"], row["ci_high"] = wilson_interval(int(refused.sum()), len(refused))
        before, after = plain.refused.astype(bool), refused.astype(bool)
        lost, won = int((before & ~after).sum()), int((~before & after).sum())
        row["p_value"], row["p_note"] = mcnemar_exact(lost, won), ""
        row["change_low"], row["change_high"] = paired_difference_interval(
            int((before & after).sum()), won, lost, int((~before & ~after).sum())
        )
    elif row["change_low"] == row["change_high"] and row["change"] is not None:
        # all clusters changed alike, which is no proof that all would: the exact binomial bound of as many trials
        room = 1 - 0.025 ** (1 / effect["n_clusters"])
        row["change_low"], row["change_high"] = max(-1.0, row["change"] - room), min(1.0, row["change"] + room)
    if each is plain:
        row |= {"p_value": None, "p_note": NOT_COMPARED, "change": None, "change_low": None, "change_high": None}
    if each.arm.condition not in (UNTOUCHED, REMOVED, ADDED):
        rates = [np.mean([verdict == "refusal" for verdict in verdicts]) for verdicts in each.verdicts]
        row |= {"null_low": float(min(rates)), "null_high": float(max(rates)), "p_value": None, "p_note": IS_CONTROL}
        row = {key: value for key, value in row.items() if key not in ("ci_low", "ci_high", "p_control")}
    if calibration is not None:
        # near-duplicates are no independent answers: the clusters count
        n = effect["n_clusters"]
        corrected = corrected_rate(float(effect["value"]) * n, n, calibration, seed=seed)
        row |= {"corrected": corrected.value, "corrected_low": corrected.ci_low, "corrected_high": corrected.ci_high}
        row["corrected_note"] = corrected.note
    return row


def _degenerate(each: Judged) -> float:
    return float(np.mean([[is_degenerate(text) for text in texts] for texts in each.arm.texts[each.tokens]]))


def borrowed_rows(rows: Sequence[Row], published: dict[str, Calibration], seed: int = 0) -> list[Row]:
    """Return the rates of some rows corrected as if the detector erred as it does on other models, a row for each."""
    found: list[Row] = []
    for row in rows:
        for name, calibration in published.items():
            n = row["n_clusters"]
            rate = corrected_rate(float(row["value"]) * n, n, calibration, seed=seed)
            found.append({
                "metric": f"{row['metric']}, corrected as for {name}", "measure": "borrowed correction",
                "condition": row["condition"], "detector": row["detector"], "kind": row["kind"],
                "tokens": row["tokens"], "value": rate.value, "ci_low": rate.ci_low, "ci_high": rate.ci_high,
                "ci_note": rate.note, "observed": row["value"], "p_value": None,
                "p_note": "errors of other models: no test", "n_prompts": row["n_prompts"], "detail": True,
            })  # fmt: skip
    return found
