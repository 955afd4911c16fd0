"""Refusal against depth: what removing the direction of each block's input does to the refusal score, with controls.

Conventions. One place per block: the end position of the chosen direction. The score is that of harmful test prompts;
nothing is chosen here, so no block's value is too good for having been picked. Controls stand at the same place:
`permuted labels`, the difference in means of exchanged labels; `covariance-matched`, a random weighted sum of the
prompts' states; `random`, an isotropic direction. A direction's interval is over clusters of prompts; a control's range
is over its draws, whose mean is its value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmprobe.candidates import difference_in_means
from lmprobe.refusal_nulls import exchanged, isotropic, weighted_noise
from lmprobe.refusal_search import Found, Study, odds_on_test
from probecore.ablation.paired import mean_with_interval
from probecore.errors import DesignError
from probecore.results import Row
from probecore.seeds import generator
from probecore.stats.bootstrap import cluster_weights

Floats = NDArray[np.float64]
DIRECTION = "difference in means"


def layer_rows(study: Study, found: Found, *, n_draws: int = 5, n_bootstrap: int = 1000, seed: int = 0) -> list[Row]:
    """Return a row per block and series: refusal score of harmful test prompts after removal, and before."""
    place = found.candidates.positions.index(found.position)
    blocks: list[int] = np.flatnonzero(found.candidates.exists[place]).tolist()
    series: list[tuple[str, int, Floats]] = [(DIRECTION, b, found.candidates.vectors[place, b]) for b in blocks]
    for name, vectors in _controls(study, found, n_draws, seed):
        series += [(name, b, vectors[place, b]) for b in blocks if np.linalg.norm(vectors[place, b]) > 0]
    test = study.splits["test"]
    before, after = odds_on_test(
        study, np.stack([v for *_, v in series]), [found.tokens.ids] * len(series), test.is_harmful
    )
    clusters = np.unique(test.cluster[test.is_harmful], return_inverse=True)[1].astype(np.int64)
    weights = cluster_weights(clusters, n_bootstrap, seed=seed)
    rows: list[Row] = []
    for name in dict.fromkeys(name for name, *_ in series):
        for block in blocks:
            scores = after[[i for i, (n, b, _) in enumerate(series) if n == name and b == block]]
            if not len(scores):
                continue
            if name == DIRECTION:
                value, low, high = mean_with_interval(scores[0], clusters, weights)
            else:
                means = scores.mean(axis=1)
                value, low, high = float(means.mean()), float(means.min()), float(means.max())
            rows.append({
                "layer": f"input {block}", "block": block, "position": found.position, "series": name, "value": value,
                "ci_low": low, "ci_high": high, "untouched": float(before[0].mean()), "n_draws": len(scores),
                "n_prompts": scores.shape[1], "may_choose": block < study.deepest,
            })  # fmt: skip
    return rows


def _controls(study: Study, found: Found, n_draws: int, seed: int) -> list[tuple[str, Floats]]:
    one = study.splits["extract"]
    rng = generator(seed, "refusal", "layers")
    made: list[tuple[str, Floats]] = []
    for _ in range(n_draws):
        labels = exchanged(one.is_harmful, one.unit, rng)
        try:
            made.append(("permuted labels", difference_in_means(study.states, labels, study.end.positions).vectors))
        except DesignError:  # an exchange of few large clusters can leave one prompt of a kind
            continue
        made.append(("covariance-matched", weighted_noise(study.states, one.is_harmful, rng)))
        made.append(("random", isotropic(found, rng)))
    return made
