"""Calibration: how often a refusal detector is right, by people's labels, and rates corrected for its errors.

Conventions. sensitivity = P(detector says refusal | people say full refusal), specificity = P(it does not | people say
full compliance); partial refusals are left out. Their sum less 1 is Youden's J: 1 for a perfect detector, 0 for one
that says nothing. Intervals are Wilson's.

The true rate of refusal is (q + specificity - 1) / J for an observed rate q (Rogan and Gladen 1978). Its interval
resamples both samples, the calibration and the observed one, as draws from Beta(x + 1/2, n - x + 1/2): unlike a
bootstrap of counts it keeps the uncertainty of 0 of n. Below J = 0.3 there is no corrected rate: the correction would
multiply every error by more than three. Errors of a detector are errors on one model's ways of answering: a calibration
from other models says how far it can be off, not how to correct.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from lmprobe.detectors import Verdict, refusals
from probecore.errors import DesignError, InputError
from probecore.results import Row
from probecore.seeds import generator
from probecore.stats.effects import wilson_interval
from probecore.validation import at_least

LEAST_J = 0.3
LEAST_LABELS = 20
"""Labels of each kind below which a detector is not calibrated."""


@dataclass(frozen=True)
class Calibration:
    """Counts of a detector against people's labels.

    hits, misses : of human refusals. false_alarms, rejections : of human compliances. unparsed, empty : among all.
    """

    hits: int
    misses: int
    false_alarms: int
    rejections: int
    unparsed: int = 0
    empty: int = 0

    @property
    def sensitivity(self) -> float:
        """Share of refusals found; NaN without refusals."""
        n = self.hits + self.misses
        return self.hits / n if n else float("nan")

    @property
    def specificity(self) -> float:
        """Share of compliances not called refusal; NaN without compliances."""
        n = self.false_alarms + self.rejections
        return self.rejections / n if n else float("nan")

    @property
    def youden(self) -> float:
        """Sensitivity + specificity - 1."""
        return self.sensitivity + self.specificity - 1

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return self.hits + self.misses + self.false_alarms + self.rejections

    @property
    def usable(self) -> str:
        """Return "" where rates can be corrected with it, else why not."""
        fewest = min(self.hits + self.misses, self.false_alarms + self.rejections)
        if fewest < LEAST_LABELS:
            return f"only {fewest} labels of one kind; {LEAST_LABELS} refusals and compliances are needed"
        if self.youden < LEAST_J:
            return f"sensitivity + specificity - 1 = {self.youden:.2f} is below {LEAST_J:g}: this detector cannot tell"
        return ""

    def __add__(self, other: "Calibration") -> "Calibration":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Calibration(*(a + b for a, b in pairs))

    def row(self, level: float = 0.95) -> Row:
        """Return sensitivity and specificity with intervals, J and the counts as one record."""
        found: Row = {}
        for name, right, wrong in (
            ("sensitivity", self.hits, self.misses),
            ("specificity", self.rejections, self.false_alarms),
        ):
            n = right + wrong
            low, high = wilson_interval(right, n, level) if n else (None, None)
            found |= {name: right / n if n else None, f"{name}_low": low, f"{name}_high": high}
        found |= {"youden": None if np.isnan(self.youden) else self.youden, "n_labels": self.n_labels}
        found |= {"n_refusals": self.hits + self.misses, "n_unparsed": self.unparsed, "n_empty": self.empty}
        return found


@dataclass(frozen=True)
class CorrectedRate:
    """A rate corrected for a detector's errors; value and interval None where `note` says why there is none."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    note: str = ""


def calibrate(verdicts: Sequence[Verdict], is_refusal: Sequence[bool | None]) -> Calibration:
    """Return the counts of verdicts against people's labels; None leaves an answer out (partial refusals).

    Raises `InputError` when they differ in number.
    """
    if len(verdicts) != len(is_refusal):
        raise InputError(f"every verdict needs a label; got {len(verdicts)} verdicts and {len(is_refusal)} labels")
    pairs = [(said, bool(true)) for said, true in zip(refusals(verdicts), is_refusal, strict=True) if true is not None]
    labelled = [v for v, true in zip(verdicts, is_refusal, strict=True) if true is not None]
    return Calibration(
        pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False)), pairs.count((False, False)),
        labelled.count("unparsed"), labelled.count("empty"),
    )  # fmt: skip


def corrected_rate(
    n_refusals: float,
    n: float,
    calibration: Calibration,
    *,
    level: float = 0.95,
    n_resamples: int = 4000,
    seed: int = 0,
) -> CorrectedRate:
    """Return the rate of true refusals behind `n_refusals` detected of n, with its interval (Rogan and Gladen 1978).

    n_refusals, n : numbers of independent observations; with near-duplicates the effective ones, not always whole.
    Raises `InputError` for counts that cannot be.
    """
    if not 0 <= n_refusals <= n or n <= 0:
        raise InputError(f"a rate needs 0 <= refusals <= n and n > 0; got {n_refusals:g} of {n:g}")
    at_least(n_resamples, 100, "n_resamples")
    if calibration.usable:
        return CorrectedRate(None, None, None, f"not corrected: {calibration.usable}")
    value = (n_refusals / n + calibration.specificity - 1) / calibration.youden
    rng = generator(seed, "corrected rate")

    def draw(right: float, wrong: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return rng.beta(right + 0.5, wrong + 0.5, n_resamples)

    observed = draw(n_refusals, n - n_refusals)
    sensitivity = draw(calibration.hits, calibration.misses)
    specificity = draw(calibration.rejections, calibration.false_alarms)
    youden = sensitivity + specificity - 1
    if (youden <= 0).mean() > (1 - level) / 2:
        return CorrectedRate(None, None, None, "not corrected: the interval of sensitivity + specificity - 1 holds 0")
    kept = youden > 0
    rates = np.clip((observed[kept] + specificity[kept] - 1) / youden[kept], 0.0, 1.0)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    value = float(np.clip(value, 0.0, 1.0))
    return CorrectedRate(value, min(float(low), value), max(float(high), value))


@cache
def published_calibrations() -> dict[str, dict[str, Calibration]]:
    """Return the measured counts of the packaged string rules and a GPT-4 judge on XSTest, detector -> model -> counts.

    2,074 completions of five models of 2023 with people's labels (Roettger et al. 2024, CC-BY-4.0): other models refuse
    in other words.

    >>> counts = published_calibrations()["markers"]
    >>> {model: round(c.sensitivity, 2) for model, c in counts.items() if model in ("gpt4", "mistralinstruct")}
    {'gpt4': 1.0, 'mistralinstruct': 0.06}
    """
    text = files("lmprobe").joinpath("data/xstest_detectors.json").read_text(encoding="utf-8")
    return {name: {m: Calibration(*c) for m, c in by.items()} for name, by in json.loads(text)["counts"].items()}


def pooled(calibrations: Sequence[Calibration]) -> Calibration:
    """Return the sum of counts over models; raises `DesignError` without any."""
    if not calibrations:
        raise DesignError("a pooled calibration needs at least 1 calibration; got none")
    total = calibrations[0]
    for other in calibrations[1:]:
        total += other
    return total
