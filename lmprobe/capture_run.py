"""`lmprobe capture`: prompts through models, states into folders, and one row per layer that says what was captured.

Conventions. `size` is the root mean square of a state's coordinates, averaged over items, with its spread over items.
`largest_coordinate` is the share of all squared states that the largest single coordinate holds: above about 0.5 a mean
or a principal component of the raw states is that one coordinate (a massive activation). `noise_floor` is the largest
change of a state by padding, as a share of its size, measured when the model was opened: a difference between prompts
below it means nothing. None of these says what a layer carries: that is what probes are for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.archive import capture_to, written_texts
from lmprobe.capture import capture, model_record
from lmprobe.loading import opened
from lmprobe.model_list import Model, model_names, name_notes, wanted_models
from lmprobe.models import LanguageModel, Template
from lmprobe.prompt_table import PromptTable, read_table
from lmprobe.selectors import Selector, selector
from probecore.activations import Activations, Label
from probecore.errors import InputError
from probecore.progress import meter
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row

COLUMNS = ("model", "layer", "features", "n_items", "n_prompts", "size", "size_sd", "largest_coordinate", "noise_floor")
MOST_CLASSES_OF_NUMBERS = 10
PACKAGED = (
    "no --model was given: these are the packaged organisms, tiny SYNTHETIC models of an artificial language with "
    "planted alignment; nothing here is a finding about a real language model"
)


def capture_prompts(
    models: Sequence[Model] | Model | None = None,
    prompts: PromptTable | Sequence[str] | str = "default",
    *,
    at: str = "last",
    layers: str | Sequence[str | int] = "all",
    system: str | None = None,
    template: Template = "auto",
    max_new_tokens: int = 30,
    batch_tokens: int = 4096,
    deterministic: bool = False,
    revision: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Capture the states of prompts with models and return a `Result` of kind "capture", a row per model and layer.

    models, prompts : as `terrain` takes models and `read_table` takes prompts. at, layers, system, template,
    max_new_tokens, batch_tokens, deterministic : as `capture` takes them.
    out : the folder to write into (`lmprobe.archive`; one folder per model where there are several). A capture that
        was interrupted goes on; None keeps nothing but the rows.

    Columns of the prompts become labels, their family the group. Raises what `capture` and `open_model` raise.
    """
    table = read_table(prompts)
    place = selector(at)
    wanted = wanted_models(models)
    names = model_names(wanted)
    rows: list[Row] = []
    notes = [PACKAGED] if models is None else []
    labels, left_out = column_labels(table)
    notes += [*name_notes(wanted), *left_out]
    facts, devices = [], []
    texts: list[Row] = []
    options: dict[str, Any] = {
        "layers": layers, "at": place, "names": table.names, "labels": labels,
        "groups": table.names if table.family is None else table.column(table.family), "system": system,
        "template": template, "max_new_tokens": max_new_tokens, "batch_tokens": batch_tokens,
        "deterministic": deterministic,
    }  # fmt: skip
    for name, model in zip(names, wanted, strict=True):
        lm = opened(model, revision=revision, device=device, dtype=dtype, device_map=device_map, quiet=quiet)
        with meter(len(table), f"capturing {name}", quiet=quiet) as advance:
            seen = _Progress(advance)
            if out is None:
                acts = capture(lm, table.prompts, **options, progress=seen)
            else:
                folder = out if len(wanted) == 1 else out / _folder_name(name)
                acts = capture_to(folder, lm, table.prompts, **options, progress=seen)
        rows += [{"model": name, **row} for row in layer_rows(acts, lm, len(table))]
        notes += [f"{name}: {acts.info['note']}"] if acts.info.get("note") else []
        texts += _texts(acts, None if out is None else folder, name, place, table.names)
        facts.append(model_facts(lm, name))
        devices.append(str(lm.info["device"]))
    notes.append(
        f"states at {place} of {len(table)} prompts; size is the mean root mean square of a state, largest coordinate "
        "the share of all squares in one coordinate, noise floor the change by padding alone"
    )
    if out is None:
        notes.append("nothing was kept: give --out to write the states")
    else:
        where = "this folder" if len(wanted) == 1 else "a folder per model"
        notes.append(f"states, labels and certificate are in {where}: probecore.store.load_activations reads them")
    return Result(
        kind="capture",
        title=f"States of {', '.join(names)} at {place}: {table.source}",
        rows=tuple(rows),
        columns=COLUMNS,
        notes=tuple(notes),
        provenance=provenance(
            seed=seed, device=", ".join(dict.fromkeys(devices)), command=command,
            prompts={"source": table.source, "hash": table.digest, "n": len(table)},
            settings={"at": str(place), "template": template, "deterministic": deterministic,
                      "batch_tokens": batch_tokens, "max_new_tokens": max_new_tokens},
            models=facts,
        ),
        tables={"texts": tuple(texts)} if texts else {},
        figures=(
            Figure(
                "size_by_layer", "layer_profile", "rows", "Size of the states by layer",
                "Mean over items of the root mean square of a state's coordinates. No interval: it describes these "
                "prompts.",
                {"y": "size", "series": "model", "chance": None, "p": None, "y_title": "Root mean square",
                 "zero": True},
            ),
        ),
    )  # fmt: skip


