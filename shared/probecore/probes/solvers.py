"""Which linear probe, and the one interface every probe offers to cross-validation and permutation tests.

A solver takes one layer, a list of folds and many labelings at once, and returns what the probe trained on each
fold's training items decides about that fold's test items:

    solver(x, folds, labels, n_classes, *, alpha, standardize, groups, **options) -> [decisions of fold 0, fold 1, ...]

    x           (items, features) float64, finite
    folds       pairs (train, test) of int64 item indices; test sets may overlap (leave-pair-of-groups-out)
    labels      (items, labelings): int64 class codes 0..n_classes-1, or float64 when n_classes is 0 (regression);
                column 0 holds the observed labels, the others permuted ones
    alpha       penalty, "trace" (label-free default) or what else the solver documents
    standardize "fold" (mean and sd of each training fold), "global" (of all items; label-blind) or "none"
    groups      (items,) int64 cross-validation groups, for solvers that choose something inside the folds

    decisions   (test items, labelings), positive for class 1, for two classes and for regression (predicted value);
                (test items, labelings, classes), the largest wins, for more. float64. A class missing from a training
                fold may have -inf. A labelling with one class in a training fold gets any finite constant.

Predictions of class 1 against class 0 are on a scale of the solver's own; only signs, order and means are used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError
from probecore.validation import one_of

if TYPE_CHECKING:
    from torch import Tensor

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]

STANDARDIZE = ("fold", "global", "none")
CHOSEN_INSIDE = ("group-loo", "loo", "gcv")  # alpha of "nested-ridge": chosen again inside every training fold

SOLVERS: dict[str, str] = {
    "ridge": "probecore.probes.ridge:ridge_decisions",
    "nested-ridge": "probecore.probes.nested:nested_ridge_decisions",
    "lda": "probecore.probes.lda:lda_decisions",
    "logistic": "probecore.probes.logistic:logistic_decisions",
}


class Solver(Protocol):
    """Out-of-fold decisions for many labelings; see the module docstring for shapes."""

    def __call__(
        self,
        x: "Tensor",
        folds: Sequence[Fold],
        labels: "Tensor",
        n_classes: int,
        *,
        alpha: float | str,
        standardize: str,
        groups: "Tensor",
        **options: Any,  # noqa: ANN401
    ) -> "list[Tensor]":
        """Return the decisions of each fold's test items."""
        ...


@dataclass(frozen=True)
class ProbeSpec:
    """A probe: its solver and how it is regularised.

    kind : "ridge", "nested-ridge", "lda" or "logistic".
    alpha : penalty on the squared weights; "trace" is the mean squared norm of the centred (and standardised) items (a
        quarter of it for logistic). "group-loo", "loo" or "gcv" for ridge: chosen inside every training fold, for every
        labelling ("ridge" with one of these is "nested-ridge", which by default takes "group-loo").
    standardize : "fold", "global" or "none".
    options : further keyword arguments of the solver.

    Raises `InputError` for an unknown kind or scaling, or a penalty that is not positive.
    """

    kind: str = "ridge"
    alpha: float | str = "trace"
    standardize: str = "fold"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no solver could use."""
        one_of(self.kind, SOLVERS, "the probe")
        one_of(self.standardize, STANDARDIZE, "standardize")
        if self.kind == "ridge" and self.alpha in CHOSEN_INSIDE:
            object.__setattr__(self, "kind", "nested-ridge")
        if self.kind == "nested-ridge":
            object.__setattr__(self, "alpha", "group-loo" if self.alpha == "trace" else self.alpha)
            one_of(str(self.alpha), CHOSEN_INSIDE, "alpha of a nested ridge probe")
        elif isinstance(self.alpha, str):
            one_of(self.alpha, ("trace",), f"alpha of a probe of kind {self.kind!r}, if not a number,")
        elif not (0 < float(self.alpha) < float("inf")):
            raise InputError(f"alpha must be positive and finite; got {self.alpha!r}: use 'trace' for a default")


def decide(
    spec: ProbeSpec, x: "Tensor", folds: Sequence[Fold], labels: "Tensor", n_classes: int, groups: "Tensor"
) -> "list[Tensor]":
    """Return the decisions of each fold's test items, computed by the solver of `spec` (shapes: module docstring)."""
    module, name = SOLVERS[spec.kind].split(":")
    solver: Solver = getattr(import_module(module), name)
    return solver(
        x, folds, labels, n_classes, alpha=spec.alpha, standardize=spec.standardize, groups=groups, **spec.options
    )
