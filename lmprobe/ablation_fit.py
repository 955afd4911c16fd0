"""What ablations need to know of a model, read from the prompts of the fit half: means, donors, spreads, directions.

Conventions. Places are named as in `ablation_arms`: "attention 3", "mlp 3", "block 3". States are float64 where they
are averaged. Of a place only what its arms use is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.ablation_arms import ALONG, Arm, Fitted
from lmprobe.ablation_metrics import Text
from lmprobe.capture import capture
from lmprobe.direction_file import read_directions
from lmprobe.models import LanguageModel
from lmprobe.prompts import Prompts, main_categories
from probecore.errors import DesignError, InputError

MOST_STATES = 512  # tokens behind the covariance of a place


@dataclass(frozen=True)
class _Needs:
    """Which places have to be read of the fit prompts, and for what."""

    means: bool
    states: bool
    spread: bool


def fit_arms(
    lm: LanguageModel,
    prompts: Prompts,
    fit: NDArray[np.int64],
    texts: Sequence[Text],
    arms: Sequence[Arm],
    direction: NDArray[np.float64] | None,
    with_controls: bool,
) -> Fitted:
    """Return means, donors, centred states and directions of the fit prompts, for the places where arms act.

    fit : positions of the fit prompts. direction : of every block; None takes the difference of means of the main
    categories at each. with_controls : also the centred states of which covariance-matched controls are made. Raises
    `DesignError` where the means are equal.
    """
    n_blocks = len(lm.sites.blocks)
    sites = sorted({site for arm in arms for site in arm.sites(n_blocks)})
    needs = {
        site: _Needs(
            any(arm.kind == "mean" and site in arm.sites(n_blocks) for arm in arms),
            any(arm.kind == "resample" and site in arm.sites(n_blocks) for arm in arms),
            with_controls,
        )
        for site in sites
    }
    rows = [list(texts[i].ids) for i in fit]
    means, states, spread = {}, {}, {}
    read = [site for site in sites if any(vars(needs[site]).values())]
    for group in _groups(read):
        acts = capture(lm, rows, layers=group, at="all")
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        for site in group:
            values = np.asarray(acts.values(site))
            first = np.zeros(len(values), dtype=bool)
            first[starts[:-1]] = True
            own = np.stack([values[first].mean(axis=0, dtype=np.float64), _mean_of(values[~first], values)])
            if needs[site].means:
                means[site] = own
            if needs[site].states:
                states[site] = [values[a:b].astype(np.float32) for a, b in pairwise(starts)]
            if needs[site].spread:
                rest = values[~first] if (~first).any() else values
                step = max(1, -(-len(rest) // MOST_STATES))
                spread[site] = rest[::step].astype(np.float64) - own[1]
    return Fitted(
        means, states, [texts[i].end for i in fit], spread, _vectors(lm, prompts, fit, texts, arms, direction)
    )


def direction_of(direction: Any, lm: LanguageModel) -> NDArray[np.float64] | None:  # noqa: ANN401
    """Return the direction a user gave, a vector or a file of one, (features,); None for none.

    Raises `InputError` for what is no finite vector of the model's width, or is zero.
    """
    if direction is None:
        return None
    columns = read_directions(direction) if isinstance(direction, (str, Path)) else np.asarray(direction, np.float64)
    vector = columns[:, 0] if columns.ndim == 2 and columns.shape[1] == 1 else columns
    if vector.shape != (lm.certificate.width,) or not np.isfinite(vector).all() or not np.linalg.norm(vector) > 0:
        raise InputError(
            f"a direction must be one finite vector of the {lm.certificate.width} features of {lm.name}, not zero; got "
            f"shape {tuple(np.shape(columns))}: give one direction of this model"
        )
    return np.asarray(vector)


def _mean_of(values: NDArray[Any], otherwise: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray((values if len(values) else otherwise).mean(axis=0, dtype=np.float64))


def _groups(sites: Sequence[str], size: int = 16) -> list[list[str]]:
    """Return the sites in groups that are read in one pass each, so that not all states are held at once."""
    return [list(sites[k : k + size]) for k in range(0, len(sites), size)]


def _vectors(
    lm: LanguageModel,
    prompts: Prompts,
    fit: NDArray[np.int64],
    texts: Sequence[Text],
    arms: Sequence[Arm],
    direction: NDArray[np.float64] | None,
) -> dict[int, NDArray[np.float64]]:
    """Return the raw direction of each block: the one given, or the difference of means at the prompts' ends."""
    n_blocks = len(lm.sites.blocks)
    blocks = sorted({
        int(site.split(" ")[1]) for arm in arms if arm.kind in ALONG for site in arm.sites(n_blocks)
    })  # fmt: skip
    if not blocks:
        return {}
    if direction is not None:
        return dict.fromkeys(blocks, direction)
    first, second = main_categories(prompts)
    categories = np.asarray(prompts.categories)[fit]
    acts = capture(lm, [list(texts[i].ids[: texts[i].end + 1]) for i in fit], layers=[f"block {i}" for i in blocks])
    found = {}
    for i in blocks:
        values = np.asarray(acts.values(f"block {i}"), dtype=np.float64)
        vector = values[categories == first].mean(axis=0) - values[categories == second].mean(axis=0)
        if not np.linalg.norm(vector) > 0:
            raise DesignError(
                f"{first} and {second} prompts must differ at block {i}; their means are equal there: "
                "give --direction or other prompts, or leave --kind project and add out"
            )
        found[i] = vector
    return found
