"""The logit lens: what every layer of a language model would say if the model stopped there.

Every layer is read out by the model's own tail (norm, head, scale, softcap), so the last layer is the model itself,
bit for bit. Texts are mapped by layer and position; two sets of prompts are contrasted by layer at their last token; a
tuned lens is trained where it is asked for. What each number means and cannot show is in docs/lm-lens.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmprobe import lens_figures, lens_rows
from lmprobe.capture import model_record
from lmprobe.contrasts import Contrast, contrast
from lmprobe.lens_contrast import read_prompts_ends
from lmprobe.lens_reading import read_text
from lmprobe.loading import opened
from lmprobe.model_list import Model, model_names, name_notes, wanted_models
from lmprobe.models import LanguageModel, Template
from lmprobe.prompts import Prompts, load_prompts, main_categories
from lmprobe.tuned_lens import TunedLens, load_tuned_lens, train_tuned_lens
from lmprobe.vocabulary import single_tokens, token_labels
from probecore.errors import InputError
from probecore.progress import meter
from probecore.provenance import digest, provenance
from probecore.results import Figure, Result, Row
from probecore.validation import at_least

PACKAGED = ("base", "aligned-100")
ROUNDINGS = 8  # of the model's dtype, in nats, by which the lens of one state can differ between batches


@dataclass
class _Found:
    """What was measured so far, over all models."""

    rows: list[Row] = field(default_factory=list)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    gap: float = 0.0


def lens(
    models: Sequence[Model] | Model | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    prompt: str | Sequence[str] = (),
    target: Sequence[str] = (),
    top: int = 3,
    template: Template | None = None,
    revision: str | None = None,
    tune: Sequence[str] = (),
    steps: int = 300,
    save: str | Path | None = None,
    tuned: str | Path | TunedLens | None = None,
    n_permutations: int = 999,
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Read out every layer of models and return a `Result` of kind "lens".

    Parameters
    ----------
    models : hub names, folders or opened models; None takes two packaged organisms, and the result says so.
    prompts : two or more categories of prompts (`load_prompts`), contrasted by layer at their last token; None takes
        the packaged ones where no `prompt` is given, and contrasts nothing where one is.
    prompt : texts to map by layer and position. Without any, a pair of the contrasted prompts is mapped.
    target : texts of one token each whose rank and log-probability are wanted.
    top : most probable tokens that are shown.
    template : None takes "raw" for `prompt` and "auto" (the chat template where there is one) for `prompts`.
    tune, steps, save : texts on which a tuned lens is trained, steps of its training, folder to write it to.
    tuned : a tuned lens, or the folder of one; it must belong to the model's weights.
    n_permutations, n_bootstrap : exchanges of categories behind each p, resamples behind each interval; 0 for none.

    Raises `InputError` for models, prompts or tokens that cannot be used, `DesignError` for too few prompts or texts,
    `CertificateError` for a model whose read-out is not certified.
    """
    at_least(top, 1, "top")
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    given = None if prompts is None and texts else load_prompts("default" if prompts is None else prompts)
    if tuned is not None and len(tune):
        raise InputError("a tuned lens is trained or given, not both: leave --tune or --tuned out")
    if save is not None and not len(tune):
        raise InputError("--save writes a tuned lens that was trained: give --tune with the texts, too")
    ready = load_tuned_lens(tuned) if isinstance(tuned, (str, Path)) else tuned
    versus = None if given is None else contrast(
        given, *main_categories(given), n_permutations=n_permutations, n_bootstrap=n_bootstrap, seed=seed
    )  # fmt: skip
    wanted = wanted_models(models) if models is not None else _packaged()
    if len(wanted) > 1 and (save is not None or ready is not None):
        raise InputError(f"a tuned lens belongs to one model; got {len(wanted)}: give one --model")
    names = model_names(wanted)
    found = _Found()
    with meter(len(wanted), "lens: models", quiet=quiet) as advance:
        for name, model in zip(names, wanted, strict=True):
            lm = opened(model, revision=revision, device=device, quiet=quiet)
            own = ready
            if own is not None:
                own.require(lm)
            if len(tune):
                own = train_tuned_lens(lm, tune, steps=steps, seed=seed)
                if save is not None:
                    own.save(save)
            found.records.append(model_record(lm))
            _texts(found, lm, name, texts or _pair(given, versus), target, top, template, own, bool(texts), given)
            if versus is not None and given is not None:
                _contrast(found, lm, name, given, versus, target, template, own)
            if own is not None:
                rows = lens_rows.held_out_rows(name, own, lm.layers, seed=seed, detail=versus is None)
                found.rows += rows
                found.tables.setdefault("held-out loss", []).extend(lens_figures.held_out_table(rows))
                found.notes.append(_tuned_note(name, own))
            advance(1)
    several = len(wanted) > 1
    columns = lens_rows.SET_COLUMNS if versus else lens_rows.text_columns(target, "held-out loss" in found.tables)
    figures = list(lens_figures.set_figures(versus.first, versus.second, several)) if versus is not None else []
    figures += [lens_figures.tuned_figure(several)] if "held-out loss" in found.tables else []
    return Result(
        kind="lens",
        title="Logit lens: " + ", ".join(names),
        rows=tuple(found.rows),
        columns=columns,
        notes=(*name_notes(wanted), *_notes(found, versus, given, models is None), *found.notes),
        provenance=provenance(
            seed=seed,
            device=str(found.records[0]["model"]["device"]),
            command=command,
            models=found.records,
            settings={
                "permutations": n_permutations, "bootstrap": n_bootstrap, "template": template, "targets": list(target),
                "steps": steps if len(tune) else None,
            },
            prompts={"source": given.source, "hash": given.digest} if given is not None else None,
            texts_hash=digest(*texts),
        ),
        tables={name: tuple(rows) for name, rows in found.tables.items()},
        figures=(*figures, *found.figures),
    )  # fmt: skip


