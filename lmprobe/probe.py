"""Probes of the residual stream: how well each layer of a model tells a label of prompts, beside what needs no model.

Conventions. One item per prompt; the label is any column of the prompts; what is new at test and what is exchanged is
decided by `lmprobe.probe_design`. Every layer, every surface control (`lmprobe.surface`) and, for small models, every
layer of a model of the same configuration with random weights is probed with the same folds, labelings and resamples.
p over the layers is step-down max-T. `gain` is a layer's score less that of the best control, whose choice makes it
too small rather than too large; its interval and p come from the same resamples, refitted.

A high score says that the label can be read off linearly, not that the model uses it; docs/probe.md says how to read
each column.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmprobe.capture import capture
from lmprobe.capture_job import wanted_layers
from lmprobe.capture_run import PACKAGED, model_facts
from lmprobe.loading import opened
from lmprobe.model_list import Model, model_names, name_notes, wanted_models
from lmprobe.models import LanguageModel, Template
from lmprobe.probe_design import LabelDesign, label_design
from lmprobe.probe_directions import probe_directions, write_directions
from lmprobe.probe_result import probe_result
from lmprobe.probe_rows import ProbeRows
from lmprobe.prompt_table import PromptTable, read_table
from lmprobe.selectors import selector
from lmprobe.separability import MOST_RANDOM_PARAMETERS, random_twin
from lmprobe.surface import surface_controls
from probecore.activations import Activations
from probecore.errors import InputError
from probecore.probes.layers import probe_layers
from probecore.progress import meter
from probecore.provenance import provenance
from probecore.results import Result, Row
from probecore.validation import at_least


def probe(
    models: Sequence[Model] | Model | None = None,
    prompts: PromptTable | Sequence[str] | str = "default",
    *,
    label: str = "category",
    at: str = "last",
    layers: str | Sequence[str | int] = "all",
    groups: str = "auto",
    probe: str = "ridge",
    direction: str = "mean-difference",
    system: str | None = None,
    template: Template = "auto",
    max_new_tokens: int = 30,
    n_permutations: int = 999,
    n_bootstrap: int = 200,
    random_weights: bool = True,
    revision: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Probe every layer of models for a label of prompts and return a `Result` of kind "probe".

    Parameters
    ----------
    models, prompts
        As `terrain` takes models and `read_table` takes prompts; causal models and encoders alike.
    label
        Column of the prompts. Numbers with more than 10 different values are regressed on, all else is a class.
    at
        A selector that gives one state per prompt (`lmprobe.selectors`): "last", "mean", "last role:user", ...
    layers
        As `capture` takes them.
    groups
        What is new at test: "family", "near-duplicates", "prompt" or "auto" (`lmprobe.probe_design`).
    probe, direction
        Kind of probe (ridge, nested-ridge, lda, logistic) and of direction (mean-difference, lda, ridge, logistic).
    n_permutations, n_bootstrap
        Exchanged labelings behind each p, refitted resamples of groups behind each interval; 0 for none.
    random_weights
        Also probe a model of the same configuration with random weights, of at most 50 million parameters.
    out
        Folder for the directions (`lmprobe.probe_directions`); None keeps them in no file.

    Raises `InputError` for prompts, columns or models that cannot be used, `DesignError` for a label that these prompts
    cannot test, `CertificateError` for a model that cannot be certified.
    """
    at_least(n_permutations, 0, "n_permutations")
    at_least(n_bootstrap, 0, "n_bootstrap")
    place = selector(at)
    if place.per_token:
        raise InputError(f"a probe needs one state per prompt; {str(place)!r} gives one per token: take last or mean")
    table = read_table(prompts)
    design = label_design(table, label, groups)
    table = table.take(design.kept)
    wanted = wanted_models(models)
    names = model_names(wanted)
    notes = [*([PACKAGED] if models is None else []), *name_notes(wanted), *design.notes]
    rows: list[Row] = []
    tables: dict[str, list[Row]] = {"profile": [], "directions": []}
    facts, devices = [], []
    options: dict[str, Any] = {
        "probe": probe, "n_permutations": n_permutations, "n_bootstrap": n_bootstrap, "seed": seed,
    }  # fmt: skip
    for name, model in zip(names, wanted, strict=True):
        lm = opened(model, revision=revision, device=device, dtype=dtype, device_map=device_map, quiet=quiet)
        asked: dict[str, Any] = {
            "layers": wanted_layers(lm, layers), "at": place, "system": system, "template": template,
            "max_new_tokens": max_new_tokens, "names": table.names,
        }  # fmt: skip
        with meter(3, f"probing {name}", quiet=quiet) as advance:
            states = capture(lm, table.prompts, **asked)
            advance(1)
            twin = random_twin(lm, seed) if random_weights else None
            blank = None if twin is None else capture(twin, table.prompts, **asked)
            surface = surface_controls(table, _lengths(lm, table, system, template), label)
            measured = _probe(states, blank, surface, design, options)
            advance(1)
            found = probe_directions(states, design, direction, seed=seed)
            advance(1)
        rows += [{"model": name, "label": label, **row} for row in measured.rows]
        tables["directions"] += [{"model": name, **row} for row in found.rows]
        if len(design.classes) > 2:
            tables.setdefault("confusion", []).extend({"model": name, **row} for row in measured.confusion())
        notes += [f"{name}: {note}" for note in (*measured.notes, *found.notes, states.info["note"]) if note]
        if random_weights and twin is None:
            notes.append(f"{name}: no random-weight control (more than {MOST_RANDOM_PARAMETERS:,} parameters)")
        if out is not None:
            folder = out / "directions" / (name if len(wanted) > 1 else "")
            about = {"label": label, "at": str(place), "model": lm.name, "weights": str(lm.info["weights_hash"])}
            write_directions(folder, found, about)
            if len(wanted) == 1:
                tables |= {key: list(value) for key, value in found.table(measured.best).items()}
        facts.append(model_facts(lm, name))
        devices.append(str(lm.info["device"]))
    made = provenance(
        seed=seed, device=", ".join(dict.fromkeys(devices)), command=command,
        prompts={"source": table.source, "hash": table.digest, "n": len(table)},
        settings={"label": label, "at": str(place), "groups": design.grouping, "probe": probe, "direction": direction,
                  "template": template, "permutations": n_permutations, "bootstrap": n_bootstrap},
        models=facts,
    )  # fmt: skip
    return probe_result(
        rows, tables, notes, made, design, label=label, at=str(place), names=names, kept=out is not None
    )


def _probe(
    states: Activations, blank: Activations | None, surface: dict[str, Any], design: LabelDesign,
    options: dict[str, Any],
) -> ProbeRows:  # fmt: skip
    shared: dict[str, Any] = {**options, "groups": design.groups}
    untested = {**shared, "n_permutations": 0}
    return ProbeRows(
        probe_layers(states, design.label, **shared),
        probe_layers(surface, design.label, **shared),
        None if blank is None else probe_layers(blank, design.label, **untested),
    )


def _lengths(lm: LanguageModel, table: PromptTable, system: str | None, template: Template) -> list[int]:
    return [len(row) for row in lm.format_all(table.prompts, system, template)]
