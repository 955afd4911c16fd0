"""A sweep of one change over places (layers), against the same change in random directions.

Conventions. `values` (places, items): a measure of each item with the change at that place; `unablated` (items,): with
no change; controls, by name, (replicates, places, items): with a change of equal size in a random direction, one
direction a replicate. An effect is the mean over items of value - unablated.

Two questions are asked, and two kinds of p answer them. Would other items show it? The interval and p of
`paired.paired_effects`, from clusters of items. Is this change special among changes of its size? The rank of its
absolute effect among those of the random directions, p = (1 + #{random >= observed}) / (1 + replicates), adjusted over
the places by the maximum (Westfall and Young 1993): which place is looked at is then chosen inside the null, too.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.ablation.paired import paired_effects
from probecore.errors import InputError
from probecore.results import Row
from probecore.stats.permutation import max_t, p_value

Floats = NDArray[np.float64]
BAND = (0.025, 0.975)


def sweep_effects(
    values: ArrayLike,
    unablated: ArrayLike,
    controls: Mapping[str, ArrayLike],
    *,
    clusters: ArrayLike,
    untested: str = "",
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> list[Row]:
    """Return one row per place: what `paired_effects` gives, and for each control NAME its range and p.

    untested : why the effect itself is not tested against 0 (a distance, positive under any change).
    A row has also, for each control: NAME_effect (mean over replicates), NAME_low, NAME_high (95 % of the replicates),
    p_NAME, p_NAME_adjusted, or p_NAME_note, why there is none; and n_NAME.

    Raises `InputError` when shapes do not fit.
    """
    arms, plain = np.atleast_2d(np.asarray(values, dtype=np.float64)), np.asarray(unablated, dtype=np.float64)
    drawn = {name: np.asarray(given, dtype=np.float64) for name, given in controls.items()}
    for name, given in drawn.items():
        if given.ndim != 3 or given.shape[1:] != arms.shape:
            raise InputError(
                f"control {name!r} must have shape (replicates, places, items), here (..., {arms.shape[0]}, "
                f"{arms.shape[1]}); got {given.shape}"
            )
    rows = paired_effects(arms, plain, clusters=clusters, untested=untested, n_bootstrap=n_bootstrap, seed=seed)
    unused = ("control_value", "beyond_control", "beyond_low", "beyond_high", "p_control", "p_control_adjusted",
              "p_control_note")  # fmt: skip
    for row in rows:
        for key in unused:
            del row[key]
    observed = _mean_effect(arms, plain)
    for name, given in drawn.items():
        effects = _mean_effect(given, plain)  # (replicates, places)
        _compare(rows, name, observed, effects)
    return rows


def _mean_effect(values: Floats, plain: Floats) -> Floats:
    """Return the mean over items of value - unablated, items without a value left out; NaN where none has one."""
    differences = values - plain
    there = np.isfinite(differences)
    count = there.sum(-1)
    total: Floats = np.where(there, differences, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _compare(rows: list[Row], name: str, observed: Floats, effects: Floats) -> None:
    n = len(effects)
    sizes = np.abs(np.concatenate([observed[None], effects])).T  # (places, 1 + replicates)
    single, family = (p_value(sizes), max_t(sizes)) if n else (np.full(len(rows), np.nan),) * 2
    for k, row in enumerate(rows):
        there = n > 0 and bool(np.isfinite(sizes[k]).all())
        ends = np.quantile(effects[:, k], BAND).tolist() if there else (None, None)
        row[f"{name}_effect"] = float(effects[:, k].mean()) if there else None
        row[f"{name}_low"], row[f"{name}_high"] = ends
        row[f"p_{name}"] = float(single[k]) if there else None
        row[f"p_{name}_adjusted"] = float(family[k]) if there else None
        row[f"n_{name}"] = n
        if not there:
            row[f"p_{name}_note"] = "no random directions were asked for" if not n else "the effect has no value"
