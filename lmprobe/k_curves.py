"""Curves of a k-sweep: what is left of refusal and capability when the first k directions of frames are removed.

Conventions. The same prompts at every k, k = 0 first. Frames are (K, d) orthonormal rows in the order of removal
(`lmprobe.k_frames`). A removal counts while capability is at least `Options.keeps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.detectors import Detector
from lmprobe.k_frames import covariance_frames
from lmprobe.models import LanguageModel, Template
from lmprobe.refusal_search import Study
from lmprobe.refusal_setting import Material
from lmprobe.removal_effects import Answers, Effects, effects, untouched
from probecore.directions import Contrast
from probecore.errors import DesignError
from probecore.removal import gated_at, random_frames

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Options:
    """What was asked for; see `k_sweep`."""

    k_max: int
    contrast: Contrast
    at: str
    keeps: float
    detector: Detector
    max_new_tokens: int
    n_random: int
    n_curves: int
    n_permutations: int
    n_bootstrap: int
    n_extract: int
    template: Template
    seed: int
    quiet: bool


@dataclass(frozen=True, eq=False)
class Curves:
    """What the removal of the first k rows of an arm's frames did.

    k : (n,) the numbers removed, 0 first. refused : (frames, n, harmful). kept, ce_rise : (frames, n, neutral).
    over : (frames, n, harmless) refusals of harmless prompts; empty where they were not asked for.
    """

    arm: str
    k: list[int]
    refused: Floats = field(repr=False)
    kept: Floats = field(repr=False)
    ce_rise: Floats = field(repr=False)
    over: Floats = field(repr=False)

    @property
    def refusal(self) -> Floats:
        """Mean refusal (frames, n)."""
        return np.asarray(self.refused.mean(axis=2))

    @property
    def capability(self) -> Floats:
        """Mean capability (frames, n)."""
        return np.asarray(self.kept.mean(axis=2))


def removal_curves(
    lm: LanguageModel,
    arm: str,
    frames: Sequence[Floats],
    ks: list[int],
    at: str,
    harmful: Answers,
    harmless: Answers | None,
    neutral: Answers,
    rule: Detector,
) -> Curves:
    """Remove the first k rows of each frame, for k in `ks`, and measure refusal and capability; see `Curves`.

    at : "writes" or a site. harmless : None leaves their refusals out. rule : what calls an answer a refusal.
    """

    def measured(known: Answers, judge: Detector | None) -> Effects:
        return effects(lm, known, [frame[:k] for frame in frames for k in ks], judge, at=at)

    def shaped(values: NDArray[Any]) -> Floats:
        return np.asarray(values.reshape(len(frames), len(ks), -1), dtype=np.float64)

    cost = measured(neutral, None)
    over = np.empty((len(frames), len(ks), 0)) if harmless is None else shaped(measured(harmless, rule).refused)
    return Curves(arm, ks, shaped(measured(harmful, rule).refused), shaped(cost.kept), shaped(cost.ce_rise), over)


def size_of_refusal(
    lm: LanguageModel, study: Study, frame: Floats, at: str, neutral: Answers, given: Material, options: Options
) -> int:
    """Return k@95 % on the select split, the size at which controls are compared; the largest where there is none."""
    select, texts = study.splits["select"], given.texts("select")
    index = np.flatnonzero(select.is_harmful)
    known = untouched(
        lm, [select.rows[i] for i in index], [texts[i] for i in index], options.detector, options.max_new_tokens
    )
    found = removal_curves(
        lm, "select", [frame], list(range(len(frame) + 1)), at, known, None, neutral, options.detector
    )
    try:
        crossing = gated_at(found.refusal[0], found.capability[0], 0.95, keeps=options.keeps)
    except DesignError:
        return len(frame)
    return crossing.k or len(frame)


def shares_of_controls(
    lm: LanguageModel, x: Floats, y: Flags, k: int, at: str, harmful: Answers, neutral: Answers, options: Options
) -> dict[str, Floats]:
    """Return the gated share of refusal that each of `n_random` frames of k directions removes, by control."""
    if not options.n_random:
        return {}
    frames = {
        "random": random_frames(x.shape[1], k, options.n_random, options.seed + 1),
        "covariance": covariance_frames(x, y, k, options.n_random, options.seed + 1),
    }
    return {
        arm: gated_share(
            removal_curves(lm, arm, list(drawn), [0, k], at, harmful, None, neutral, options.detector), options
        )
        for arm, drawn in frames.items()
    }


def gated_share(curves: Curves, options: Options) -> Floats:
    """Return, of each frame, the share of refusal gone at its last k, 0 where capability is lost, (frames,)."""
    gone = 1 - curves.refusal[:, -1] / curves.refusal[:, 0]
    return np.asarray(np.where(curves.capability[:, -1] >= options.keeps, gone, 0.0))
