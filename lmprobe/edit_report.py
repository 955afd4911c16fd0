"""The report of an edit of weights: what was touched, and the audit that says whether it did what it must.

Conventions. Leaks as in `lmprobe.leak_audit`; gaps in standard deviations of the reference's logits, KL in nats per
token, both on the audit's random tokens. Hashes are SHA-256 of a tensor's bytes in its own dtype, row by row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmprobe.leak_audit import LeakAudit
from lmprobe.models import LanguageModel
from lmprobe.vectors import Vectors, plain
from probecore.errors import CertificateError

Mode = Literal["exact", "nullspace"]


@dataclass(frozen=True)
class TensorEdit:
    """What happened to one tensor.

    removed : share of its norm that lay in the subspace, ||Q^T W|| / ||W||. rank : rank of the change before rounding,
    None where the edit is not linear (norm-preserving). emptied : vectors that lay wholly in the subspace.
    """

    name: str
    site: str
    layout: str
    shape: tuple[int, ...]
    removed: float
    rank: int | None
    emptied: int
    before: str
    after: str


@dataclass(frozen=True, eq=False)
class EditReport:
    """The edited model, what was touched, and the audit.

    lm : the edited model, with certificate and hashes of the edited weights.
    whole : every write was edited, at lists their sites. before, after : leaks on the same random tokens.
    gap, kl : the edited model against the hook on writes, in sd of the logits and nats per token. An "exact" edit must
    agree with it; for others it says how much logits differ. source_gap, source_kl : against the hook on what each norm
    is given, which every linear edit must equal. head_same : the output head has the same bytes as before.
    """

    lm: LanguageModel = field(repr=False)
    mode: Mode
    at: tuple[str, ...]
    whole: bool
    k: int
    strength: float
    norm_preserving: bool
    affine: bool
    untied: bool
    edits: tuple[TensorEdit, ...] = field(repr=False)
    before: LeakAudit = field(repr=False)
    after: LeakAudit = field(repr=False)
    gap: float
    kl: float
    source_gap: float
    source_kl: float
    kl_limit: float
    head_same: bool
    direction_hash: str

    @property
    def failures(self) -> tuple[str, ...]:
        """What should hold for this edit and does not, each with the value met."""
        found = []
        limit = self.after.limit
        removes = self.strength == 1.0
        if removes and self.whole and not self.after.leak < limit:
            found.append(f"the stream leaks {self.after.leak:.2g} at {self.after.worst}, allowed is {limit:g}")
        worst = max(self.after.writes, key=lambda site: self.after.writes[site], default="")
        if removes and worst and not self.affine and not self.after.writes[worst] < limit:
            found.append(f"{worst} still writes {self.after.writes[worst]:.2g}, allowed is {limit:g}")
        if not self.norm_preserving:
            kl, what = (self.kl, "the hook") if self.mode == "exact" else (self.source_kl, "the hook before the norms")
            if not kl < self.kl_limit:
                found.append(f"logits differ from {what} by {kl:.2g} nats, allowed are {self.kl_limit:g}")
        if not self.head_same:
            found.append("the output head was changed")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether everything that must hold for this edit holds."""
        return not self.failures

    def summary(self) -> dict[str, Any]:
        """Return what was asked for and what the audit found, as `edit.json` holds it."""
        return {
            "direction_sha256": self.direction_hash, "directions": self.k, "mode": self.mode, "sites": list(self.at),
            "strength": self.strength, "norm_preserving": self.norm_preserving, "affine": self.affine,
            "untied": self.untied, "dtype": str(self.lm.dtype).removeprefix("torch."),
            "leak_before": self.before.leak, "leak_after": self.after.leak, "leak_limit": self.after.limit,
            "leak_tokens": self.after.tokens, "gap_to_hook_sd": self.gap, "kl_to_hook": self.kl,
            "gap_to_hook_on_sources_sd": self.source_gap, "kl_to_hook_on_sources": self.source_kl,
            "kl_limit": self.kl_limit, "head_same": self.head_same,
        }  # fmt: skip

    def require(self) -> EditReport:
        """Return the report; raises `CertificateError` where something that must hold does not."""
        if self.failures:
            raise CertificateError(
                f"an edit must pass its audit; that of {self.lm.name} does not: {'; '.join(self.failures)}: do not use "
                "the edited model, open it again"
            )
        return self


def direction_hash(basis: Vectors) -> str:
    """Return the SHA-256 of a basis as float64 bytes, features by directions, as `edit.json` states it."""
    values = np.asarray(plain(basis), np.float64)
    values = values[:, None] if values.ndim == 1 else values
    return hashlib.sha256(str(values.shape).encode() + np.ascontiguousarray(values, "<f8").tobytes()).hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes in its own dtype, row by row."""
    found = hashlib.sha256()
    for rows in tensor.detach().reshape(-1).split(2**24):
        found.update(rows.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