def _texts(
    found: _Found,
    lm: LanguageModel,
    name: str,
    texts: Sequence[str],
    target: Sequence[str],
    top: int,
    template: Template | None,
    tuned: TunedLens | None,
    asked: bool,
    given: Prompts | None,
) -> None:
    """Map texts: rows, the tables of the maps and their figures."""
    ids = single_tokens(lm, target, "a target")
    for number, text in enumerate(texts, start=1):
        row_ids = lm.format(text, template=template or ("raw" if asked else "auto"))
        labels = token_labels(lm, row_ids)
        for kind, translate in (("plain", None), ("tuned", None if tuned is None else tuned.translate)):
            if kind == "tuned" and translate is None:
                continue
            reading = read_text(lm, row_ids, translate=translate, targets=ids, top=top)
            found.gap = max(found.gap, reading.gap)
            unique = {i: label for i, label in _labelled(lm, reading.lens.top_id)}
            said = [[[unique[i] for i in cell] for cell in layer] for layer in reading.lens.top_id.tolist()]
            losses = None if tuned is None else tuned.held_out[int(kind == "tuned")].mean(axis=-1)
            rows = lens_rows.text_rows(
                name, number, reading, labels, said, target, kind, held_out=losses, detail=given is not None
            )
            found.rows += rows
            table = f"map {name} {number}" + (" tuned" if kind == "tuned" else "")
            cells = lens_figures.map_table(rows)
            found.tables[table] = cells
            cut = len(row_ids) > lens_figures.MAP_TOKENS
            note = f"The last {lens_figures.MAP_TOKENS} of {len(row_ids)} tokens." if cut else ""
            found.figures += lens_figures.map_figures(table, f"{name}: {_short(text)}", kind, note)


