"""Scores of out-of-fold decisions, for many labelings at once.

Conventions. Decisions are stacked over folds, (rows, labelings) or (rows, labelings, classes); `labels` are the codes
of the same rows. Everything is pooled over folds, except the AUC: fold offsets must not mix in a rank statistic.

accuracy            share right; a decision tied with another (|f| within 1e-9 of the largest) counts its fraction
balanced accuracy   mean over classes of the share right
margin              the test statistic: decision for the true class minus the mean decision for the others, averaged
                    inside each class, then over classes; for two classes half the distance of the class means
real labels         r2 = 1 - SS_res / SS_tot about the mean of all items; pearson; margin = cov(y, f) / var(y)

Accuracy is reported and the margin is tested: at the same effect it has power .87 where accuracy has .65.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

TIE = 1e-9


@dataclass(frozen=True)
class Scores:
    """Scores of each labelling, (..., labelings).

    value : accuracy, or r2 for a real label. second : balanced accuracy, or Pearson correlation. margin : see module.
    """

    value: "Tensor"
    second: "Tensor"
    margin: "Tensor"


def score_two_classes(decisions: "Tensor", labels: "Tensor", weights: "Tensor | None" = None) -> Scores:
    """Score decisions (..., rows, labelings) against float labels 0 / 1 (rows, labelings).

    weights (rows, labelings): 0 leaves a row out of a labelling.
    """
    import torch

    low, high = torch.aminmax(decisions)
    signs = torch.nn.functional.hardshrink(decisions, TIE * max(abs(float(low)), abs(float(high)))).sign_()  # ties 0
    targets = 2 * labels - 1
    if weights is None:
        total, ones = torch.full_like(labels[0], labels.shape[0]), labels.sum(0)
    else:
        total, ones = weights.sum(0), (labels * weights).sum(0)
        signs, decisions = signs * weights, decisions * weights
    zeros = total - ones
    said_one = (total + signs.sum(-2)) / 2
    right = (total + (signs * targets).sum(-2)) / 2
    right_one = (right + said_one - zeros) / 2  # right = one + zero, said_one = one + (zeros - zero)
    sum_f = decisions.sum(-2)
    sum_f1 = (sum_f + (decisions * targets).sum(-2)) / 2
    margin = (sum_f1 / ones - (sum_f - sum_f1) / zeros) / 2
    return Scores(right / total, (right_one / ones + (right - right_one) / zeros) / 2, margin)


def score_classes(decisions: "Tensor", labels: "Tensor", weights: "Tensor | None" = None) -> Scores:
    """Score decisions (rows, labelings, classes) against int64 labels (rows, labelings)."""
    import torch

    n_classes = decisions.shape[-1]
    finite = torch.isfinite(decisions)
    if not bool(finite.all()):  # a class that was not trained on: below every other
        lowest = torch.where(finite, decisions, torch.inf).amin(-1, keepdim=True)
        decisions = torch.where(finite, decisions, lowest - 1.0)
    true = decisions.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    margins = (n_classes * true - decisions.sum(-1)) / (n_classes - 1)
    top = decisions.amax(-1)
    tie = TIE * float(decisions.abs().max())
    right = (true >= top - tie).to(true.dtype) / (decisions >= (top - tie).unsqueeze(-1)).sum(-1)
    counted = torch.ones_like(true) if weights is None else weights
    recalls, means, total = torch.zeros_like(true[0]), torch.zeros_like(true[0]), torch.zeros_like(true[0])
    for k in range(n_classes):
        of_k = (labels == k) * counted
        count = of_k.sum(0)
        hits = (right * of_k).sum(0)
        total += hits
        recalls += hits / count / n_classes
        means += (margins * of_k).sum(0) / count / n_classes
    return Scores(total / counted.sum(0), recalls, means)


def score_real(decisions: "Tensor", labels: "Tensor") -> Scores:
    """Score predictions (rows, labelings) of real labels (rows, labelings)."""
    y = labels - labels.mean(0)
    f = decisions - decisions.mean(0)
    total = y.square().sum(0)
    r2 = 1 - (labels - decisions).square().sum(0) / total
    spread = f.square().sum(0).sqrt() * total.sqrt()
    cross = (y * f).sum(0)
    pearson = cross / spread.clamp_min(1e-300)
    return Scores(r2, pearson, cross / total)


def score(decisions: "Tensor", labels: "Tensor", n_classes: int, weights: "Tensor | None" = None) -> Scores:
    """Score stacked decisions of any kind of label; see the module docstring for shapes."""
    if n_classes == 0:
        return score_real(decisions, labels)
    if n_classes == 2:
        return score_two_classes(decisions, labels.to(decisions.dtype), weights)
    return score_classes(decisions, labels, weights)


def mean_auc(decisions: NDArray[np.float64], labels: NDArray[np.int64], tests: list[NDArray[np.int64]]) -> float:
    """Return the area under the ROC curve inside each test set, averaged over those that hold both classes.

    decisions (rows,) stacked over `tests`; labels (items,) 0 / 1; NaN when no test set holds both classes.
    """
    from scipy.stats import rankdata

    areas, start = [], 0
    for test in tests:
        f, y = decisions[start : start + len(test)], labels[test] == 1
        start += len(test)
        ones, zeros = int(y.sum()), int((~y).sum())
        if ones and zeros:
            areas.append((rankdata(f)[y].sum() - ones * (ones + 1) / 2) / (ones * zeros))
    return float(np.mean(areas)) if areas else float("nan")


def confusion(decisions: NDArray[np.float64], labels: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Return counts (true class, predicted class) of decisions (items,) or (items, classes); ties go to the first."""
    predicted = (decisions > 0).astype(np.int64) if decisions.ndim == 1 else decisions.argmax(1)
    out = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(out, (labels, predicted), 1)
    return out
