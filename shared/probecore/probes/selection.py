"""The best layer without the optimism of picking it: the layer is chosen inside every outer training set.

The maximum over 28 equal layers is .11 to .14 too high. Here each outer fold j is predicted by the layer with the best
accuracy inside its training set, where fold i is predicted by a probe trained without i and j. Pairs of folds are folds
like any other, so every solver can do it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probecore.probes.design import Design
from probecore.probes.intervals import targets_of
from probecore.probes.solvers import Fold, ProbeSpec, decide
from probecore.splits import Folds, check_training_classes, group_folds

OUTER_FOLDS = 5


@dataclass(frozen=True)
class Selection:
    """A nested choice of layer.

    best : index of the layer with the best score over all folds. chosen : index chosen for each outer fold.
    score : accuracy, or r2 for a real label, of the chosen layers in their outer folds. plain : the same for each layer
    by itself, (layers,); its maximum is the optimistic number.
    """

    best: int
    chosen: tuple[int, ...]
    score: float
    plain: NDArray[np.float64]


def select_layer(
    layers: Sequence[str],
    read: Callable[[str], NDArray[Any]],
    design: Design,
    folds: Folds,
    spec: ProbeSpec,
    device: str = "cpu",
) -> Selection:
    """Choose the layer inside 5 outer folds (those given when they are 3 to 10 and test each item once).

    Raises `DesignError` when a training set without two folds holds one class only.
    """
    usable = 3 <= len(folds) <= 10 and not folds.by_class
    outer = folds if usable else group_folds(design.groups, min(OUTER_FOLDS, design.n_groups))
    tests = outer.tests()
    n, k = design.n_items, len(tests)
    pairs = list(combinations(range(k), 2))
    everything = np.arange(n)
    inner: list[Fold] = []
    for i, j in pairs:
        test = np.concatenate([tests[i], tests[j]])
        inner.append((np.setdiff1d(everything, test), test))
    if not design.real:
        check_training_classes(Folds(tuple(inner), "two folds left out"), design.y, design.names)
    alone = np.zeros((len(layers), k))  # loss of fold j trained on the rest
    nested = np.zeros((len(layers), k))  # loss of all other folds, each trained without itself and fold j
    for index, name in enumerate(layers):
        x = torch.as_tensor(np.ascontiguousarray(read(name), dtype=np.float64), device=device)
        labels, groups = targets_of(design, x), torch.as_tensor(design.groups, device=device)
        parts = decide(spec, x, [*outer.pairs, *inner], labels, design.n_classes, groups)
        for j, (_, test) in enumerate(outer.pairs):
            alone[index, j] = _loss(parts[j][:, 0], labels[test, 0])
        for (i, j), part, (_, test) in zip(pairs, parts[k:], inner, strict=True):
            cut = len(tests[i])
            nested[index, j] += _loss(part[:cut, 0], labels[test[:cut], 0])
            nested[index, i] += _loss(part[cut:, 0], labels[test[cut:], 0])
    chosen = tuple(int(nested[:, j].argmin()) for j in range(k))
    total = float((targets_of(design, torch.zeros(1, dtype=torch.float64)) ** 2).sum()) if design.real else float(n)
    plain = 1 - alone.sum(1) / total
    score = 1 - sum(alone[layer, j] for j, layer in enumerate(chosen)) / total
    return Selection(int(plain.argmax()), chosen, float(score), plain)


def _loss(decisions: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the number of wrong items, or the squared error of a real label (z-scores)."""
    if labels.is_floating_point():
        return float((decisions - labels).square().sum())
    predicted = (decisions > 0).long() if decisions.ndim == 1 else decisions.argmax(-1)
    return float((predicted != labels).sum())
