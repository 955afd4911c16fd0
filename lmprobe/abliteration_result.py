"""The results of `lmprobe abliterate`: rows in reading order, notes, tables and one picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lmprobe.coverage import COVERAGE, coverage_notes, coverage_rows
from lmprobe.direction_file import NAME, direction_table
from lmprobe.edit_effects import BEFORE, EDITED, RANDOM
from lmprobe.models import LanguageModel
from lmprobe.writers import Writers
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row

if TYPE_CHECKING:
    from lmprobe.abliteration import Done

COLUMNS = (
    "metric", "condition", "value", "ci_low", "ci_high", "change", "change_low", "change_high", "control", "limit",
    "p_value", "p_adjusted", "n_prompts",
)  # fmt: skip
FACTS = ("architecture", "revision", "weights_hash", "tokenizer_hash", "dtype", "device")
SYNTHETIC = (
    "no --model was given: this is the packaged organism refusal-1, a tiny SYNTHETIC model with one planted direction; "
    "nothing here is a finding about a real language model"
)
CHECK = "a check of arithmetic: nothing is estimated"


def coverage_result(lm: LanguageModel, writers: Writers, *, packaged: bool, seed: int, command: str) -> Result:
    """Return what an edit of a model's weights would reach."""
    rows = coverage_rows(writers)
    n, total = (sum(row[key] or 0 for row in rows) for key in ("count", "parameters"))
    notes = [SYNTHETIC] if packaged else []
    notes.append(
        f"{n} tensors of {total:,} of {int(lm.info['parameters']):,} parameters write into the residual stream; "
        "nothing was changed or written"
    )
    return Result(
        kind="abliteration-coverage",
        title=f"What an edit of the weights of {lm.name} reaches",
        rows=tuple(rows),
        columns=tuple(name for name in COVERAGE if any(row.get(name) not in (None, "") for row in rows)),
        notes=(*notes, *coverage_notes(writers)),
        provenance=provenance(
            seed=seed, device=str(lm.device), command=command,
            models=[{"name": lm.name, **{key: lm.info[key] for key in FACTS}}],
        ),
    )  # fmt: skip


def abliteration_result(
    done: Done, *, packaged: bool, n_bootstrap: int, n_controls: int, seed: int, command: str
) -> Result:
    """Return the result of one edit."""
    given, report, found = done.material, done.report, done.direction
    rows = sorted([*done.rows, *_audit_rows(done)], key=lambda row: bool(row["detail"]))
    tables: dict[str, tuple[Row, ...]] = {
        "coverage": tuple(done.coverage),
        "tensors": tuple(vars(edit) for edit in report.edits),
        "odds": tuple(_levels(done)),
    }
    if found.columns.shape[1] == 1:
        tables[NAME] = direction_table(found.columns[:, 0])
    shown = [row for row in rows if not row["detail"]]
    return Result(
        kind="abliteration",
        title=f"{done.name} without {_words(report.k)}: {found.source}",
        rows=tuple(rows),
        columns=tuple(name for name in COLUMNS if any(row.get(name) is not None for row in shown)),
        notes=tuple(_notes(done, packaged, n_controls)),
        provenance=provenance(
            seed=seed, device=str(done.lm.device), command=command,
            prompts={"source": given.prompts.source, "hash": given.prompts.digest, **given.prompts.counts},
            splits={**given.split.sizes, "test_hash": given.split.digest}, bootstrap=n_bootstrap, controls=n_controls,
            refusal_tokens=list(found.tokens.texts), edit=report.summary(),
            models=[
                {"name": done.name, **{key: done.info[key] for key in FACTS}},
                {"name": done.lm.name, **{key: done.lm.info[key] for key in FACTS}},
            ],
        ),
        tables=tables,
        figures=(Figure(
            "odds", "bars_with_intervals", "odds", "Refusal score before and after the edit",
            "Mean log-odds (nats) that an answer begins with a refusal token, on test prompts. Whiskers: .95 intervals "
            "over resampled clusters of prompts. Random directions have none: they are means over the controls.",
            {"label": "kind", "series": "condition", "value_title": "Refusal log-odds (nats)"},
        ),),
    )  # fmt: skip


