"""Edited models on disk: a normal Hugging Face folder, with edit.json beside it, that comes back with the edit.

Conventions. The folder is what `save_pretrained` writes for the model and its tokenizer. `edit.json` names the model
that was edited, the direction by its SHA-256, every tensor touched with its hash before and after, and the audit. The
folder is opened again by `from_pretrained` and must give the edited model's logits bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lmprobe.edit_report import EditReport
from lmprobe.leak_audit import audit_tokens, passage
from lmprobe.models import LanguageModel, wrap_model
from lmprobe.weight_twins import MOST_PARAMETERS
from probecore.errors import CertificateError, InputError
from probecore.provenance import versions
from probecore.results import plain

RECORD = "edit.json"


def require_free(folder: str | Path) -> Path:
    """Return a folder to save into; raises `InputError` when it holds files."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(
            f"a folder to save an edited model into must be new or empty; {path.name!r} is not: take another"
        )
    return path


def save_edited(report: EditReport, folder: str | Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Save an edited model with tokenizer and `edit.json` and open it again; return what `edit.json` holds.

    about : what is to be known of the direction and of the model that was edited.
    Raises `CertificateError` for an edit that fails its audit and for a folder that does not give the same logits,
    `InputError` for a folder that holds files.
    """
    report.require()
    path = require_free(folder)
    lm = report.lm
    lm.model.save_pretrained(path, safe_serialization=True)
    lm.tokenizer.save_pretrained(path)
    record: dict[str, Any] = plain({
        **about, **report.summary(), "tensors": [vars(edit) for edit in report.edits],
        "edited_weights_hash": lm.info["weights_hash"], "versions": versions(),
        "reloaded": reloads(lm, path) if int(lm.info["parameters"]) <= MOST_PARAMETERS else None,
    })  # fmt: skip
    (path / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return record


def reloads(lm: LanguageModel, folder: Path) -> bool:
    """Open a folder by `from_pretrained` and require the logits of `lm` bit for bit; returns True."""
    attention = lm.model.config._attn_implementation
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=lm.dtype, attn_implementation=attention)
    other = wrap_model(again.to(lm.device).eval(), lm.tokenizer, blocks=lm.sites.blocks_path)
    ids, nothing = audit_tokens(lm), torch.zeros(lm.certificate.width, 0, dtype=torch.float64)
    own, saved = passage(lm, nothing, ids).logits, passage(other, nothing, ids).logits
    if not torch.equal(own, saved):
        raise CertificateError(
            f"a saved model must give the logits of the edited one; {folder.name!r} differs by up to "
            f"{float((own - saved).abs().max()):.2g}: do not use it"
        )
    return True
