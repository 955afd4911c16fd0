"""The result of `lmprobe refusal`: rows in reading order, the notes a reader must know, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmprobe.candidates import describe_candidates
from lmprobe.direction_file import NAME, direction_table
from lmprobe.direction_selection import near_best
from lmprobe.models import LanguageModel
from lmprobe.refusal_answers import REMOVED, UNTOUCHED
from lmprobe.refusal_measured import WORDS, Measured
from lmprobe.refusal_notes import notes
from lmprobe.refusal_nulls import effect_of
from lmprobe.refusal_setting import Material
from probecore.ablation.paired import mean_with_interval
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.stats.bootstrap import cluster_weights

if TYPE_CHECKING:
    from lmprobe.refusal import Options

COLUMNS = (
    "metric", "condition", "detector", "tokens", "value", "ci_low", "ci_high", "planted", "null_low", "null_high",
    "corrected", "corrected_low", "corrected_high", "p_value", "p_adjusted", "n_prompts",
)  # fmt: skip
FACTS = ("architecture", "revision", "weights_hash", "tokenizer_hash", "dtype", "device")


def refusal_result(found: Measured, options: Options, *, packaged: bool, keep_answers: bool, command: str) -> Result:
    """Return the result; keep_answers : with the texts that were written."""
    lm, given, direction = found.lm, found.material, found.found
    grid = _grid(found, options)
    rows = [*_effect_rows(found, options), *_direction_rows(found, grid), *_answers(found, options), *found.cost_rows]
    for row in rows:
        row.setdefault("detail", False)
    rows.sort(key=lambda row: bool(row["detail"]))
    shown = [row for row in rows if not row["detail"]]
    hidden = {"detector"} if len(options.detectors) == 1 else set()
    columns = tuple(
        name for name in COLUMNS if name not in hidden and any(row.get(name) is not None for row in shown)
    )  # fmt: skip
    tables: dict[str, tuple[Row, ...]] = {
        NAME: direction_table(direction.vector), "candidates": tuple(grid), "layers": tuple(found.layers),
        "layers_figure": tuple(_levels(found)), "nulls": tuple(_null_rows(found, options)),
        "rates": tuple(_bars(found, options)), "detectors": tuple(found.detectors),
        "splits": tuple(_split_rows(given)),
    }  # fmt: skip
    if keep_answers:
        tables["answers"] = tuple(_texts(found))
    place = f"position {direction.position}, input of block {direction.block}"
    return Result(
        kind="refusal",
        title=f"Refusal direction of {lm.name}: {place}",
        rows=tuple(rows),
        columns=columns,
        notes=tuple(notes(found, options, packaged, keep_answers, grid)),
        provenance=provenance(
            seed=options.seed, device=str(lm.device), command=command,
            prompts={"source": given.prompts.source, "hash": given.prompts.digest, **given.prompts.counts},
            splits={**given.split.sizes, "test_hash": given.split.digest},
            lengths=list(options.lengths), permutations=options.n_permutations, bootstrap=options.n_bootstrap,
            controls=options.n_controls, detectors=[each.name for each in options.detectors],
            refusal_tokens=list(direction.tokens.texts),
            models=[{
                "name": lm.name, "template": _template(lm, options), "certificate": _certificate(lm),
                **{k: lm.info[k] for k in FACTS},
            }],
        ),
        tables=tables,
        figures=_figures(found, options),
    )  # fmt: skip


def _effect_rows(found: Measured, options: Options) -> list[Row]:
    """Return the fall of the refusal score, and what each null finds."""
    test, given = found.study.splits["test"], found.material
    effect, before, after = effect_of(found.study, found.found)
    bad = test.is_harmful
    clusters = np.unique(test.cluster[bad], return_inverse=True)[1].astype(np.int64)
    weights = cluster_weights(clusters, options.n_bootstrap, seed=options.seed)
    _, low, high = mean_with_interval((before - after)[bad], clusters, weights)
    metric = f"fall of score, {given.harmful} (log-odds)"
    no_p = "" if options.n_permutations else "no replicates were asked for"
    common = {"metric": metric, "measure": "refusal score", "n_prompts": int(bad.sum())}
    rows: list[Row] = [{
        **common, "condition": REMOVED, "value": effect, "ci_low": low, "ci_high": high,
        "untouched": float(before[bad].mean()), "p_value": None if no_p else found.nulls["permuted"].p_value,
        "p_note": no_p,
    }]  # fmt: skip
    for kind, each in found.nulls.items():
        made = each.effects[np.isfinite(each.vectors).all(axis=1)]
        ends = np.quantile(made, [0.025, 0.975]).tolist() if len(made) else [None, None]
        rows.append({
            **common, "condition": f"{REMOVED}: {WORDS[kind]}",
            "value": float(np.median(made)) if len(made) else None,
            "null_low": ends[0], "null_high": ends[1], "p_value": None if no_p else each.p_value, "p_note": no_p,
            "n_replicates": len(each.effects), "n_without_direction": len(each.effects) - len(made),
        })  # fmt: skip
    return rows


def _direction_rows(found: Measured, grid: Sequence[Row]) -> list[Row]:
    direction = found.found
    chosen = next(row for row in grid if row["chosen"])
    rows: list[Row] = []
    frame = np.asarray(found.truth.get("planted", {}).get("directions", []), dtype=np.float64)
    if frame.size:
        rows.append({
            "metric": "share in the planted span", "measure": "direction", "condition": "",
            "value": float(((frame @ direction.unit) ** 2).sum()), "planted": 1.0, "p_value": None,
            "p_note": "a description of this direction", "k": len(frame),
        })  # fmt: skip
        rows.append({
            "metric": "largest cosine with a planted direction", "measure": "direction", "condition": "",
            "value": float(np.abs(frame @ direction.unit).max()), "p_value": None,
            "p_note": "a description of this direction", "detail": len(frame) == 1,
        })  # fmt: skip
    rows.append({
        "metric": "split-half cosine", "measure": "direction", "condition": "",
        "value": chosen["split_half_cosine"], "p_value": None, "p_note": "a description of this direction",
        "cosine_low": chosen["cosine_low"], "cosine_high": chosen["cosine_high"],
    })  # fmt: skip
    rows.append({
        "metric": "candidates, maybe best", "measure": "direction", "condition": "",
        "value": sum(bool(row["may_be_best"]) for row in grid), "p_value": None,
        "p_note": "a description of this direction", "n_candidates": sum(bool(row["may_choose"]) for row in grid),
    })  # fmt: skip
    return rows


def _grid(found: Measured, options: Options) -> list[Row]:
    """Return every candidate with its description and its scores on the select split."""
    study, direction = found.study, found.found
    one, two = study.splits["extract"], study.splits["select"]
    described = {
        (row["position"], row["block"]): row
        for row in describe_candidates(
            study.states, one.is_harmful, direction.candidates, one.cluster, n_bootstrap=min(200, options.n_bootstrap),
            seed=options.seed,
        )
    }  # fmt: skip
    scores, kept = direction.scores, direction.selection.kept
    candidates = np.flatnonzero(kept)
    near = np.zeros(len(kept), dtype=bool)
    near[candidates] = near_best(scores.bypass[candidates], two.cluster[two.is_harmful], seed=options.seed)
    rows: list[Row] = []
    for n, (p, block) in enumerate(direction.places.tolist()):
        position = direction.candidates.positions[p]
        rows.append({
            **described[position, block], "bypass": float(scores.bypass[n].mean()),
            "induce": float(scores.induce[n].mean()), "kl": float(scores.kl[n].mean()),
            "may_choose": block < study.deepest and (study.end.length == 0 or position != study.end.instruction),
            "passes": bool(kept[n]), "may_be_best": bool(near[n]), "chosen": n == direction.selection.index,
        })  # fmt: skip
    return rows


def _answers(found: Measured, options: Options) -> list[Row]:
    """Return the rates: at the longest length in the printed table, with the shorter ones of the two main arms."""
    longest = max(options.lengths)
    for row in found.answers:
        main = row["condition"] in (UNTOUCHED, REMOVED) and row["kind"] == found.material.harmful
        if row["measure"] == "refusal rate":
            row["detail"] = row["tokens"] != longest and not main
    rates = [row for row in found.answers if row["measure"] == "refusal rate"]
    broken = [
        {
            "metric": f"broken answers, {row['kind']}", "measure": "broken answers",
            "condition": row["condition"], "detector": row["detector"], "tokens": row["tokens"],
            "value": row["empty"] + row["degenerate"], "p_value": None, "p_note": "compare it with the untouched model",
            "n_prompts": row["n_prompts"],
            "detail": row["tokens"] != longest or not row["empty"] + row["degenerate"],
        }
        for row in rates if row["detector"] == options.detectors[0].name
    ]  # fmt: skip
    return [*rates, *broken, *(row for row in found.answers if row["measure"] != "refusal rate")]


def _levels(found: Measured) -> list[Row]:
    """Return the rows of the layer figure, with the untouched score as a level."""
    words = "95 % interval over prompts; of a control the range over its draws"
    rows: list[Row] = [{**row, "ci_words": words} for row in found.layers]
    if rows:
        rows.append(
            {"layer": None, "series": UNTOUCHED, "value": rows[0]["untouched"], "ci_low": None, "ci_high": None}
        )
    return rows


def _null_rows(found: Measured, options: Options) -> list[Row]:
    """Return what the null figure shows: the observed effect with its interval, each null's range."""
    rows = []
    for row in _effect_rows(found, options):
        observed = row["condition"] == REMOVED
        rows.append({
            "search": "the given labels" if observed else row["condition"].removeprefix(f"{REMOVED}: "),
            "value": row["value"], "ci_low": row["ci_low"] if observed else row["null_low"],
            "ci_high": row["ci_high"] if observed else row["null_high"], "p_value": row["p_value"],
            "ci_words": "95 % interval over prompts; of a null over replicates",
        })  # fmt: skip
    return rows


