"""The terrain of one model: every measure of it on the same prompts, as rows, tables and notes.

Conventions. States and entropies come from one greedy continuation of every prompt and one common text; see
`lmprobe.terrain` for what is measured, `terrain_result.Options` for what is the same for all models.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.capture import capture
from lmprobe.contrasts import Contrast
from lmprobe.depth import depth_rows
from lmprobe.dimension import dimension_rows, map_table, token_rows
from lmprobe.entropy import FIRST_MODE, MODES, Entropies, adjusted_rows, effect_rows, gap_rows, variance_rows
from lmprobe.entropy_tables import category_rows, prompt_table, token_table, trace_table
from lmprobe.generate import Generation, generate
from lmprobe.models import LanguageModel
from lmprobe.prompts import Prompts
from lmprobe.score import prompt_log_prob
from lmprobe.separability import Separability, random_states, separability
from lmprobe.terrain_result import COMMON_TEXT, Options, Terrain, model_notes
from lmprobe.trajectories import convergence_rows, depth_layers, lyapunov_rows
from probecore.results import Row

LAST = -1  # the layer of maps and dimensions: the last block


def measure_terrain(lm: LanguageModel, name: str, source: str | os.PathLike[str] | None, options: Options) -> Terrain:
    """Measure one model; source : where it was opened from, None for one that was given open."""
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


def _planted(
    lm: LanguageModel, source: str | os.PathLike[str] | None, options: Options, forced: Generation
) -> Entropies | None:
    """Return the planted entropies of an organism on prompts of its language; None for every other model."""
    from lmprobe.organisms.packed import truth_of
    from lmprobe.organisms.truth import planted_entropies

    truth = truth_of(source)
    if truth is None or "strength" not in truth:
        return None
    words = [str(word) for word in lm.tokenizer.convert_ids_to_tokens(list(forced.tokens[0]))]
    return planted_entropies(
        options.prompts.texts, float(truth["strength"]), words, tokens=options.max_new_tokens,
        log_vocabulary=float(np.log(lm.vocabulary)),
    )  # fmt: skip


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
