"""Probes of single frames: leave-speaker-out ridge, tested against labels that were moved away from their frames.

Conventions. values (frames, features); labels (frames, 1 + nulls), column 0 observed, the others the labels turned or
exchanged as `frames` says: they keep the frequencies and the pace of labels, and undo only which frame goes with which.
Folds leave speakers out: each by itself, or groups of them where there are more than 10. The score is the share of
frames named correctly, or R2 = 1 - SSE / SST over all frames, SST around their mean.

An interval is that of a jackknife over the groups: a group is left out of training and of test, and all probes are
fitted again. Frames are dependent, so they are never the unit of an interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from probecore.devices import device_of
from probecore.probes.solvers import Fold, ProbeSpec, decide
from probecore.results import Row
from probecore.stats.bootstrap import jackknife_error, share_interval, t_quantile
from probecore.stats.permutation import max_t, p_value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FEWEST_GROUPS = 3
NUMBERS = 16_000_000  # in a batch of labels coded for the solver
FEW = f"fewer than {FEWEST_GROUPS} speakers: no interval over speakers"


@dataclass(frozen=True)
class FrameScore:
    """Score of the labels and of each null (1 + nulls,), and the interval of the first; NaN without one."""

    scores: Floats
    ci_low: float
    ci_high: float

    @property
    def value(self) -> float:
        """The score of the observed labels."""
        return float(self.scores[0])

    @property
    def chance(self) -> float:
        """The mean score of the moved labels."""
        return float(self.scores[1:].mean())


def probe_frames(values: Floats, labels: NDArray[np.generic], groups: Ints, n_classes: int, device: str) -> FrameScore:
    """Probe frames for classes (integer labels), or for a number (n_classes 0, float labels).

    groups (frames,): codes of what is left out together.
    """
    spec = ProbeSpec("ridge")
    on = device_of(device)
    x = torch.tensor(values, dtype=torch.float64, device=on)
    y = torch.tensor(labels, dtype=torch.int64 if n_classes else torch.float64, device=on)
    owner = torch.as_tensor(groups, device=on)
    names = np.unique(groups)
    step = max(1, NUMBERS // (len(values) * max(n_classes, 1)))
    folds = [_fold(groups, [g]) for g in names]
    order = np.concatenate([test for _, test in folds])
    scores = []
    for start in range(0, y.shape[1], step):
        part = y[:, start : start + step]
        decisions = torch.cat(decide(spec, x, folds, part, n_classes, owner))
        scores.append(_tally(decisions, part[order], n_classes).sum(0))
    total = torch.cat(scores)
    mean = y.mean(0) if not n_classes else torch.zeros(y.shape[1], dtype=torch.float64, device=on)
    whole = _score(total, y, mean, n_classes)
    if len(names) < FEWEST_GROUPS:
        return FrameScore(whole, np.nan, np.nan)
    deleted = _deleted(x, y[:, :1], groups, names, n_classes, owner, spec)
    return FrameScore(whole, *_interval(float(whole[0]), deleted, n_classes, len(values)))


def _deleted(
    x: torch.Tensor, y: torch.Tensor, groups: Ints, names: Ints, n_classes: int, owner: torch.Tensor, spec: ProbeSpec
) -> Floats:
    """Return the score without each group, (groups,): both left out of training, the other predicted."""
    pairs = list(combinations(range(len(names)), 2))
    folds = [_fold(groups, [names[a], names[b]]) for a, b in pairs]
    tallies = np.zeros(len(names))
    for (a, b), (_, test), part in zip(pairs, folds, decide(spec, x, folds, y, n_classes, owner), strict=True):
        found = _tally(part, y[test], n_classes)[:, 0].cpu().numpy()
        for gone, tested in ((a, b), (b, a)):
            tallies[gone] += found[groups[test] == names[tested]].sum()
    out = np.empty(len(names))
    for g, name in enumerate(names):
        kept = y[torch.as_tensor(np.flatnonzero(groups != name), device=y.device)]
        mean = kept.mean(0) if not n_classes else torch.zeros(1, dtype=torch.float64, device=y.device)
        out[g] = _score(torch.tensor([tallies[g]], dtype=torch.float64, device=y.device), kept, mean, n_classes)[0]
    return out


def _tally(decisions: torch.Tensor, labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return what adds up to a score, (frames, labelings): hits, or squared errors."""
    if not n_classes:
        return (decisions - labels).square()
    named = (decisions > 0).long() if n_classes == 2 else decisions.argmax(-1)
    return (named == labels).to(torch.float64)


def _score(total: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, n_classes: int) -> Floats:
    if n_classes:
        share: Floats = (total / len(labels)).cpu().numpy()
        return share
    r2: Floats = (1 - total / (labels - mean).square().sum(0)).cpu().numpy()
    return r2


def _interval(value: float, deleted: Floats, n_classes: int, n_frames: int) -> tuple[float, float]:
    n = len(deleted)
    error = jackknife_error(deleted, np.zeros(n, dtype=np.int64))
    if n_classes:
        return share_interval(value, error, n - 1, n_frames, n)
    half = t_quantile(n - 1) * error
    return value - half, min(value + half, 1.0)


def _fold(groups: Ints, left_out: list[int]) -> Fold:
    inside = np.isin(groups, left_out)
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def null_rows(
    common: Row,
    layers: Sequence[str],
    statistics: Floats,
    intervals: Sequence[tuple[float, float]],
    values: Sequence[float] | None = None,
    chance: Sequence[float] | None = None,
) -> list[Row]:
    """Return a row per layer of one metric, with p from the nulls and max-T over the layers.

    statistics (layers, 1 + nulls); values : what is reported where that is not the observed statistic (then chance,
    which belongs to the statistic, is 0). chance : its own, where it is not the mean of the nulls.
    """
    if chance is None:
        chance = [float(row[1:].mean()) if values is None else 0.0 for row in statistics]
    p, adjusted = p_value(statistics), max_t(statistics)
    rows: list[Row] = []
    for k, layer in enumerate(layers):
        low, high = intervals[k]
        rows.append(
            {
                **common, "layer": layer, "value": statistics[k, 0] if values is None else values[k],
                "ci_low": low, "ci_high": high, "ci_note": None if np.isfinite(low) else FEW,
                "chance": chance[k],
                "p_value": p[k], "p_adjusted": adjusted[k],
                "p_note": None,
                "n_permutations": statistics.shape[1] - 1,
            }
        )  # fmt: skip
    return rows
