"""Rows of `lmprobe potential`: strengths by estimator and context, and what the strength does to the terrain.

Conventions. A row belongs to one aligned `model`; `planted` is the exact value of an organism on the same prompts,
`floor` what the same estimator reads where nothing was aligned. `above_floor` compares the interval over families with
the floor's. No row has a p of strength 0: over fixed models every difference is sure, and says nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lmprobe.contrast_statistics import gap
from lmprobe.entropy import Entropies, gap_rows, variance_rows
from lmprobe.potential_sums import ALL, Measured, Sums, groups_of
from lmprobe.strength import (
    JEFFREYS_FLOOR,
    Moments,
    dose,
    explained,
    given_reward,
    jeffreys,
    off_path,
    relative,
    tilted,
    unit_gauge,
)
from probecore.results import Row

if TYPE_CHECKING:
    from lmprobe.potential import Setting, Used

Floats = NDArray[np.float64]
MODES = ("prompt end", "common text", "base text", "aligned text")
WITH_PATH = ("prompt end", "common text")  # the path's grid costs 29 passes over the vocabulary
NO_TEST = "no p of strength 0: read value and interval against the floor"
RUNS = 1.25  # training noise of another run, in units of the floor's: four runs of the organisms differ by 11 %


def strength_rows(measured: Sequence[Measured], floor: Measured | None, setting: Setting, used: Used) -> list[Row]:
    """Return the rows of L1 to L5 of every aligned model, and the difference between categories with its p."""
    rows: list[Row] = []
    groups = groups_of(setting)
    anchor = measured[-1]
    for k, own in enumerate(measured):
        if used.rewards is not None:
            first, second = setting.contrast.first, setting.contrast.second
            for name in (first,) if used.is_planted else (first, second):  # planted rewards are 0 on safe prompts
                rows += _reward_rows(own, floor, groups[name], setting, used, "" if name == first else f", {name}")
        for group in groups.values():
            for mode in own.moments:
                rows.append(_unit_row(own, floor, group, mode, setting, used))
        rows.append(_where(own, setting))
        if len(measured) > 1:
            for mode in WITH_PATH:
                rows += _relative_rows(own, anchor, floor, groups[ALL], mode, setting, used)
        rows += _dose_rows(own, floor, groups, used.n_bytes[k], used)
    return rows


def effect_rows(effects: Sequence[Row], own: Measured, setting: Setting, model: str) -> list[Row]:
    """Return gaps and alpha of the mixture at every lambda, and its divergence from the base."""
    rows: list[Row] = []
    everyone = groups_of(setting)[ALL]
    for one in effects:
        value, entropies, planted = one["lambda"], one["entropies"], one["planted"]
        known: Entropies | None = planted
        found = gap_rows(entropies, setting.contrast, known)
        found += [
            row for row in variance_rows(entropies, setting.contrast, known, seed=setting.seed)
            if row.get("reading") == "A1" and row["mode"] == "own text"
        ]  # fmt: skip
        for row in found:
            shown = row["mode"] != "common text" and row["measure"] != "LVR"
            rows.append({**row, "metric": f"{row['metric']}, mixed", "lambda": value, "model": f"{model} x {value:g}",
                         "quantity": row["metric"], "detail": not shown})  # fmt: skip
        divergence, low, high = everyone.estimate(
            lambda w, at=value: tilted(own.paths["prompt end"], own.moments["prompt end"], w, at)  # type: ignore[misc]
        )
        rows.append({
            "metric": "KL(mixed || base), prompt end (nats)", "measure": "divergence", "model": f"{model} x {value:g}",
            "lambda": value, "quantity": "KL(lambda || base), prompt end (nats)", "mode": "prompt end",
            "value": divergence, "ci_low": low, "ci_high": high, "p_value": None, "p_note": NO_TEST,
            "n_prompts": everyone.n_prompts, "n_families": everyone.n_families, "detail": True,
        })  # fmt: skip
    return rows


def _reward_rows(
    own: Measured, floor: Measured | None, group: Sums, setting: Setting, used: Used, words: str
) -> list[Row]:
    """Return L1, R2 and L2 under the reward, over the prompts of one category."""
    mode = "prompt end"
    moments = own.moments[mode]
    exact = _planted_moments(own, setting) if used.is_planted else None
    strength: Row = {}
    if exact is not None and own.strength is not None and own.base_strength is not None:
        strength = {"planted": own.strength - own.base_strength}
    wide = _noise(floor, moments, group, mode)
    rows = []
    value, low, high = group.estimate(lambda w: given_reward(moments, w))
    row = _row(own, f"lambda L1, given reward{words}", "L1", mode, group, value, low, high, detail=False)
    row |= _widened(value, low, high, wide)
    row |= _floor(floor, group, lambda m, w: given_reward(m.moments[mode], w), used)
    rows.append(row | strength)
    value, low, high = group.estimate(lambda w: explained(moments, w))
    row = _row(own, f"R2 of the tilt along the reward{words}", "R2", mode, group, value, low, high, detail=False)
    row |= _floor(floor, group, lambda m, w: explained(m.moments[mode], w), used)
    rows.append(row if exact is None else row | {"planted": _first(explained(exact, group.weights))})
    value, low, high = group.estimate(lambda w: jeffreys(moments, w))
    row = _row(own, f"lambda L2, Jeffreys{words}", "L2", mode, group, value, low, high, detail=True)
    divergence = float((moments.kl_ab + moments.kl_ba) @ group.weights[:, 0])
    if floor is not None:
        noise = floor.moments[mode]
        least = float((noise.kl_ab + noise.kl_ba) @ group.weights[:, 0])
        if divergence < JEFFREYS_FLOOR * least:
            row |= {"value": None, "ci_low": None, "ci_high": None}
            row["value_note"] = f"the divergence is below {JEFFREYS_FLOOR:g} times that of the floor: noise over noise"
    return [*rows, row | strength]


def _unit_row(own: Measured, floor: Measured | None, group: Sums, mode: str, setting: Setting, used: Used) -> Row:
    moments = own.moments[mode]
    value, low, high = group.estimate(lambda w: unit_gauge(moments, w))
    shown = mode == "prompt end" and group.words in (setting.contrast.first, setting.contrast.second)
    name = f"lambda L3, unit gauge, {group.words}" + ("" if mode == "prompt end" else f", {mode}") + " (nats)"
    row = _row(own, name, "L3", mode, group, value, low, high, detail=not shown)
    row |= _floor(floor, group, lambda m, w: unit_gauge(m.moments[mode], w), used)
    row |= _widened(value, low, high, row.get("floor"), least=0.0)
    if mode == "prompt end":
        exact = _planted_moments(own, setting)
        row |= {} if exact is None else {"planted": _first(unit_gauge(exact, group.weights))}
    return row


def _where(own: Measured, setting: Setting) -> Row:
    """Return where alignment acts: Var_b ell at the prompt's end, first category minus second, with its p."""
    moments, main = own.moments["prompt end"], setting.contrast
    values = moments.variance[main.items]
    found = main.interval(gap(values))
    p = main.p_value(gap(values))
    row: Row = {
        "metric": f"Var_b log-ratio, {main.first} - {main.second}, prompt end", "measure": "where", "model": own.name,
        "mode": "prompt end", "value": main.observed(gap(values)), "ci_low": None if found is None else found[0],
        "ci_high": None if found is None else found[1], "p_value": p, "n_prompts": main.n_prompts,
        "n_families": main.n_families, "detail": False,
    }  # fmt: skip
    if p is None:
        row["p_note"] = main.reason
    exact = _planted_moments(own, setting)
    return row | ({} if exact is None else {"planted": main.observed(gap(exact.variance[main.items]))})


