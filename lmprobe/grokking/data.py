"""Which inputs a member trains on, and in which order: functions of its spec and the step alone.

Conventions. Rows are indices into the inputs of a `Task`. Chance is counter-based: the split depends on the data seed,
the shuffle of an epoch on the data seed and the number of the epoch. Neither other members of a pack, nor the device,
nor the step at which a run was resumed change an order. A larger fraction of the same data seed holds the smaller one.
"""

import numpy as np
from numpy.typing import NDArray

from lmprobe.grokking.model import philox
from lmprobe.grokking.spec import Spec


def training_rows(spec: Spec) -> NDArray[np.int64]:
    """Return the rows (n_train,) that a member trains on, in no order."""
    return philox(int(spec.data_seed or 0), "split").permutation(spec.shape.task.n_inputs)[: spec.n_train]


def training_mask(spec: Spec) -> NDArray[np.bool_]:
    """Return which of the N inputs are trained on."""
    mask = np.zeros(spec.shape.task.n_inputs, dtype=bool)
    mask[training_rows(spec)] = True
    return mask


def batches(spec: Spec, first: int, n_steps: int) -> NDArray[np.int64]:
    """Return the rows (n_steps, batch) of the steps from `first` on, counted from 0.

    Every epoch shuffles the training rows and takes whole batches without replacement.
    """
    rows, per_epoch = training_rows(spec), spec.batches_per_epoch
    found = np.empty((n_steps, spec.batch), dtype=np.int64)
    order, epoch = rows, -1
    for i, step in enumerate(range(first, first + n_steps)):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = rows[philox(int(spec.data_seed or 0), "order", epoch).permutation(len(rows))]
        start = step % per_epoch * spec.batch
        found[i] = order[start : start + spec.batch]
    return found
