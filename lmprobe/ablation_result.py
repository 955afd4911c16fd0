"""The rows, notes and pictures of a layer ablation.

Conventions. A row is one metric of one arm (kind, part, layer) on one set of prompts; layer null is all layers at once.
effect = value - unablated_value, mean over prompts. `random_*` and `covariance_*` are the effects of equal changes in
random directions (`lmprobe.ablation_arms`), their p adjusted over the layers of an arm's kind, part and metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.ablation_arms import Arm
from lmprobe.ablation_metrics import ENTROPY, KL, LOSS, REFUSAL, Meter
from lmprobe.ablation_sweep import Swept
from lmprobe.capture import model_record
from lmprobe.models import LanguageModel
from lmprobe.prompts import Prompts, main_categories
from lmprobe.replay import resume_points
from probecore.ablation.sweep import sweep_effects
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row

COLUMNS = (
    "set", "metric", "change", "layer", "unablated_value", "effect", "effect_low", "effect_high",
    "random_low", "random_high", "p_random_adjusted", "p_covariance_adjusted", "noise_floor", "n_prompts",
    "n_families",
)  # fmt: skip
DISTANCE = "a distance: positive under any change, compare it with random directions"
ALL = "all"
EVERY = "all layers"
CURVES = {"random": "random directions", "covariance": "directions that states vary along"}


def ablation_result(
    lm: LanguageModel,
    prompts: Prompts,
    fit: NDArray[np.int64],
    test: NDArray[np.int64],
    gauge: Meter,
    swept: Swept,
    arms: Sequence[Arm],
    settings: Mapping[str, Any],
    *,
    packaged: bool,
    seed: int,
    command: str,
) -> Result:
    """Return the result of a sweep."""
    measured = prompts.take(test.tolist())
    rows = ablation_rows(measured, gauge, swept, arms, n_bootstrap=settings["n_bootstrap"], seed=seed)
    tables = _tables(rows)
    return Result(
        kind="layer-ablation",
        title=f"Layer ablation of {lm.name}",
        rows=tuple(rows),
        columns=COLUMNS if settings["n_random"] else tuple(c for c in COLUMNS if not _of_controls(c)),
        notes=tuple(_notes(lm, prompts, fit, test, gauge, settings, rows, packaged)),
        provenance=provenance(
            seed=seed, device=str(lm.info["device"]), command=command, settings=dict(settings),
            models=[model_record(lm)],
            prompts={"source": prompts.source, "hash": prompts.digest},
            suffix_replay={"legal": list(resume_points(lm).legal), "note": resume_points(lm).check.note},
        ),
        tables={name: tuple(table) for name, table in tables.items()},
        figures=tuple(_figures(tables, gauge, lm.name, bool(settings["n_random"]))),
    )  # fmt: skip


def ablation_rows(
    measured: Prompts, gauge: Meter, swept: Swept, arms: Sequence[Arm], *, n_bootstrap: int, seed: int
) -> list[Row]:
    """Return a row per set of prompts, kind, part, metric and layer."""
    families, categories = np.asarray(measured.families), np.asarray(measured.categories)
    sets = {ALL: np.ones(len(measured), dtype=bool)}
    named = [c for c in main_categories(measured) if c in measured.counts] if len(measured.counts) > 1 else []
    sets |= {category: categories == category for category in named}
    pairs = list(dict.fromkeys((arm.kind, arm.part) for arm in arms))
    rows: list[Row] = []
    for kind, part in pairs:
        own = [arm for arm in arms if (arm.kind, arm.part) == (kind, part)]
        for m, metric in enumerate(gauge.names):
            for name, mask in sets.items():
                found = sweep_effects(
                    np.stack([swept.arms[arm][m, mask] for arm in own]),
                    swept.intact[m, mask],
                    {
                        control: np.stack([values[arm][:, m, mask] for arm in own], axis=1)
                        for control, values in swept.controls.items()
                    },
                    clusters=families[mask],
                    untested=DISTANCE if metric == KL else "",
                    n_bootstrap=n_bootstrap,
                    seed=seed,
                )
                for arm, row in zip(own, found, strict=True):
                    floor = _floor(swept, arm, m)
                    row["n_prompts"], row["n_families"] = row.pop("n_items"), row.pop("n_clusters")
                    head: Row = {
                        "set": name, "change": f"{kind} {part}", "kind": kind, "part": part, "metric": metric,
                        "layer": EVERY if arm.block is None else f"block {arm.block}",
                    }  # fmt: skip
                    tail: Row = {
                        "noise_floor": floor, "below_noise": bool(abs(row["effect"]) <= floor),
                        "detail": not _is_shown(metric, name, measured),
                    }  # fmt: skip
                    rows.append({**head, **{k: v for k, v in row.items() if v != ""}, **tail})
    return rows


def profile(rows: Sequence[Row], metric: str, change: str, prompts: str) -> list[Row]:
    """Return the curves of one metric of one change over layers: the ablation and its two controls."""
    found: list[Row] = []
    for row in rows:
        if (row["metric"], row["change"], row["set"]) != (metric, change, prompts) or row["layer"] == EVERY:
            continue
        curves = {"ablated": ("effect", "effect_low", "effect_high")}
        for control, words in CURVES.items():
            if row.get(f"{control}_effect") is not None:
                curves[words] = (f"{control}_effect", f"{control}_low", f"{control}_high")
        for series, (value, low, high) in curves.items():
            found.append(
                {"layer": row["layer"], "series": series, "value": row[value], "low": row[low], "high": row[high]}
            )
    return found


def _tables(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the curves behind the pictures, one table for each metric and change of the printed rows."""
    shown = dict.fromkeys((row["metric"], row["change"], row["set"]) for row in rows if not row["detail"])
    made = {}
    for metric, change, prompts in shown:
        name = f"{metric}, {change}" + ("" if prompts == ALL else f", {prompts} prompts")
        made[name] = profile(rows, metric, change, prompts)
    return made


