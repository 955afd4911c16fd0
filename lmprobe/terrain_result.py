"""The result of a terrain: rows in reading order, the notes a reader must know, and the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmprobe.contrasts import Contrast
from lmprobe.dimension import massive_first_token
from lmprobe.generate import not_applied
from lmprobe.matching import Matching
from lmprobe.models import LanguageModel, Template
from lmprobe.prompts import Prompts
from lmprobe.separability import MOST_RANDOM_PARAMETERS
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row

COMMON_TEXT = "Sure, here is a short plan."
COLUMNS = (
    "metric", "model", "value", "ci_low", "ci_high", "planted", "null_low", "null_high", "p_value", "p_adjusted",
    "n_prompts",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Everything that is the same for all models; contrasts[0] is the main one."""

    prompts: Prompts
    contrasts: tuple[Contrast, ...]
    max_new_tokens: int
    template: Template
    n_permutations: int
    n_bootstrap: int
    seed: int
    matching: Matching | None = None


@dataclass(frozen=True)
class Terrain:
    """What was measured on one model: rows, tables by name, notes, facts for the provenance, mean entropies by mode."""

    rows: list[Row]
    tables: Mapping[str, list[Row]]
    notes: list[str]
    facts: Row
    means: Mapping[str, NDArray[np.float64]]


def terrain_result(
    found: Sequence[Terrain], names: list[str], options: Options, packaged: bool, command: str
) -> Result:
    """Return the result of models measured with the same options; `packaged` says that no model was named."""
    prompts, main = options.prompts, options.contrasts[0]
    rows = [row for each in found for row in each.rows]
    order = list(dict.fromkeys(row["metric"] for row in rows if not row["detail"]))
    place = {metric: i for i, metric in enumerate(order)}
    rows.sort(key=lambda row: (row["detail"], place.get(row["metric"], len(place)), 0))
    is_lineage = any(row["measure"] == "trend" for row in rows)
    tables = {table: tuple(row for each in found for row in each.tables[table]) for table in found[0].tables}
    facts = provenance(
        seed=options.seed,
        device=", ".join(dict.fromkeys(str(each.facts["device"]) for each in found)),
        command=command,
        prompts={"source": prompts.source, "hash": prompts.digest, **prompts.counts},
        max_new_tokens=options.max_new_tokens,
        permutations=options.n_permutations,
        bootstrap=options.n_bootstrap,
        models=[each.facts for each in found],
    )
    return Result(
        kind="terrain",
        title=(
            f"Terrain of {', '.join(names)}: {main.is_first.sum()} {main.first} against {(~main.is_first).sum()} "
            f"{main.second} prompts"
        ),
        rows=tuple(rows),
        columns=tuple(name for name in COLUMNS if any(name in row for row in rows)),
        notes=(*_notes(options, packaged, found), *(note for each in found for note in each.notes)),
        provenance=facts,
        tables={
            **tables,
            "separability_figure": tuple(_levels(found)),
            **({} if options.matching is None else {"balance": options.matching.balance}),
            **({"steps": tuple(_steps(rows, names))} if is_lineage else {}),
        },
        figures=(*([_trend_figure(options)] if is_lineage else []), *_figures(options)),
    )


def model_notes(lm: LanguageModel, name: str, rows: list[Row], clouds: list[Row], no_twin: bool) -> list[str]:
    """Return what a reader must know about one model; `clouds` are its rows of `token_rows`."""
    notes = []
    coupled = [row["mode"] for row in rows if row.get("mean_coupled") and row["measure"] == "alpha"]
    if coupled:
        notes.append(
            f"{name}: alpha is coupled to the mean ({', '.join(dict.fromkeys(coupled))}): the spread differs as the "
            "means do, so it is no finding of its own"
        )
    if massive_first_token(clouds):
        notes.append(f"{name}: position 0 is massive: it alone makes the first component of the token states")
    if any(row.get("massive") for row in rows):
        notes.append(f"{name}: one massive coordinate carries the first component; the details leave it out")
    if no_twin:
        notes.append(f"{name}: no random-weight control (more than {MOST_RANDOM_PARAMETERS:,} parameters)")
    ignored = not_applied(lm)
    if ignored:
        notes.append(f"{name}: decoded greedily; its generation config asks for {', '.join(ignored)}, not applied")
    return notes


def _notes(options: Options, packaged: bool, found: Sequence[Terrain]) -> list[str]:
    prompts, main = options.prompts, options.contrasts[0]
    first, second = main.first, main.second
    templates = list(dict.fromkeys(str(each.facts["template"]) for each in found))
    notes = []
    if packaged:
        notes.append(
            "no --model was given: these are the packaged organisms, tiny SYNTHETIC models of an artificial language "
            "with planted alignment (strength 0, .25, .5, 1); nothing here is a finding about a real language model"
        )
    per = "pairs of one prompt each" if main.paired else "families"
    notes += [
        f"gap = mean({first}) - mean({second}): below 0, {first} prompts leave less open; the unit is the prompt "
        f"({main.n_prompts} prompts, {main.n_families} {per}), never the token; entropies of raw logits, up to and "
        f"including the first end token of at most {options.max_new_tokens}",
        _exchange(main, options),
        f"template {' and '.join(templates)}; common text forced on every prompt: {COMMON_TEXT!r}",
        f"alpha = 1 - var({second}) / var({first}) lies in (-inf, 1], not [0, 1]; read it against its null range; LVR "
        f"= half the log of the variance ratio",
        "separability is the accuracy on unseen families; the best control is that of word counts, length and, where "
        "made, the same layer with random weights; p adj. accounts for the choice of the layer",
        "C1: only its sign means something, and word order alone can move it: compare its embedding control in the "
        "details. C2 and C3 are biased and stand in the details only",
    ]
    if not prompts.has_families:
        notes.append("the prompts name no families: each counts as its own, so similar wordings may leak into tests")
    for other in options.contrasts:
        if other.left_out:
            notes.append(
                f"{other.first} against {other.second} leaves out {other.left_out} prompts of families with one only"
            )
    matching = options.matching
    if matching is not None:
        where = "inside families" if matching.inside_families else "over all families"
        after = [row for row in matching.balance if row["matching"] == "after"]
        worst = max(abs(row["standardised_difference"]) for row in after)
        notes.append(
            f"matched in length {where}: {matching.n_pairs} pairs; standardised difference of the mean numbers of "
            f"tokens at most {worst:.2f} (table 'balance')"
        )
    elif not main.paired:
        sizes = [np.mean([len(t.split()) for t in prompts.of(name).texts]) for name in (first, second)]
        notes.append(
            f"prompts are not matched: {sizes[0]:.1f} words in {first}, {sizes[1]:.1f} in {second}; read the gap given "
            "length and wording, or match them (--match-length)"
        )
    return notes