def _words(k: int) -> str:
    return "a direction" if k == 1 else f"{k} directions"


def _audit_rows(done: Done) -> list[Row]:
    """Return the audit of the edit, and how much of the planted span was hit where there is one."""
    report = done.report
    common: Mapping[str, Any] = {"p_value": None, "p_note": CHECK, "measure": "audit", "kind": "audit"}
    exact = report.mode == "exact" and not report.norm_preserving
    rows: list[Row] = [
        {**common, "metric": "leak of the untouched stream", "condition": BEFORE, "value": report.before.leak,
         "detail": False},
        {**common, "metric": "leak of the edited stream", "condition": EDITED, "value": report.after.leak,
         "detail": False,
         "limit": report.after.limit if report.whole and report.strength == 1.0 else None},
        {**common, "metric": "KL from the hook on every write (nats)", "condition": EDITED, "value": report.kl,
         "limit": report.kl_limit if exact else None, "detail": False},
        {**common, "metric": "largest difference of logits from that hook (sd)", "condition": EDITED,
         "value": report.gap, "detail": exact},
        {**common, "metric": "tensors edited", "condition": EDITED, "value": len(report.edits), "detail": True},
    ]  # fmt: skip
    frame = np.asarray(done.truth.get("planted", {}).get("directions", []), dtype=np.float64)  # type: ignore[attr-defined]
    if frame.size:
        q = np.linalg.qr(done.direction.columns)[0]
        frame = frame.reshape(-1, len(q))
        rows.append({
            **common, "metric": "share of the planted span removed", "condition": EDITED, "detail": False,
            "value": float(((frame @ q) ** 2).sum()) / len(frame), "p_note": "a description of this direction",
        })  # fmt: skip
    return rows


def _levels(done: Done) -> list[Row]:
    """Return the refusal score by kind and condition, for the picture."""
    rows = [row for row in done.rows if row["measure"] == "refusal log-odds"]
    found: list[Row] = [
        {"kind": row["kind"], "condition": row["condition"], "value": row["value"], "ci_low": row["ci_low"],
         "ci_high": row["ci_high"]}
        for row in rows
    ]  # fmt: skip
    return found + [
        {"kind": row["kind"], "condition": RANDOM, "value": row["control"], "ci_low": None, "ci_high": None}
        for row in rows if row["condition"] == EDITED and row["control"] is not None
        and np.isfinite(row["control"])
    ]  # fmt: skip


def _notes(done: Done, packaged: bool, n_controls: int) -> list[str]:
    report, given, found = done.report, done.material, done.direction
    sizes = given.split.sizes
    notes = [SYNTHETIC] if packaged else []
    notes.append(
        f"direction: {found.source}; refusal log-odds are those of {', '.join(found.tokens.texts)} as first token, on "
        f"{sizes['test']} test prompts that chose nothing (extract {sizes['extract']}, select {sizes['select']})"
    )
    notes += [note for note in (found.note, found.tokens.note) if note]
    if report.mode == "exact":
        notes.append(
            f"{len(report.edits)} tensors edited; the edited model equals the hook on these writes to rounding (audit "
            f"on {report.after.tokens} random tokens)"
        )
    else:
        notes.append(
            f"{len(report.edits)} tensors edited in mode nullspace: a norm stands behind sub-layers, so the direction "
            "is gone from the stream, but logits are NOT those of the hook (last rows)"
        )
    if report.norm_preserving:
        notes.append("norm-preserving: every write vector keeps its length, so logits are not those of the hook")
    if report.untied:
        notes.append("the output head shared the token table: it has its own copy now, and it was not edited")
    if n_controls:
        notes.append(f"control: mean over {n_controls} random choices of {_words(report.k)}, removed by hooks")
    if done.saved is None:
        notes.append("nothing was saved: give --save FOLDER for the edited model")
    else:
        again = "opened again with the same logits" if done.saved.get("reloaded") else "too large to open a second time"
        notes.append(f"the edited model was saved with edit.json ({again})")
    return notes