def _relative_rows(
    own: Measured, anchor: Measured, floor: Measured | None, group: Sums, mode: str, setting: Setting, used: Used
) -> list[Row]:
    """Return L4 and the residual; of the anchor itself they are 1 and 0 by construction."""
    path, shown = own.paths[mode], mode == "prompt end"
    words = "" if shown else f", {mode}"
    if own is anchor:
        row = _row(own, f"lambda L4, relative{words}", "L4", mode, group, 1.0, None, None, detail=not shown)
        return [
            row
            | {
                "anchor": own.name,
                "ci_note": "the anchor: 1 by construction",
                "p_note": "the anchor: 1 by construction",
            }
        ]
    value, low, high = group.estimate(lambda w: relative(path, w))
    row = _row(own, f"lambda L4, relative{words}", "L4", mode, group, value, low, high, detail=not shown)
    row["anchor"] = anchor.name
    wide = None
    if floor is not None:
        gauge = _first(unit_gauge(anchor.moments[mode], group.weights))
        noise = _first(unit_gauge(floor.moments[mode], group.weights))
        wide = None if not gauge or noise is None else noise / gauge
    row |= _widened(value, low, high, wide)
    row |= _floor(floor, group, lambda m, w: relative(m.paths[mode], w), used)
    steps = (own.base_strength, own.strength, anchor.strength)
    if shown and _planted_moments(own, setting) is not None and None not in steps and steps[2] != steps[0]:
        row["planted"] = (steps[1] - steps[0]) / (steps[2] - steps[0])  # type: ignore[operator]
    value, low, high = group.estimate(lambda w: off_path(path, w))
    left = _row(own, f"share of KL off the path{words}", "off path", mode, group, value, low, high, detail=not shown)
    left |= _floor(floor, group, lambda m, w: off_path(m.paths[mode], w), used)
    return [row, left | ({"planted": 0.0} if "planted" in row else {})]