def model_facts(lm: LanguageModel, name: str) -> Row:
    """Return what the provenance of a result says of one model: fingerprints, certificate, what was installed at it."""
    fields = ("architecture", "revision", "weights_hash", "tokenizer_hash", "template_hash", "parameters", "dtype")
    record = model_record(lm)
    held = [check for check in lm.certificate.checks if check.holds]
    asked = [check for check in lm.certificate.checks if check.holds is not None]
    return {
        "name": name,
        **{field: lm.info[field] for field in fields},
        "device": lm.info["device"],
        **({"quantised": True} if lm.info["quantised"] else {}),
        **{key: record[key] for key in record if key == "interventions"},
        "certificate": {"summary": f"{len(held)} of {len(asked)} checks hold", **lm.certificate.to_json()},
    }


def column_labels(table: PromptTable) -> tuple[dict[str, Label], list[str]]:
    """Return every column that can be a label, by name, and notes on those that are not whole.

    A label needs a value for every prompt and 2 different ones; words of which none comes twice are no classes.
    """
    labels, notes = {}, []
    for name, cells in table.columns.items():
        kinds = Counter(cells)
        if len(kinds) < 2 or cells in (table.texts, table.names):
            continue
        if "" in kinds:
            notes.append(f"column {name!r} is no label: {kinds['']} of {len(table)} prompts have no value")
            continue
        values, real = label_values(cells)
        if not real and max(kinds.values()) < 2:
            continue
        labels[name] = Label(values, kind="real" if real else "class")
    return labels, notes


def label_values(cells: Sequence[str]) -> tuple[NDArray[Any], bool]:
    """Return cells as numbers and True where they are numbers with more than 10 different values, else as they are."""
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError:
        return np.array(list(cells)), False
    real = len(np.unique(values)) > MOST_CLASSES_OF_NUMBERS and bool(np.isfinite(values).all())
    return (values, True) if real else (np.array(list(cells)), False)


def layer_rows(acts: Activations, lm: LanguageModel, n_prompts: int) -> list[Row]:
    """Return one row per layer of captured states."""
    rows = []
    for layer in acts.layers:
        squares = np.square(acts.values(layer).astype(np.float64))
        sizes = np.sqrt(squares.mean(axis=1))
        total = float(squares.sum())
        rows.append({
            "layer": layer, "features": squares.shape[1], "n_items": acts.n_items, "n_prompts": n_prompts,
            "size": float(sizes.mean()), "size_sd": float(sizes.std(ddof=1)) if len(sizes) > 1 else None,
            "largest_coordinate": float(squares.sum(axis=0).max()) / total if total else None,
            "noise_floor": lm.certificate.noise.get(layer),
        })  # fmt: skip
    return rows


def _texts(acts: Activations, folder: Path | None, model: str, place: Selector, names: Sequence[str]) -> list[Row]:
    """Return what a model wrote after each prompt, where generated tokens were captured."""
    if place.scope != "generated":
        return []
    kept = written_texts(folder) if folder is not None else dict(zip(names, acts.info["texts"], strict=True))
    return [{"model": model, "prompt": name, "text": kept[name]} for name in names]


class _Progress:
    """Turns (done, total) into steps of a meter."""

    def __init__(self, advance: Any) -> None:  # noqa: ANN401
        self.advance, self.done = advance, 0

    def __call__(self, done: int, total: int) -> None:
        self.advance(done - self.done)
        self.done = done


def _folder_name(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")
    if not safe:
        raise InputError(f"a model's name must give a folder name; got {name!r}: capture it alone")
    return safe
