"""Direction selection: which candidate the rule of Arditi et al. takes, which others are as good, what choosing costs.

Conventions. Scores are per candidate (N,), or per candidate and prompt (N, prompts): `bypass`, mean refusal score of
harmful prompts with the direction removed everywhere (low is good); `induce`, mean refusal score of harmless prompts
with it added (high is good); `kl`, mean KL of the first token of harmless prompts under removal.

The rule (Arditi et al. 2024, arXiv 2406.11717): leave out what is no number, blocks from floor(0.8 L) on, kl above 0.1
and induce below 0; of the rest take the smallest bypass. Where nothing is left, `relax` gives up the limit of induce,
then that of kl, and the result says so: such a direction is not a refusal direction by the rule.

The smallest of many scores is too small (the winner's curse), so nothing measured on the select split is a finding; and
neighbours of the winner may be as good: `near_best` is a set that holds the truly best candidate with probability .95.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probecore.errors import DesignError, InputError
from probecore.stats.bootstrap import cluster_weights
from probecore.validation import at_least

Floats = NDArray[np.float64]
DEPTH, MOST_KL, LEAST_INDUCE = 0.8, 0.1, 0.0
ROUNDING = 1e-12  # of the largest score: smaller differences are none


@dataclass(frozen=True)
class Selection:
    """The chosen candidate.

    index : its place among the candidates. kept : (N,) which passed. relaxed : limits that were given up to have any.
    runner_up : place of the second best that passed, None where there is none.
    """

    index: int
    kept: NDArray[np.bool_]
    relaxed: tuple[str, ...]
    runner_up: int | None


def select_direction(
    bypass: Floats,
    induce: Floats,
    kl: Floats,
    layers: Sequence[int] | NDArray[np.int64],
    n_blocks: int,
    *,
    allowed: NDArray[np.bool_] | None = None,
    depth: float = DEPTH,
    most_kl: float = MOST_KL,
    least_induce: float = LEAST_INDUCE,
    relax: bool = False,
) -> Selection:
    """Return the candidate with the smallest bypass among those that pass the rule.

    bypass, induce, kl, layers : (N,) mean scores and block of each candidate; NaN never passes. allowed : (N,) which
    may be chosen at all, None for all.
    Raises `InputError` when they differ in number, `DesignError` when no candidate passes (with `relax`: when none is
    in a block below floor(depth L)).
    """
    low, up, cost = (np.asarray(v, dtype=np.float64) for v in (bypass, induce, kl))
    block = np.asarray(layers)
    if not low.shape == up.shape == cost.shape == block.shape or low.ndim != 1:
        raise InputError(f"scores must have one entry per candidate; got {low.shape}, {up.shape}, {cost.shape}")
    usable = np.isfinite(low) & np.isfinite(up) & np.isfinite(cost) & (block < int(depth * n_blocks))
    usable &= True if allowed is None else allowed
    limits = {"induce": up >= least_induce, "kl": cost <= most_kl}
    relaxed: tuple[str, ...] = ()
    for given_up in ((), ("induce",), ("induce", "kl")):
        kept = usable.copy()
        for name, passed in limits.items():
            if name not in given_up:
                kept &= passed
        relaxed = given_up
        if kept.any() or not relax:
            break
    if not kept.any():
        raise DesignError(
            f"no direction passes the rule: of {len(low)} candidates {usable.sum()} are numbers in blocks below "
            f"{int(depth * n_blocks)} of {n_blocks}, {(usable & limits['kl']).sum()} of these have KL <= {most_kl:g}, "
            f"{(usable & limits['induce']).sum()} induce refusal: this model may not refuse these prompts"
        )
    order = np.flatnonzero(kept)[np.argsort(low[kept], kind="stable")]
    return Selection(int(order[0]), kept, relaxed, int(order[1]) if len(order) > 1 else None)


def near_best(
    bypass: Floats, clusters: NDArray[np.int64], *, level: float = 0.05, n_resamples: int = 2000, seed: int = 0
) -> NDArray[np.bool_]:
    """Return which candidates (N,) may be the best one, from scores (N, prompts) on the same prompts.

    A candidate is left out when some other one is lower by more than resampled clusters of prompts explain: its largest
    standardised lead over it exceeds the 1 - level quantile of the largest lead under the bootstrap. Each candidate's
    test has that level, so the set misses the truly best one with probability `level` at most, however many there are.
    """
    values = np.asarray(bypass, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(clusters) or not np.isfinite(values).all():
        raise InputError(f"scores must be finite, (candidates, prompts) with a cluster per prompt; got {values.shape}")
    codes = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    weights = cluster_weights(codes, at_least(n_resamples, 100, "n_resamples"), seed=seed)
    weights = weights / weights.sum(axis=1, keepdims=True)
    resampled = values @ weights.T  # (N, resamples)
    means = values.mean(axis=1)
    n_clusters = int(codes.max()) + 1
    wide = np.sqrt(n_clusters / max(1, n_clusters - 1))
    scale = max(float(np.abs(values).max()), 1e-300)
    kept = np.ones(len(values), dtype=bool)
    for c in range(len(values)):
        lead = means[c] - means  # above 0: the other is lower, hence better
        moved = resampled[c] - resampled
        error = moved.std(axis=1, ddof=1) * wide
        sure = error <= ROUNDING * scale  # all prompts agree on the lead
        error = np.where(sure, 1.0, error)
        observed = np.where(sure, np.where(lead > ROUNDING * scale, np.inf, 0.0), lead / error)
        null = np.where(sure[:, None], 0.0, (moved - lead[:, None]) * wide / error[:, None])
        kept[c] = bool(observed.max() <= np.quantile(null.max(axis=0), 1 - level))
    return kept


def expected_best(rate: float, n_prompts: int, n_candidates: int) -> float:
    """Return the mean of the smallest of many refusal rates that all have the same truth: the winner's curse, exact.

    >>> round(100 * expected_best(0.08, 100, 60), 1), round(100 * expected_best(0.08, 100, 200), 1)
    (2.5, 1.7)
    """
    from scipy import stats

    above = stats.binom.sf(np.arange(n_prompts), n_prompts, rate)  # P(X > x)
    return float((above**n_candidates).sum()) / n_prompts
