"""The terrain of a language model: how safe and risk prompts differ in entropy, states, dimension and convergence.

Every row says what was measured on which prompts, with its interval and p or the reason why there is none. The prompt
is the unit everywhere, a prompt family the cluster; a token is never counted as an independent observation. What each
row means, and what it cannot show, is written in docs/terrain.md.

The numbers of the printed table are the headline; rows with `detail` true (single categories, other modes and
readings, every layer, control contrasts) are in the JSON object, in the files and in `result.rows`.
"""

import math
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.capture import capture
from lmprobe.contrasts import Contrast, contrast
from lmprobe.depth import depth_rows
from lmprobe.dimension import dimension_rows, map_table, token_rows
from lmprobe.entropy import (
    FIRST_MODE,
    MODES,
    Entropies,
    adjusted_rows,
    category_rows,
    effect_rows,
    gap_rows,
    prompt_table,
    token_table,
    trace_table,
    variance_rows,
)
from lmprobe.generate import Generation, generate
from lmprobe.lineage import check_lineage, trend_rows
from lmprobe.loading import open_tokenizer, opened
from lmprobe.matching import Matching, match_lengths
from lmprobe.model_list import Model, model_names, name_notes, wanted_models
from lmprobe.models import LanguageModel, Template
from lmprobe.prompts import Prompts, load_prompts, main_categories
from lmprobe.score import prompt_log_prob
from lmprobe.separability import Separability, random_states, separability
from lmprobe.terrain_result import COMMON_TEXT, Options, Terrain, model_notes, terrain_result
from lmprobe.trajectories import convergence_rows, depth_layers, lyapunov_rows
from probecore.progress import meter
from probecore.results import Result, Row
from probecore.validation import at_least

LAST = -1  # the layer of maps and dimensions: the last block