def _bars(found: Measured, options: Options) -> list[Row]:
    rates = [row for row in found.answers if row["measure"] == "refusal rate"]
    rates = [row for row in rates if row["detector"] == options.detectors[0].name]
    keys = ("value", "n_prompts", "p_adjusted")
    return [
        {"condition": row["condition"], "kind": row["kind"], "length": f"{row['tokens']} tokens"}
        | {key: row[key] for key in keys}
        | {"ci_low": row.get("ci_low", row.get("null_low")), "ci_high": row.get("ci_high", row.get("null_high"))}
        | {"ci_words": "95 % interval over prompts; of a control the range over its directions"}
        for row in rates
    ]  # fmt: skip


def _split_rows(given: Material) -> list[Row]:
    """Return which prompt stands in which split, without its text."""
    both = given.prompts
    return [
        {"item": both.ids[i], "category": both.categories[i], "split": given.split.split[i] or "left out",
         "cluster": int(given.split.cluster[i])}
        for i in range(len(both))
    ]  # fmt: skip


def _texts(found: Measured) -> list[Row]:
    given, test = found.material, found.study.splits["test"]
    index = given.split.index("test")
    items = {
        kind: [given.prompts.ids[i] for i, bad in zip(index, test.is_harmful, strict=True) if bad == harmful]
        for kind, harmful in ((given.harmful, True), (given.harmless, False))
    }
    return [
        {"item": item, "kind": arm.kind, "condition": arm.condition, "direction": k, "answer": text}
        for arm in found.arms for k, texts in enumerate(arm.texts[max(arm.texts)])
        for item, text in zip(items[arm.kind], texts, strict=True)
    ]  # fmt: skip