def _contrast(
    found: _Found,
    lm: LanguageModel,
    name: str,
    given: Prompts,
    versus: Contrast,
    target: Sequence[str],
    template: Template | None,
    tuned: TunedLens | None,
) -> None:
    """Contrast two sets of prompts: rows and the tables of the curves."""
    is_first = [category == versus.first for category in given.categories]
    ids = single_tokens(lm, target, "a target")
    for kind in ("plain", "tuned") if tuned is not None else ("plain",):
        reading = read_prompts_ends(
            lm, given.texts, _flags(is_first, given, versus), template=template or "auto",
            translate=tuned.translate if tuned is not None and kind == "tuned" else None, targets=ids,
        )  # fmt: skip
        used = sorted({i for side in (reading.more, reading.less) for layer in side for i, _ in layer})
        names = dict(zip(used, token_labels(lm, used), strict=True))
        resolution = ROUNDINGS * float(torch.finfo(lm.dtype).eps)
        rows = lens_rows.contrast_rows(name, reading, versus, target, names, kind, resolution=resolution)
        found.rows += rows
        if kind == "plain":
            found.tables.setdefault("contrast", []).extend(r for r in rows if r["metric"] == lens_rows.SAID)
            profile = lens_rows.category_profile(name, reading, given, kind)
            for table, metric in (("entropy-by-layer", lens_rows.ENTROPY), ("kl-by-layer", lens_rows.KL)):
                found.tables.setdefault(table, []).extend(r for r in profile if r["metric"] == metric)


def _flags(is_first: Sequence[bool], given: Prompts, versus: Contrast) -> tuple[Any, Any]:
    """Return which prompts are of the first and of the second category, (N,) each, those in the contrast only."""
    inside = np.zeros(len(given), dtype=bool)
    inside[versus.items] = True
    first = np.asarray(is_first) & inside
    return first, inside & ~first


def _labelled(lm: LanguageModel, ids: Any) -> list[tuple[int, str]]:  # noqa: ANN401
    unique = np.unique(ids).tolist()
    return list(zip(unique, token_labels(lm, unique), strict=True))


def _pair(given: Prompts | None, versus: Contrast | None) -> list[str]:
    """Return one prompt of each contrasted category, of one family where there is such a family."""
    if given is None or versus is None:
        return []
    firsts = [i for i, flag in zip(versus.items.tolist(), versus.is_first.tolist(), strict=True) if flag]
    seconds = [i for i, flag in zip(versus.items.tolist(), versus.is_first.tolist(), strict=True) if not flag]
    for i in firsts:
        for j in seconds:
            if given.families[i] == given.families[j]:
                return [given.texts[i], given.texts[j]]
    return [given.texts[firsts[0]], given.texts[seconds[0]]]


def _packaged() -> list[Model]:
    from lmprobe.organisms.folder import organism

    return [organism(name).folder for name in PACKAGED]


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _notes(found: _Found, versus: Contrast | None, given: Prompts | None, packaged: bool) -> list[str]:
    notes = []
    if packaged:
        notes.append("Packaged organisms: tiny synthetic models with a planted behaviour; no claim about real models.")
    exact = "bit for bit" if found.gap == 0 else f"within {found.gap:.1e}"
    notes.append(
        f"Layer embed is the input of block 0, block i the stream after it. The read-out of the last block is the "
        f"model's own logits, {exact}. Final: the model's first choice at that position; ranks count from 1."
    )
    if versus is None:
        notes.append(
            "Printed is the last position of each text; all positions are in the files. noise_floor: the largest KL of "
            "the same text in a padded batch; a KL below it means nothing."
        )
    if versus is not None and given is not None:
        notes.append(
            f"{versus.first} - {versus.second}, {versus.n_prompts} prompts in {versus.n_families} families, at the "
            f"last token of each. H²: squared Hellinger distance between the sets beyond that within them, 0 where "
            f"they are alike. p: {versus.labelings.shape[1] - 1} exchanges of categories"
            f"{' inside families' if versus.crossed is not None else ''}, adjusted over the layers of a metric (max-T)."
        )
        if versus.left_out:
            notes.append(
                f"{versus.left_out} prompts are not contrasted: their family holds only one of the categories."
            )
    return notes


def _tuned_note(name: str, tuned: TunedLens) -> str:
    info = tuned.info
    return (
        f"Tuned lens of {name}: {info['n_states']} states of {info['n_texts'] - info['n_held_out']} texts, "
        f"{info['steps']} steps; its loss is shown on {info['n_held_out']} other texts, beside that of the plain lens."
    )
