"""Is it the representation or the probe? Control tasks with a distribution, and baselines that cost nothing.

A control task gives every type (word, speaker, prompt) a random label and asks how well the same probe learns that in
the same folds (Hewitt and Liang 2019). One draw says little: here all draws are columns of one cross-validation.
Selectivity depends on the split: where items of a type lie in train and test, a probe with as many features as items
memorises types and selectivity vanishes. Report both splits (`folds` of items, and of whole types).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probecore.activations import Activations
from probecore.errors import DesignError, InputError
from probecore.probes.scores import score
from probecore.probes.solvers import ProbeSpec, decide
from probecore.seeds import generator
from probecore.splits import Folds, group_folds, item_folds
from probecore.validation import at_least, codes_of, constant_inside, finite_matrix, one_of, one_per_item

BASELINE = "baseline: "


@dataclass(frozen=True)
class Selectivity:
    """Accuracy on the task and on control tasks, in the same folds with the same probe.

    selectivity : accuracy - control_mean. control_low, control_high : 95 % of the control tasks. p_value :
    (b + 1) / (m + 1), control tasks at least as accurate as the task; with type folds and labels constant per type it
    is the permutation test of type labels. scheme : how folds were made.
    """

    accuracy: float
    control_mean: float
    control_sd: float
    control_low: float
    control_high: float
    selectivity: float
    p_value: float
    scheme: str
    n_items: int
    n_types: int
    n_controls: int


def selectivity(
    x: ArrayLike,
    labels: ArrayLike,
    types: ArrayLike,
    *,
    folds: str | Folds = "item",
    probe: ProbeSpec | None = None,
    n_controls: int = 200,
    seed: int = 0,
) -> Selectivity:
    """Compare a probe for class labels (items,) with control tasks over types (items,).

    folds : "item" (types recur at test, as in the original), "type" (5 folds of whole types) or `Folds`.
    probe : None means ridge. Raises `DesignError` with fewer than 4 types.
    """
    values = finite_matrix(x, "x").astype(np.float64)
    codes, names = codes_of(one_per_item(labels, len(values), "labels"))
    kinds, type_names = codes_of(one_per_item(types, len(values), "types"))
    if len(names) < 2 or len(type_names) < 4:
        raise DesignError(f"a control task needs 2 classes and 4 types; got {len(names)} and {len(type_names)}")
    if not isinstance(folds, Folds):
        one_of(folds, ("item", "type"), "folds")
        folds = (
            item_folds(len(values), 5, seed=seed) if folds == "item" else group_folds(kinds, min(5, len(type_names)))
        )
    controls = control_labels(codes, kinds, at_least(n_controls, 1, "n_controls"), seed)
    columns = torch.as_tensor(np.concatenate([codes[:, None], controls], 1))
    decisions = decide(
        probe or ProbeSpec(), torch.as_tensor(values), folds.pairs, columns, len(names), torch.as_tensor(kinds)
    )
    tested = torch.as_tensor(np.concatenate([test for _, test in folds.pairs]))
    accuracy = score(torch.cat(decisions), columns[tested], len(names)).value.numpy()
    low, high = np.quantile(accuracy[1:], [0.025, 0.975])
    return Selectivity(
        accuracy=float(accuracy[0]),
        control_mean=float(accuracy[1:].mean()),
        control_sd=float(accuracy[1:].std()),
        control_low=float(low),
        control_high=float(high),
        selectivity=float(accuracy[0] - accuracy[1:].mean()),
        p_value=(1 + int((accuracy[1:] >= accuracy[0] - 1e-9).sum())) / len(accuracy),
        scheme=folds.scheme,
        n_items=len(values),
        n_types=len(type_names),
        n_controls=n_controls,
    )


def control_labels(
    codes: NDArray[np.int64], types: NDArray[np.int64], n_controls: int, seed: int = 0
) -> NDArray[np.int64]:
    """Return labels (items, controls), constant inside each type.

    Labels that are constant per type are permuted over types, which keeps the class counts of types; otherwise each
    type draws the label of a random item.
    """
    n_types = int(types.max()) + 1
    rng = generator(seed, "control tasks")
    if constant_inside(codes, types):
        of_type = np.empty(n_types, dtype=np.int64)
        of_type[types] = codes
        drawn = rng.permuted(np.tile(of_type, (n_controls, 1)), axis=1)
    else:
        drawn = codes[rng.integers(0, len(codes), size=(n_controls, n_types))]
    return np.ascontiguousarray(drawn.T[types])


def with_baselines(activations: Activations, baselines: Mapping[str, ArrayLike]) -> Activations:
    """Return activations with surface features as further layers, named "baseline: NAME".

    baselines : NAME -> (items,) or (items, features): length, energy, bag of words, an untrained model. Probed as
    layers they get the same folds, labelings and resamples as the rest, so `compare` says what a layer adds to them.
    """
    arrays = {}
    for name, given in baselines.items():
        array = np.asarray(given)
        array = finite_matrix(array[:, None] if array.ndim == 1 else array, name)
        if len(array) != activations.n_items:
            raise InputError(f"baseline {name!r} must have {activations.n_items} items; got {len(array)}")
        arrays[BASELINE + name] = array
    taken = sorted(set(arrays) & set(activations.layers))
    if taken:
        raise InputError(f"there is a layer {taken[0]!r} already: give the baseline another name")

    def read(layer: str) -> NDArray[np.generic]:
        return arrays[layer] if layer in arrays else activations.read(layer)

    return replace(activations, layers=(*activations.layers, *arrays), read=read)
