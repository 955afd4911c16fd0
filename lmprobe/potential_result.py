"""The result of `lmprobe potential`: rows in reading order, the notes a reader must know, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmprobe.potential_sums import ALL, Measured
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row

if TYPE_CHECKING:
    from lmprobe.mixing import Pair
    from lmprobe.potential import Setting, Used

COLUMNS = ("metric", "model", "value", "ci_low", "ci_high", "planted", "floor", "p_value", "n_prompts")


def potential_result(
    rows: list[Row],
    measured: Sequence[Measured],
    pairs: Sequence[Pair],
    setting: Setting,
    used: Used,
    packaged: bool,
    command: str,
    names_note: Sequence[str] = (),
) -> Result:
    """Return the result of the pairs of one base, measured on the same contexts."""
    order = list(dict.fromkeys(row["metric"] for row in rows if not row["detail"]))
    place = {metric: i for i, metric in enumerate(order)}
    rows.sort(key=lambda row: (row["detail"], place.get(row["metric"], len(place))))
    base, names = pairs[0].base, [pair.aligned.name for pair in pairs]
    prompts, main = setting.prompts, setting.contrast
    models = [base, *(pair.aligned for pair in pairs)]
    return Result(
        kind="potential",
        title=(
            f"Strength of {', '.join(names)} over {base.name}: {main.is_first.sum()} {main.first} and "
            f"{(~main.is_first).sum()} {main.second} prompts"
        ),
        rows=tuple(rows),
        columns=tuple(name for name in COLUMNS if any(row.get(name) is not None for row in rows)),
        notes=(*_notes(pairs, setting, used, packaged), *names_note),
        provenance=provenance(
            seed=setting.seed,
            device=", ".join(dict.fromkeys(str(lm.device) for lm in models)),
            command=command,
            prompts={"source": prompts.source, "hash": prompts.digest, **prompts.counts},
            max_new_tokens=setting.max_new_tokens,
            permutations=main.labelings.shape[1] - 1,
            bootstrap=setting.weights.shape[1] - 1,
            floor=used.floor_name,
            models=[
                {"name": lm.name, "role": "base" if lm is base else "aligned"}
                | {key: lm.info[key] for key in ("architecture", "revision", "weights_hash", "tokenizer_hash", "dtype")}
                for lm in models
            ],
        ),
        tables={
            "strength": tuple(
                row for row in rows
                if row["measure"] == "L3" and row["mode"] == "prompt end" and row["category"] != ALL
            ),
            "lambda": tuple(_curves(rows)),
            "log_ratios": tuple(_by_prompt(measured, setting)),
        },
        figures=_figures(setting),
    )  # fmt: skip


def _curves(rows: Sequence[Row]) -> list[Row]:
    """Return the gap of the mixture by lambda, a series for every mode, and one for what was planted."""
    gaps = [row for row in rows if "lambda" in row and row["measure"] == "entropy gap"]
    keys = ("lambda", "ci_low", "ci_high", "p_value", "n_prompts")
    found: list[Row] = [{"series": row["mode"], "gap": row["value"], **{k: row[k] for k in keys}} for row in gaps]
    return found + [
        {"series": f"{row['mode']}, planted", "lambda": row["lambda"], "gap": row["planted"], "ci_low": None,
         "ci_high": None}
        for row in gaps if row.get("planted") is not None
    ]  # fmt: skip


def _by_prompt(measured: Sequence[Measured], setting: Setting) -> list[Row]:
    """Return sums over each prompt's contexts, by model and mode."""
    prompts = setting.prompts
    return [
        {"model": own.name, "item": prompts.ids[i], "category": prompts.categories[i], "family": prompts.families[i],
         "mode": mode, "n_tokens": int(m.n[i]), "log_ratio": float(own.taken[mode][i]),
         "kl_aligned_base": float(m.kl_ab[i]), "kl_base_aligned": float(m.kl_ba[i]), "variance": float(m.variance[i])}
        for own in measured for mode, m in own.moments.items() for i in range(len(prompts))
    ]  # fmt: skip


def _notes(pairs: Sequence[Pair], setting: Setting, used: Used, packaged: bool) -> tuple[str, ...]:
    base, last = pairs[0].base, pairs[-1].aligned
    notes = []
    if packaged:
        notes.append(
            "no models were given: these are the packaged organisms, tiny SYNTHETIC models whose planted strengths are "
            ".25, .5 and 1; nothing here is a finding about a real language model"
        )
    notes += [
        "lambda and V_alignment are identified only as a product: L1 and L2 are in units of the given reward, L3 is in "
        "nats where V_alignment has mean variance 1 under the base, L4 counts the anchor as 1; values of two families "
        "of models cannot be compared",
        "the strength depends on the contexts: headline rows are of the prompts' ends; the details hold texts of "
        f"{base.name}, of the aligned model, and one common text",
    ]
    if not used.floor_name:
        notes.append("no floor: the base is too large for a second copy, or already of 16 bits; give --null")
    elif used.floor_name.startswith("weights rounded"):
        notes.append(
            f"floor: {used.floor_name}. That is arithmetic only: another training run moves every estimate more, and "
            "intervals here do not hold it. Give --null, the base trained on without alignment"
        )
    else:
        notes.append(
            f"floor: the same estimate for {used.floor_name}, the base trained on without alignment; intervals of L1, "
            "L3 and L4 hold what a change of that size can do (family_low, family_high are the resamples alone)"
        )
    notes.append(
        f"x lambda: logits (1 - lambda) {base.name} + lambda {last.name}; 0 and 1 are the models themselves, beyond 1 "
        "is extrapolation: a measurement of the mixture, not of any checkpoint"
    )
    if used.rewards is None:
        notes.append(
            "no reward is known for these models, so L1, R2, L2 and the odds of a refusal are not given: name the "
            "tokens that open one (--refusal-opening)"
        )
    elif not used.is_planted:
        notes.append(
            "reward: 1 for the given refusal openings at the prompt's end, so L1 and L2 are the nats by which "
            "alignment favours them; an opening is not yet a refusal"
        )
    if any(pair.base.info["tokenizer_hash"] != pair.aligned.info["tokenizer_hash"] for pair in pairs):
        notes.append(
            "the tokenizers share their vocabulary and differ in settings: texts were turned into ids by the last "
            "aligned model's"
        )
    if len(pairs) == 1:
        notes.append("one aligned model: its place on the path from the base to itself is 1, so L4 is not given")
    if not setting.prompts.has_families:
        notes.append("the prompts name no families: each counts as its own, so intervals may be too short")
    return tuple(notes)


def _figures(setting: Setting) -> tuple[Figure, ...]:
    main = setting.contrast
    return (
        Figure(
            "strength", "bars_with_intervals", "strength", "Strength by category (unit gauge)",
            "Standard deviation under the base of the log-ratio of the next token, at the prompt's end. Whiskers hold "
            "resampled families and the null floor.",
            {"label": "category", "series": "model", "value_title": "Strength L3 (nats)"},
        ),
        Figure(
            "gap_by_lambda", "lines", "lambda", f"Entropy gap, {main.first} - {main.second}, by lambda",
            "Gap of the mixture (1 - lambda) base + lambda aligned. 0 and 1 are the models themselves. The band is the "
            ".95 family bootstrap interval.",
            {"x": "lambda", "y": "gap", "series": "series", "reference": 0.0, "x_title": "Lambda",
             "y_title": "Gap (nats)"},
        ),
    )  # fmt: skip