def _template(lm: LanguageModel, options: Options) -> str:
    return "chat" if options.template == "chat" or (options.template == "auto" and lm.has_template) else "raw"


def _certificate(lm: LanguageModel) -> Row:
    held = [check.name for check in lm.certificate.checks if check.holds]
    return {"summary": f"{len(held)} of {len(lm.certificate.checks)} checks hold", **lm.certificate.to_json()}


def _figures(found: Measured, options: Options) -> tuple[Figure, ...]:
    given = found.material
    return (
        Figure(
            "refusal_by_layer", "layer_profile", "layers_figure",
            f"Refusal score of {given.harmful} prompts without the direction read at a block",
            "Mean log-odds of a refusal as the first token, test prompts, direction read at position "
            f"{found.found.position} and removed everywhere. Band of the difference in means: .95 interval over "
            "prompts; of a control: range of its draws. No choice was made here. Dotted: nothing removed.",
            {"x": "layer", "y": "value", "series": "series", "chance": None, "p": None, "x_title": "Input of block",
             "y_title": "Refusal score (log-odds)", "zero": False},
        ),
        Figure(
            "nulls", "bars_with_intervals", "nulls", "Fall of the refusal score: the search, and its nulls",
            "First bar: effect of the chosen direction with its .95 interval over prompts. Others: median and .95 "
            "range of the effects of whole searches, choice included, where labels were exchanged or directions drawn.",
            {"label": "search", "value_title": "Fall (log-odds)"},
        ),
        Figure(
            "refusal_rates", "bars_with_intervals", "rates", "Refusal rate by condition and length of the answer",
            f"Share of test prompts whose answer the detector {options.detectors[0].name!r} calls a refusal. A "
            "control is the mean over its directions.",
            {"label": "condition", "series": "length", "facet": "kind", "value_title": "Refusal rate"},
        ),
    )  # fmt: skip
