"""Simulated nulls for the calibration tests: many data sets at once through the engine, one p per data set.

`rejections` gives the share of data sets in which accuracy and margin reject at .05. The band is the central .95 of a
binomial with the number of nulls and .05: a valid test lies inside it, up to the discreteness of accuracy, which can
only push it down.
"""

import numpy as np
import torch
from scipy.stats import binom

from probecore.probes.permutation import draw_labelings
from probecore.probes.ridge import ridge_operator
from probecore.probes.scores import score_two_classes
from probecore.stats.permutation import p_value

BATCH = 50


def band(nulls, level=0.05):
    low, high = binom.ppf([0.025, 0.975], nulls, level) / nulls
    return low, high


def rejections(features, labels, design_of, folds, *, nulls=400, m=199, alpha=50.0, seed=0, standardize="none"):
    """Return (share rejected by accuracy, by margin, mean observed accuracy).

    features(rng) -> (items, features); labels(rng) -> (items,) codes; design_of(y) -> Design. `folds` are `Folds`, or
    folds(y) where they depend on the labels.
    """
    rng = np.random.default_rng(seed)
    rejected, accuracy = [], []
    for start in range(0, nulls, BATCH):
        ys = [labels(rng) for _ in range(min(BATCH, nulls - start))]
        x = torch.tensor(np.stack([features(rng, y) for y in ys]))
        shared = None if callable(folds) else ridge_operator(x, folds.pairs, alpha=alpha, standardize=standardize)
        for i, y in enumerate(ys):
            fold = folds(y) if callable(folds) else folds
            m_i = (
                ridge_operator(x[i], fold.pairs, alpha=alpha, standardize=standardize) if shared is None else shared[i]
            )
            values = torch.tensor(
                draw_labelings(design_of(y), m, level=1.0, seed=seed + start + i).values, dtype=x.dtype
            )
            rows = torch.as_tensor(np.concatenate(fold.tests()))
            weights = None
            if fold.by_class:
                group = design_of(y).groups
                first = [[int(t[np.flatnonzero(group[t] == g)[0]]) for g in np.unique(group[t])] for t in fold.tests()]
                opposite = torch.stack([values[a] != values[b] for a, b in first])
                sizes = torch.tensor([len(t) for t in fold.tests()])
                weights = opposite.to(x.dtype).repeat_interleave(sizes, 0)
            scores = score_two_classes(m_i @ (2 * values - 1), values[rows], weights)
            p = p_value(torch.stack([scores.value, scores.margin]).numpy())
            rejected.append(p <= 0.05 + 1e-12)
            accuracy.append(float(scores.value[0]))
    by_accuracy, by_margin = np.mean(rejected, axis=0)
    return by_accuracy, by_margin, float(np.mean(accuracy))