def _exchange(main: Contrast, options: Options) -> str:
    if main.reason:
        return f"no p by exchange: {main.reason}"
    how = "all" if main.exhaustive else f"{main.labelings.shape[1] - 1}"
    where = "inside families" if main.paired else "as the families allow"
    return (
        f"p: {how} exchanges of the categories {where}, two-sided, (b + 1) / (m + 1); p adj.: Holm over the modes (and "
        "readings of alpha), max-T over layers; intervals: "
        f"{options.n_bootstrap} resamples of whole families, or t over families"
    )


def _levels(found: Sequence[Terrain]) -> list[Row]:
    """Return the layers of every model, and word counts and length once, as a level without a layer."""
    rows = [row for each in found for row in each.tables["separability"]]
    layers = [row for row in rows if "control_name" in row]
    surface = {row["layer"]: row for row in rows if row["layer"] in ("bag of words", "length")}
    return [*layers, *({**row, "layer": None, "model": name} for name, row in surface.items())]


def _steps(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the gap of every checkpoint in every mode, by its step."""
    place = {name: step for step, name in enumerate(names)}
    return [
        {"step": place[row["model"]], "model": row["model"], "mode": row["mode"], "gap": row["value"],
         "ci_low": row["ci_low"], "ci_high": row["ci_high"]}
        for row in rows if row["measure"] == "entropy gap" and not row["detail"]
    ]  # fmt: skip


def _trend_figure(options: Options) -> Figure:
    main = options.contrasts[0]
    return Figure(
        "trend", "lines", "steps", f"Entropy gap, {main.first} - {main.second}, along the lineage",
        "Checkpoints in the order given. The band is the .95 family bootstrap interval of each; it knows nothing of "
        "other training runs.",
        {"x": "step", "y": "gap", "series": "mode", "reference": 0.0, "x_title": "Step", "y_title": "Gap (nats)"},
    )  # fmt: skip


def _figures(options: Options) -> tuple[Figure, ...]:
    main = options.contrasts[0]
    return (
        Figure(
            name="entropy_by_token",
            chart="lines",
            table="entropy_by_token",
            title="Entropy by generated token",
            caption=(
                "Mean entropy of the next token over the prompts of a category, own greedy text; a step counts the "
                "prompts that have not ended, at least 3. The band is the .95 t interval over families."
            ),
            options={"x": "token", "y": "entropy", "series": "category", "facet": "model", "columns": 2,
                     "x_title": "Generated token", "y_title": "Entropy (nats)", "zero": True},
        ),
        Figure(
            name="entropy_gap",
            chart="bars_with_intervals",
            table="entropy_gaps",
            title=f"Entropy gap, {main.first} - {main.second}",
            caption="Left of 0: risk prompts leave less open. Whiskers are .95 family bootstrap intervals.".replace(
                "risk", main.first
            ),
            options={"label": "mode", "series": "model", "value_title": "Gap (nats)"},
        ),
        Figure(
            name="separability_by_layer",
            chart="layer_profile",
            table="separability_figure",
            title=f"How well each layer tells {main.first} from {main.second}",
            caption=(
                "Accuracy of a ridge probe at the prompt's end, on families it has not seen. Dotted: what word counts "
                "and length alone give. The band is the .95 interval over resampled and refitted families."
            ),
            options={"x": "layer", "y": "accuracy", "series": "model", "chance": "chance", "p": "p_adjusted"},
        ),
        Figure(
            name="depth",
            chart="layer_profile",
            table="depth",
            title="How far each layer's lens is from the model's answer",
            caption=(
                "KL(final || logit lens of the layer) at the prompt's end, mean over all prompts. The band is the .95 "
                "t interval over families. A lens reads every layer with the last one's norm and head."
            ),
            options={"x": "layer", "y": "kl_to_final", "series": "model", "chance": None, "p": None,
                     "y_title": "KL (nats)", "zero": True},
        ),
        Figure(
            name="map",
            chart="scatter",
            table="map",
            title="Prompts on the first two principal components",
            caption=(
                "States of the last block at the prompt's end; axes differ between panels. Distinct places alone show "
                "nothing: different words are enough for that."
            ),
            options={"x": "pc1", "y": "pc2", "series": "category", "facet": "model", "columns": 2,
                     "x_title": "PC 1", "y_title": "PC 2"},
        ),
    )  # fmt: skip