def _floor(swept: Swept, arm: Arm, m: int) -> float:
    """Return the larger of the floors of padding and of rounding after the arm's block (all blocks: the largest)."""
    rounding = swept.rounding[:, m] if arm.block is None else swept.rounding[arm.block : arm.block + 1, m]
    known = [value for value in (swept.padding[m], *rounding.tolist()) if np.isfinite(value)]
    return float(max(known, default=float("nan")))


def _is_shown(metric: str, name: str, measured: Prompts) -> bool:
    if metric == REFUSAL and len(measured.counts) > 1:
        return name == main_categories(measured)[0]
    return name == ALL and (metric == KL or metric.startswith("log p of"))


def _of_controls(column: str) -> bool:
    return "random" in column or "covariance" in column


def _notes(
    lm: LanguageModel,
    prompts: Prompts,
    fit: NDArray[np.int64],
    test: NDArray[np.int64],
    gauge: Meter,
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    packaged: bool,
) -> list[str]:
    spans = {
        "end": "at the end of each prompt",
        "answer": f"over the intact model's own greedy answer of at most {settings['max_new_tokens']} tokens",
        "prompt": "over the prompts themselves",
    }
    notes = []
    if packaged:
        notes.append("Packaged organism: a tiny synthetic model with a planted behaviour; no claim about real models.")
    notes.append(
        f"Means, donors, directions and covariances are fitted on {len(fit)} prompts of "
        f"{len({prompts.families[i] for i in fit})} families and measured on {len(test)} prompts of "
        f"{len({prompts.families[i] for i in test})} others. KL, loss and entropy are measured {spans[gauge.span]}, "
        f"nats; the intact text is given, nothing is generated anew. Ablated positions: {settings['positions']}."
    )
    if settings["direction"] != "none":
        notes.append(f"Direction: {settings['direction']}.")
    if settings["n_random"]:
        notes.append(
            f"random: the same change, token by token as large, along each of {settings['n_random']} isotropic "
            f"directions, range of 95 %; covariance: along {settings['n_random']} directions in which the fit states "
            f"vary. p: rank of the effect's size among them, smallest possible {1 / (settings['n_random'] + 1):.2g}, "
            "adjusted over the layers."
        )
    below = sum(row["below_noise"] for row in rows if not row.get("detail"))
    if below:
        notes.append(f"{below} printed effects are no larger than the noise floor of padding and rounding: read as 0.")
    return notes


def _figures(tables: Mapping[str, Any], gauge: Meter, model: str, with_controls: bool) -> list[Figure]:
    units = {KL: "KL(intact || ablated), nats", LOSS: "Loss, change in nats", ENTROPY: "Entropy, change in nats"}
    caption = "Mean over prompts, its band over prompt families."
    if with_controls:
        caption += " Control bands: 95 % of random directions, each token changed by as much."
    made = []
    for table in tables:
        metric = next(name for name in gauge.names if table.startswith(f"{name}, "))
        made.append(
            Figure(
                f"ablation-{table}".replace(" ", "-").replace(",", "").replace("'", ""), "layer_profile", table,
                f"{table[:1].upper()}{table[1:]} ({model})", caption,
                {
                    "y": "value", "low": "low", "high": "high", "series": "series", "chance": None, "p": None,
                    "y_title": units.get(metric, f"{metric[:1].upper()}{metric[1:]}, change in nats"), "zero": True,
                    "x_title": "Block",
                },
            )
        )  # fmt: skip
    return made
