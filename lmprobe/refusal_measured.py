"""What a refusal run measured on one model, before it becomes rows, notes and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmprobe.capability import Capability
from lmprobe.models import LanguageModel
from lmprobe.refusal_answers import Arm
from lmprobe.refusal_nulls import Null
from lmprobe.refusal_search import Found, Study
from lmprobe.refusal_setting import Material
from probecore.results import Row

WORDS = {"permuted": "permuted labels", "covariance": "covariance-matched", "random": "random"}
"""What the nulls are called in rows."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that was measured on one model."""

    lm: LanguageModel
    material: Material = field(repr=False)
    study: Study = field(repr=False)
    found: Found = field(repr=False)
    nulls: Mapping[str, Null] = field(repr=False)
    layers: list[Row] = field(repr=False)
    arms: list[Arm] = field(repr=False)
    answers: list[Row] = field(repr=False)
    detectors: list[Row] = field(repr=False)
    cost: Capability = field(repr=False)
    cost_rows: list[Row] = field(repr=False)
    truth: dict[str, Any] = field(repr=False)
