"""Abliteration: a direction is taken out of a model's weights, audited, measured, and saved as a normal model.

Conventions. The direction is given, or found as `lmprobe refusal` finds it: candidates from the extract split, the
choice on the select split (Arditi et al. 2024, arXiv 2406.11717), or without a choice the difference in means at the
input of one block. What the edit did is measured on the test split. The edit is held to the hook it must equal
(`lmprobe.weight_edits`); one that fails its audit is neither reported as done nor saved. Nothing on disk is changed but
the folder to save into. What every row means is written in docs/interventions-and-edits.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmprobe.abliteration_result import abliteration_result, coverage_result
from lmprobe.candidates import difference_in_means
from lmprobe.coverage import best_mode, coverage_rows
from lmprobe.direction_file import read_directions
from lmprobe.edit_effects import Before, before_edit, kl_along, kl_rows, odds_rows
from lmprobe.edit_report import EditReport, Mode
from lmprobe.edited_folder import require_free, save_edited
from lmprobe.interventions import ProjectOut
from lmprobe.loading import opened, quietly
from lmprobe.model_list import Model
from lmprobe.models import LanguageModel, Template
from lmprobe.near_duplicates import clusters
from lmprobe.organisms.packed import truth_of
from lmprobe.prompts import Prompts, load_prompts
from lmprobe.refusal import MODEL, PROMPTS
from lmprobe.refusal_score import (
    RefusalTokens,
    first_token_log_probs,
    given_tokens,
    refusal_log_odds,
    refusal_tokens,
)
from lmprobe.refusal_search import Study, search
from lmprobe.refusal_setting import Material, material, study_of
from lmprobe.weight_edits import orthogonalize, require_covered
from lmprobe.writers import Writers, find_writers
from probecore.errors import InputError
from probecore.progress import meter
from probecore.results import Result, Row
from probecore.validation import at_least, one_of

Floats = NDArray[np.float64]
AUTO = "auto"


@dataclass(frozen=True, eq=False)
class Direction:
    """What is taken out. columns : (d, k). source : in words, where it comes from. note : what a reader must know."""

    columns: Floats = field(repr=False)
    source: str
    tokens: RefusalTokens
    note: str = ""


@dataclass(frozen=True, eq=False)
class Done:
    """One edit and what was measured on it; `saved` is what edit.json holds, None where nothing was saved."""

    lm: LanguageModel
    name: str
    info: dict[str, object] = field(repr=False)
    material: Material = field(repr=False)
    direction: Direction
    writers: Writers = field(repr=False)
    coverage: list[Row] = field(repr=False)
    report: EditReport
    before: Before = field(repr=False)
    rows: list[Row] = field(repr=False)
    truth: dict[str, object] = field(repr=False)
    saved: dict[str, object] | None


def abliterate(
    model: Model | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    direction: str | Path | Floats | None = None,
    block: int | None = None,
    save: str | Path | None = None,
    dry_run: bool = False,
    at: str | Iterable[str] = "writes",
    mode: str = AUTO,
    strength: float = 1.0,
    norm_preserving: bool = False,
    refusal_openings: Sequence[str] = (),
    limit: int | None = None,
    n_controls: int = 3,
    template: Template = "auto",
    revision: str | None = None,
    dtype: str | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Take a direction out of a model's weights and return a `Result` of kind "abliteration".

    Parameters
    ----------
    model, prompts, refusal_openings, limit, template, revision, seed, device, quiet
        As `lmprobe.refusal.refusal` takes them; a model that is handed in opened is edited in place.
    direction
        A file (`lmprobe.direction_file`) or an array (d,) or (d, k); None finds it on the prompts.
    block
        Take the difference in means at the input of this block, at the last end position, without a choice.
    save
        A new or empty folder for the edited model. None saves nothing.
    dry_run
        Only list what an edit would reach (kind "abliteration-coverage"); finds no direction, changes nothing.
    at, mode, strength, norm_preserving
        As `orthogonalize` takes them; mode "auto" is exact where that exists for this model, else nullspace.
    n_controls
        Sets of random directions that are removed for comparison.

    Raises `InputError` and `CertificateError` as `orthogonalize` does, before anything is changed, and
    `CertificateError` for an edit that fails its audit.
    """
    one_of(mode, (AUTO, "exact", "nullspace"), "mode")
    at_least(n_controls, 0, "n_controls")
    at_least(n_bootstrap, 0, "n_bootstrap")
    if direction is not None and block is not None:
        raise InputError("a direction is given, or read at the input of a block; got both: leave one out")
    target = None if save is None else require_free(save)
    columns = None if direction is None else _given(direction)
    packaged = model is None
    model = MODEL if model is None else model
    lm = opened(model, revision=revision, device=device, dtype=dtype, quiet=quiet)
    at = at if isinstance(at, str) else tuple(at)
    with meter(None, "what writes into the stream", quiet=quiet):
        writers = find_writers(lm)
    if dry_run:
        return coverage_result(lm, writers, packaged=packaged, seed=seed, command=command)
    best = best_mode(writers) if mode == AUTO else mode
    chosen: Mode = "nullspace" if best == "nullspace" else "exact"
    first = np.eye(lm.certificate.width)[:, :1]
    require_covered(lm, writers, at, chosen, ProjectOut(first if columns is None else columns, at))
    truth = truth_of(lm.name if isinstance(model, LanguageModel) else model) or {}
    planted = "topics" in truth.get("planted", {})
    given = material(load_prompts((PROMPTS if planted else "default") if prompts is None else prompts),
                     limit=limit, seed=seed)  # fmt: skip
    with meter(None, "the direction", quiet=quiet):
        study = study_of(
            lm, given, template=template, tokens=given_tokens(lm, refusal_openings) if refusal_openings else None
        )
        found = _direction(study, direction, columns, block)
    test = study.splits["test"]
    texts = _capability_texts(study, given)
    with meter(None, "the untouched model", quiet=quiet):
        before = before_edit(
            lm, test.rows, found.tokens.ids, texts, k=found.columns.shape[1], n_controls=n_controls,
            template=template, seed=seed,
        )  # fmt: skip
    name, info, coverage = lm.name, dict(lm.info), coverage_rows(writers)
    with meter(None, "the edit", quiet=quiet):
        report = orthogonalize(
            lm, found.columns, at=at, mode=chosen, strength=strength, norm_preserving=norm_preserving, seed=seed
        ).require()
        after = refusal_log_odds(first_token_log_probs(lm, test.rows), found.tokens.ids)
        rows = odds_rows(
            before, after, [(given.harmful, test.is_harmful), (given.harmless, ~test.is_harmful)], test.cluster,
            n_bootstrap=n_bootstrap, seed=seed,
        )  # fmt: skip
        rows += kl_rows(
            before, kl_along(lm, before.answers), clusters(texts[: len(before.answers.rows)]),
            n_bootstrap=n_bootstrap, seed=seed,
        )  # fmt: skip
    saved = None
    if target is not None:
        about = {
            "model": name, "revision": info["revision"], "weights_hash": info["weights_hash"],
            "direction": found.source, "prompts": {"source": given.prompts.source, "hash": given.prompts.digest},
            "seed": seed, "synthetic": bool(truth),
        }  # fmt: skip
        with meter(None, "saving", quiet=quiet), quietly(quiet):
            saved = save_edited(report, target, about)
    done = Done(lm, name, info, given, found, writers, coverage, report, before, rows, dict(truth), saved)
    return abliteration_result(
        done, packaged=packaged, n_bootstrap=n_bootstrap, n_controls=n_controls, seed=seed, command=command
    )