def _dose_rows(
    own: Measured, floor: Measured | None, groups: dict[str, Sums], n_bytes: Floats, used: Used
) -> list[Row]:
    """Return L5: KL(aligned || base) by token in each mode, by response and by byte of the aligned model's text."""
    rows = []
    for group in groups.values():
        for mode, moments in own.moments.items():
            value, low, high = group.estimate(lambda w, m=moments: dose(m, w))  # type: ignore[misc]
            name = f"L5 KL(aligned || base) a token, {group.words}, {mode} (nats)"
            row = _row(own, name, "L5", mode, group, value, low, high, detail=True)
            rows.append(row | _floor(floor, group, lambda m, w, at=mode: dose(m.moments[at], w), used))  # type: ignore[misc]
        text = own.moments["aligned text"]
        per = {
            "response": lambda w, t=text: (t.kl_ab @ w) / w.sum(0),
            "byte": lambda w, t=text: (t.kl_ab @ w) / (n_bytes @ w),
        }
        for words, estimator in per.items():
            value, low, high = group.estimate(estimator)
            name = f"L5 KL(aligned || base) a {words}, {group.words} (nats)"
            rows.append(_row(own, name, "L5", "aligned text", group, value, low, high, detail=words == "byte"
                             or group.words == ALL or group.words not in list(groups)[:2]))  # fmt: skip
        taken = own.taken["aligned text"]
        value, low, high = group.estimate(lambda w, t=taken: (t @ w) / w.sum(0))  # type: ignore[misc]
        name = f"log-ratio of the aligned model's own responses, {group.words} (nats)"
        rows.append(_row(own, name, "log-ratio", "aligned text", group, value, low, high, detail=True))
    return rows


def _planted_moments(own: Measured, setting: Setting) -> Moments | None:
    """Return the exact moments of an organism's first word on these prompts; None for other models or prompts."""
    from lmprobe.organisms.tilt import first_words, rewards

    if own.strength is None or own.base_strength is None or rewards(setting.prompts.texts) is None:
        return None
    exact = Moments.empty(len(setting.prompts), reward=True)
    for i, text in enumerate(setting.prompts.texts):
        log_b, log_a, reward = first_words(text, own.base_strength, own.strength)
        exact.add(i, *(torch.tensor(x)[None] for x in (log_a, log_b, reward)))
    return exact


def _noise(floor: Measured | None, moments: Moments, group: Sums, mode: str) -> float | None:
    """Return the most that a change of the floor's size can move L1: sd_b(noise) / sd_b(reward)."""
    if floor is None or moments.spread is None:
        return None
    spread = float(moments.spread @ group.weights[:, 0]) / float(moments.n @ group.weights[:, 0])
    noise = _first(unit_gauge(floor.moments[mode], group.weights))
    return None if noise is None or not spread > 0 else noise / float(np.sqrt(spread))


def _widened(
    value: float | None, low: float | None, high: float | None, by: float | None, least: float | None = None
) -> Row:
    """Return the interval with `RUNS` times the floor on both sides, and that of the resamples alone."""
    row: Row = {"family_low": low, "family_high": high, "widened_by": None if by is None else RUNS * by}
    if low is None or high is None or by is None:
        return row
    by *= RUNS
    row |= {"ci_low": low - by, "ci_high": high + by}
    if least is not None:
        row["ci_low"] = max(row["ci_low"], least)
    return row


def _floor(floor: Measured | None, group: Sums, of: Callable[[Measured, Floats], Floats], used: Used) -> Row:
    """Return what the estimator reads where nothing was aligned, with its interval over families."""
    if floor is None:
        return {"floor": None, "floor_note": "no floor: give null, a base trained on without alignment"}
    value, low, high = group.estimate(lambda w: of(floor, w))
    return {"floor": value, "floor_low": low, "floor_high": high, "floor_name": used.floor_name}


def _row(
    own: Measured, metric: str, measure: str, mode: str, group: Sums, value: float | None, low: float | None,
    high: float | None, *, detail: bool,
) -> Row:  # fmt: skip
    row: Row = {
        "metric": metric, "measure": measure, "model": own.name, "mode": mode, "category": group.words, "value": value,
        "ci_low": low, "ci_high": high, "p_value": None, "p_note": NO_TEST, "n_prompts": group.n_prompts,
        "n_families": group.n_families, "detail": detail,
    }  # fmt: skip
    if value is None:
        row["value_note"] = "not defined on these contexts: nothing varies, or the place lies outside the path's grid"
    elif low is None:
        row["ci_note"] = "no interval: the estimate is undefined in some resamples, or none were asked for"
    return row


def _first(values: Floats) -> float | None:
    return float(values[0]) if np.isfinite(values[0]) else None
