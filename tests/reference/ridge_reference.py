"""Slow references for the ridge engine: explicit loops over folds, labelings and items, by other algebra.

Ridge is solved as an augmented least-squares problem, |[Z 1; sqrt(alpha) I 0] (w, b) - (y, 0)|^2, by SVD (numpy lstsq):
no kernel, no Gram, no factor and no centring trick is shared with the code under test.
"""

import numpy as np


def fit(x, y, alpha, weights=None):
    """Return (weights of features, intercept) of ridge with a free intercept and item weights."""
    n, d = x.shape
    root = np.ones(n) if weights is None else np.sqrt(weights)
    top = np.column_stack([x, np.ones(n)]) * root[:, None]
    bottom = np.column_stack([np.sqrt(alpha) * np.eye(d), np.zeros(d)])
    solution = np.linalg.lstsq(np.vstack([top, bottom]), np.concatenate([y * root, np.zeros(d)]), rcond=None)[0]
    return solution[:-1], solution[-1]


def scale(train, test, standardize):
    """Return train and test standardised by the mean and sd of train, where asked."""
    if standardize != "fold":
        return train, test
    mean, sd = train.mean(0), train.std(0)
    sd = np.where(sd < 1e-12 * np.maximum(1, np.abs(mean)), 1.0, sd)
    return (train - mean) / sd, (test - mean) / sd


def decisions(x, folds, labels, n_classes, alpha, standardize="none"):
    """Return one array per fold: (test, labelings) or (test, labelings, classes)."""
    out = []
    for train, test in folds:
        x_train, x_test = scale(x[train], x[test], standardize)
        columns = []
        for labelling in labels.T:
            targets = (
                [labelling]
                if n_classes == 0
                else [2.0 * labelling - 1]
                if n_classes == 2
                else [np.where(labelling == k, 1.0, -1.0) for k in range(n_classes)]
            )
            per_class = []
            for target in targets:
                w, b = fit(x_train, target[train], alpha)
                per_class.append(x_test @ w + b)
            columns.append(per_class[0] if len(per_class) == 1 else np.stack(per_class, -1))
        out.append(np.stack(columns, 1))
    return out


def scores(decisions_of_one, labels, n_classes):
    """Return (accuracy, balanced accuracy, margin) of one labelling by explicit loops; ties count their fraction."""
    right, margins, by_class = [], [], {k: ([], []) for k in range(n_classes)}
    for f, y in zip(decisions_of_one, labels, strict=True):
        values = np.array([-f, f]) / 2 if n_classes == 2 else np.asarray(f)
        best = np.flatnonzero(values >= values.max() - 1e-9)
        hit = 1 / len(best) if y in best else 0.0
        margin = values[y] - np.mean([v for k, v in enumerate(values) if k != y])
        right.append(hit)
        margins.append(margin)
        by_class[y][0].append(hit)
        by_class[y][1].append(margin)
    return (
        np.mean(right),
        np.mean([np.mean(hits) for hits, _ in by_class.values()]),
        np.mean([np.mean(values) for _, values in by_class.values()]),
    )