def _given(direction: str | Path | Floats) -> Floats:
    """Return directions that were given, as columns (d, k)."""
    columns = np.asarray(
        read_directions(direction) if isinstance(direction, (str, Path)) else direction, dtype=np.float64
    )
    return columns[:, None] if columns.ndim == 1 else columns


def _direction(study: Study, given: str | Path | Floats | None, columns: Floats | None, block: int | None) -> Direction:
    """Return what is to be taken out, with the refusal tokens by which its effect is measured."""
    one = study.splits["extract"]
    tokens = study.given
    if given is None and block is None:
        found = search(study)
        relaxed = found.selection.relaxed
        note = "" if not relaxed else (
            f"NO candidate passes the rule of Arditi et al.; the limit of {' and of '.join(relaxed)} was given up: "
            "this model has no single refusal direction on these prompts"
        )  # fmt: skip
        source = f"difference in means at position {found.position}, input of block {found.block}, chosen by the rule"
        return Direction(found.vector[:, None], source, found.tokens, note)
    if tokens is None:
        bad = np.flatnonzero(one.is_harmful)
        good = np.flatnonzero(~one.is_harmful)
        tokens = refusal_tokens(study.lm, one.log_p[bad], one.log_p[good])
    if columns is not None:
        source = f"given, {Path(given).name}" if isinstance(given, (str, Path)) else "given"
        note = "the direction was given: if it was found on these very test prompts, numbers here are too good"
        return Direction(columns, source, tokens, note)
    assert block is not None
    if not 0 <= block < study.n_blocks:
        raise InputError(f"a block to read the direction at is 0 to {study.n_blocks - 1}; got {block}")
    means = difference_in_means(study.states, one.is_harmful, study.end.positions)
    position = max(study.end.positions)
    source = f"difference in means at position {position}, input of block {block}, as asked"
    means.unit(position, block)  # refuses means that are equal there
    return Direction(means.raw(position, block)[:, None], source, tokens)


def _capability_texts(study: Study, given: Material) -> list[str]:
    """Return prompts that chose nothing: of other categories, or the harmless ones of the test split."""
    if len(given.others) >= 8:
        return list(given.others.texts)
    return [
        text for text, bad in zip(given.texts("test"), study.splits["test"].is_harmful, strict=True) if not bad
    ]  # fmt: skip