def terrain(
    models: Sequence[Model] | Model | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    lineage: bool = False,
    match_length: int | None = None,
    max_new_tokens: int = 30,
    template: Template = "auto",
    revision: str | None = None,
    n_permutations: int = 999,
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Measure the terrain of models side by side and return a `Result` of kind "terrain".

    Parameters
    ----------
    models
        Hub names, folders or opened models; None takes the packaged organisms, and the result says so.
    prompts
        What `load_prompts` takes; None is the packaged set. Contrasted are "risk" (unsafe, harmful) minus "safe"
        (harmless, benign) or, where a set lacks either, its second category minus its first.
    lineage
        The models are checkpoints of one lineage in their order: adds trends over the steps (`lmprobe.lineage`).
    match_length
        Contrast only pairs of a first and a second prompt whose lengths differ by at most this many tokens under every
        model's tokenizer (`lmprobe.matching`); None takes all prompts.
    max_new_tokens
        Most tokens of each prompt's greedy continuation, at least 2.
    template
        "auto" (the chat template where there is one), "chat" or "raw".
    revision
        Revision of hub models.
    n_permutations, n_bootstrap
        Exchanges of categories behind each p, resamples of families behind each interval; 0 for none.

    Raises `InputError` for prompts or models that cannot be used, `DesignError` for fewer than 3 prompts a category,
    `CertificateError` for a model that cannot be certified.
    """
    at_least(max_new_tokens, 2, "max_new_tokens")
    at_least(n_permutations, 0, "n_permutations")
    at_least(n_bootstrap, 0, "n_bootstrap")
    given = load_prompts("default" if prompts is None else prompts)
    wanted = wanted_models(models)
    names = model_names(wanted)
    matching = None if match_length is None else _matched(given, wanted, names, match_length, revision, quiet)
    given = given if matching is None else matching.prompts
    options = Options(
        given,
        _contrasts(given, n_permutations, n_bootstrap, seed),
        max_new_tokens,
        template,
        n_permutations,
        n_bootstrap,
        seed,
        matching,
    )
    found: list[Terrain] = []
    with meter(len(wanted), "models", quiet=quiet) as advance:
        for name, model in zip(names, wanted, strict=True):
            lm = opened(model, revision=revision, device=device, quiet=quiet)
            found.append(_measure(lm, name, None if isinstance(model, LanguageModel) else model, options))
            advance(1)
    found[0].notes[:0] = name_notes(wanted)
    if lineage:
        check_lineage([each.facts for each in found])
        found[-1].rows.extend(
            trend_rows([each.means for each in found], options.contrasts[0], f"{names[0]} to {names[-1]}")
        )
        found[-1].notes.append(
            f"trend over {len(found)} checkpoints: its interval is about new prompts, its p about the order of the "
            f"checkpoints, of which {len(found)} can give none below {2 / math.factorial(len(found)):.2g}"
        )
    return terrain_result(found, names, options, models is None, command)


def _matched(
    prompts: Prompts, models: Sequence[Model], names: Sequence[str], most: int, revision: str | None, quiet: bool
) -> Matching:
    """Return prompts matched in the number of tokens that every model's tokenizer makes of their texts."""
    lengths = np.empty((len(prompts), len(models)))
    for k, model in enumerate(models):
        own = model.tokenizer if isinstance(model, LanguageModel) else None
        tokenizer = own or open_tokenizer(model, revision=revision, quiet=quiet)  # type: ignore[arg-type]
        lengths[:, k] = [len(ids) for ids in tokenizer(list(prompts.texts), add_special_tokens=False)["input_ids"]]
    first, second = main_categories(prompts)
    return match_lengths(prompts, first, second, lengths, most, names)


def _measure(lm: LanguageModel, name: str, source: str | os.PathLike[str] | None, options: Options) -> Terrain:
    prompts, main = options.prompts, options.contrasts[0]
    last, n_blocks = lm.layers[LAST], len(lm.sites.blocks)
    steps = dict.fromkeys(["embed", *depth_layers(n_blocks).values()])
    shared: dict[str, Any] = {"template": options.template, "seed": options.seed}
    own = generate(
        lm, prompts.texts, max_new_tokens=options.max_new_tokens, layers="all", step_layers=list(steps), **shared
    )
    forced = generate(lm, prompts.texts, forced=COMMON_TEXT, layers=(), **shared)
    entropies = _entropies(lm, own, forced)
    rows = _entropy_rows(entropies, options, _planted(lm, source, options, forced))
    covariates = _covariates(lm, own, options)
    same_length = main.paired and _equal_in_pairs(covariates["log length"], main)
    sets = {"length": ("log length",), "length and wording": tuple(covariates)}
    adjusted = {words: {name: covariates[name] for name in chosen} for words, chosen in sets.items()}
    place = next(i for i, row in enumerate(rows) if row["measure"] != "entropy gap")
    rows[place:place] = adjusted_rows(entropies, main, adjusted, shown=not same_length)
    texts, lengths = [prompts.texts[i] for i in main.items], [len(own.prompts[i]) for i in main.items]
    blank = random_states(lm, prompts.texts, template=options.template, seed=options.seed)
    split = separability(
        own.activations(names=prompts.ids).take(main.items),
        main,
        texts,
        lengths,
        random_states=None if blank is None else blank.take(main.items),
        n_permutations=options.n_permutations,
        n_bootstrap=min(options.n_bootstrap, 200),
        seed=options.seed,
    )
    rows += _separability_rows(split, main)
    rows += dimension_rows(
        own.prompt_end[last],
        prompts.categories,
        prompts.families,
        last,
        random_states=None if blank is None else blank.values(last),
        seed=options.seed,
    )
    tokens = capture(lm, list(prompts.texts), layers=[last], at="all", template=options.template)
    is_first = np.array([item.endswith(" token 0") for item in tokens.items])
    clouds = token_rows(tokens.values(last), is_first, last, len(prompts))
    moving, short = convergence_rows(
        own, prompts.families, n_blocks, n_permutations=options.n_permutations, seed=options.seed
    )
    fading, why = lyapunov_rows(lm, own, prompts.families, seed=options.seed)
    depth, by_layer, shallow = depth_rows(lm, own.prompt_end, prompts.families)
    rows += clouds + moving + fading + depth
    notes = [f"{name}: {note}" for note in (*split.notes, short, why, shallow, own.info["note"]) if note]
    notes += model_notes(lm, name, rows, clouds, blank is None)
    tables = {
        "entropy_by_token": token_table(entropies.traces[FIRST_MODE], prompts.categories, prompts.families),
        "entropy_gaps": [row for row in rows if row["measure"] == "entropy gap" and not row["detail"]],
        "separability": [*split.layers, *split.controls],
        "prompts": prompt_table(entropies, prompts),
        "traces": trace_table(entropies, prompts),
        "depth": by_layer,
        "map": map_table(own.prompt_end[last], prompts.categories, prompts.ids),
        "texts": _texts(own, prompts),
    }
    return Terrain(
        [{"model": name, **row} for row in rows],
        {table: [{"model": name, **row} for row in records] for table, records in tables.items()},
        notes,
        _facts(lm, name, options),
        {mode: entropies.mean(mode) for mode in MODES},
    )


def _covariates(lm: LanguageModel, own: Generation, options: Options) -> dict[str, NDArray[np.float64]]:
    """Return what a prompt's entropy may owe to its length and wording, each (prompts,)."""
    log_p = prompt_log_prob(lm, own.prompts, template="raw")
    return {
        "log length": np.log([len(row) for row in own.prompts]),
        "log-probability a token": np.where(
            np.isnan(log_p), np.nanmean(log_p) if np.isfinite(log_p).any() else 0, log_p
        ),
        "question": np.array([text.rstrip().endswith("?") for text in options.prompts.texts], dtype=np.float64),
    }


def _equal_in_pairs(values: NDArray[np.float64], main: Contrast) -> bool:
    """Tell whether both prompts of every pair have the same value."""
    chosen = values[main.items]
    return all(np.ptp(chosen[main.families == family]) == 0 for family in np.unique(main.families))


def _entropies(lm: LanguageModel, own: Generation, forced: Generation) -> Entropies:
    traces = {"prompt end": own.entropy[:, :1], "own text": own.entropy, "common text": forced.entropy}
    return Entropies({mode: traces[mode] for mode in MODES}, float(np.log(lm.vocabulary)))


def _entropy_rows(entropies: Entropies, options: Options, planted: Entropies | None) -> list[Row]:
    main, *others = options.contrasts
    rows = gap_rows(entropies, main, planted)
    rows += effect_rows(entropies, main, planted)
    rows += variance_rows(entropies, main, planted, seed=options.seed)
    for other in others:
        for row in gap_rows(entropies, other, detail=True):
            rows.append({**row, "metric": f"{row['metric']}: {row['contrast']}"})
    return rows + category_rows(entropies, options.prompts.categories, options.prompts.families)


def _separability_rows(split: Separability, main: Contrast) -> list[Row]:
    rows: list[Row] = []
    headlines: list[tuple[str, Row | None]] = [
        ("separability, best layer", split.best),
        ("separability, best control", split.best_control),
    ]
    details: list[tuple[str, Row | None]] = [(f"separability, {row['layer']}", row) for row in split.layers]
    details += [(f"separability control, {row['layer']}", row) for row in split.controls]
    for i, (metric, row) in enumerate(headlines + details):
        if row is None:
            continue
        kind = "separability control" if "control" in metric else "separability"
        entry: Row = {"metric": metric, "measure": kind, "layer": row["layer"]}
        entry |= {"contrast": f"{main.first} - {main.second}", "value": row["accuracy"]}
        entry |= {
            key: row.get(key) for key in ("ci_low", "ci_high", "chance", "control", "control_name", "selectivity")
        }
        entry |= {key: row.get(key) for key in ("p_value", "p_adjusted", "p_note", "auc", "balanced_accuracy")}
        entry |= {"n_prompts": main.n_prompts, "n_families": main.n_families, "detail": i >= len(headlines)}
        rows.append({key: value for key, value in entry.items() if key != "p_note" or value})
    return rows


def _contrasts(prompts: Prompts, n_permutations: int, n_bootstrap: int, seed: int) -> tuple[Contrast, ...]:
    """Return the main contrast first, then every other pair of categories with at least 3 prompts each."""
    counts = prompts.counts
    names = list(counts)
    first, second = main_categories(prompts)
    pairs = [(first, second)]
    enough = [name for name in names if counts[name] >= 3]
    pairs += [(a, b) for a, b in combinations(enough, 2) if {a, b} != {first, second}]
    return tuple(
        contrast(prompts, a, b, n_permutations=n_permutations, n_bootstrap=n_bootstrap, seed=seed) for a, b in pairs
    )


def _planted(
    lm: LanguageModel, source: str | os.PathLike[str] | None, options: Options, forced: Generation
) -> Entropies | None:
    """Return the planted entropies of an organism on prompts of its language; None for every other model."""
    from lmprobe.organisms.packed import truth_of
    from lmprobe.organisms.truth import planted_traces

    truth = truth_of(source)
    if truth is None or "strength" not in truth:
        return None
    strength = float(truth["strength"])
    words = [str(word) for word in lm.tokenizer.convert_ids_to_tokens(list(forced.tokens[0]))]
    own = planted_traces(options.prompts.texts, strength, tokens=options.max_new_tokens)
    common = planted_traces(options.prompts.texts, strength, words)
    if own is None or common is None:
        return None
    return Entropies({"prompt end": own[:, :1], "own text": own, "common text": common}, float(np.log(lm.vocabulary)))


def _texts(own: Generation, prompts: Prompts) -> list[Row]:
    columns = zip(prompts.ids, prompts.categories, own.texts, own.lengths.tolist(), own.finished.tolist(), strict=True)
    return [
        {"item": item, "category": category, "text": text, "n_tokens": n, "finished": finished}
        for item, category, text, n, finished in columns
    ]


def _facts(lm: LanguageModel, name: str, options: Options) -> Row:
    chat = options.template == "chat" or (options.template == "auto" and lm.has_template)
    info = {key: lm.info[key] for key in ("architecture", "revision", "weights_hash", "tokenizer_hash", "parameters")}
    held = [check.name for check in lm.certificate.checks if check.holds]
    summary = f"{len(held)} of {len(lm.certificate.checks)} checks hold"
    return {
        "name": name,
        **info,
        "dtype": lm.info["dtype"],
        "device": lm.info["device"],
        "template": "chat" if chat else "raw",
        "certificate": {"summary": summary, **lm.certificate.to_json()},
    }
