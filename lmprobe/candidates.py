"""Candidate directions: differences in means of harmful and harmless prompts, at every block's input and end position.

Conventions. States are x^(l) at the INPUT of block l, l = 0..L-1 ("embed" for l = 0, else the output of block l - 1),
at P positions counted from the prompt's end; arrays (prompts, P, L, d) float32, computed with in float64. The raw
difference r = mean harmful - mean harmless is what activation addition adds; the unit vector r / |r| is what ablation
removes.

The squared norm of a difference of means is too large by its noise, tr(S_h)/n_h + tr(S_b)/n_b; `debiased` is without
it and can be negative: then there is no evidence of a difference. Split-half cosine and the bootstrap interval of the
cosine say how far the direction would be found again. A mean is dominated by massive activations (coordinates hundreds
of times the median): `massive` is the largest over the median absolute coordinate of the mean harmless state,
`top_share` the share of |r|^2 that lies in the single largest coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.capture import capture
from lmprobe.instruction_end import InstructionEnd
from lmprobe.models import LanguageModel
from probecore.errors import DesignError, InputError
from probecore.results import Row
from probecore.seeds import generator
from probecore.stats.bootstrap import cluster_weights
from probecore.validation import at_least

Floats = NDArray[np.float64]
States = NDArray[Any]
TINY = 1e-6
"""|r| below this share of the mean state's norm is rounding: prompts have equal tokens there."""


@dataclass(frozen=True)
class Candidates:
    """Differences in means.

    vectors : (P, L, d) raw differences. positions : P, negative. scale : (P, L) norm of the mean harmless state.
    """

    vectors: Floats = field(repr=False)
    positions: tuple[int, ...]
    scale: Floats = field(repr=False)
    n_harmful: int
    n_harmless: int

    @property
    def norms(self) -> Floats:
        """Norms of the raw differences, (P, L)."""
        return np.asarray(np.linalg.norm(self.vectors, axis=-1))

    @property
    def exists(self) -> NDArray[np.bool_]:
        """Where there is a difference that is more than rounding, (P, L)."""
        return np.asarray(self.norms > TINY * np.maximum(self.scale, np.finfo(float).tiny))

    def raw(self, position: int, layer: int) -> Floats:
        """Return the raw difference (d,) at a position (negative) and block input."""
        return np.asarray(self.vectors[self.positions.index(position), layer])

    def unit(self, position: int, layer: int) -> Floats:
        """Return the unit direction (d,); raises `DesignError` where the means are equal."""
        if not self.exists[self.positions.index(position), layer]:
            raise DesignError(
                f"the means at position {position}, input of block {layer}, are equal: no direction there"
            )
        vector = self.raw(position, layer)
        return np.asarray(vector / np.linalg.norm(vector))


def end_states(
    lm: LanguageModel, rows: Sequence[Sequence[int]], end: InstructionEnd, *, batch_tokens: int = 4096
) -> States:
    """Return states (prompts, P, L, d) at the end positions of formatted prompts, at the input of every block."""
    end.require(rows)
    names = lm.layers[:-1]  # the output of the last block is no block's input
    found = capture(lm, [list(row) for row in rows], layers=names, at=end.select, batch_tokens=batch_tokens)
    shape = (len(rows), len(end.positions))
    return np.stack([found.values(name).reshape(*shape, -1) for name in names], axis=2)


def difference_in_means(states: States, is_harmful: NDArray[np.bool_], positions: Sequence[int]) -> Candidates:
    """Return the candidates of states (prompts, P, L, d); raises `DesignError` with fewer than 2 prompts of a kind."""
    kinds = np.asarray(is_harmful, dtype=bool)
    if states.ndim != 4 or len(kinds) != len(states) or states.shape[1] != len(positions):
        raise InputError(
            f"states must have shape (prompts, positions, blocks, width) with a label per prompt; got {states.shape}, "
            f"{len(kinds)} labels, {len(positions)} positions"
        )
    if min(int(kinds.sum()), int((~kinds).sum())) < 2:
        raise DesignError(
            f"a difference in means needs 2 harmful and 2 harmless prompts; got {kinds.sum()} and {(~kinds).sum()}"
        )
    harmful, harmless = (_mean(states, kinds), _mean(states, ~kinds))
    scale = np.linalg.norm(harmless, axis=-1)
    return Candidates(harmful - harmless, tuple(positions), scale, int(kinds.sum()), int((~kinds).sum()))


def describe_candidates(
    states: States,
    is_harmful: NDArray[np.bool_],
    candidates: Candidates,
    clusters: NDArray[np.int64],
    *,
    n_bootstrap: int = 200,
    n_halves: int = 20,
    seed: int = 0,
) -> list[Row]:
    """Return one row per position and block input: norm, noise, debiased norm, cosines, massive coordinates.

    clusters : (prompts,) near-duplicates that are resampled, or halved, together.
    """
    kinds = np.asarray(is_harmful, dtype=bool)
    noise = sum(_variance(states, k) / k.sum() for k in (kinds, ~kinds))
    norm2 = candidates.norms**2
    mean = _mean(states, ~kinds)
    size = np.abs(mean)
    massive = size.max(axis=-1) / np.maximum(np.median(size, axis=-1), np.finfo(float).tiny)
    top = (candidates.vectors**2).max(axis=-1) / np.maximum(norm2, np.finfo(float).tiny)
    halves = _split_half(states, kinds, clusters, at_least(n_halves, 1, "n_halves"), seed)
    low, high = _bootstrap_cosines(states, kinds, candidates, clusters, n_bootstrap, seed)
    rows: list[Row] = []
    for p, position in enumerate(candidates.positions):
        for layer in range(candidates.vectors.shape[1]):
            there = bool(candidates.exists[p, layer])
            at = (p, layer)
            rows.append({
                "position": position, "block": layer, "norm": float(np.sqrt(norm2[at])),
                "relative_norm": float(np.sqrt(norm2[at]) / candidates.scale[at]) if candidates.scale[at] > 0 else None,
                "noise": float(np.sqrt(noise[at])), "debiased": float(norm2[at] - noise[at]),
                "split_half_cosine": float(halves[at]) if there else None,
                "cosine_low": float(low[at]) if there else None, "cosine_high": float(high[at]) if there else None,
                "massive": float(massive[at]), "top_share": float(top[at]) if there else None,
            })  # fmt: skip
    return rows


def _mean(states: States, chosen: NDArray[np.bool_]) -> Floats:
    """Return the mean (P, L, d) of chosen prompts, added up in float64 prompt by prompt without a float64 copy."""
    total = np.zeros(states.shape[1:], dtype=np.float64)
    for i in np.flatnonzero(chosen):
        total += states[i]
    return total / int(chosen.sum())


def _variance(states: States, chosen: NDArray[np.bool_]) -> Floats:
    """Return the trace of the covariance (P, L), ddof 1."""
    mean = _mean(states, chosen)
    total = np.zeros(states.shape[1:3])
    for i in np.flatnonzero(chosen):
        total += ((states[i] - mean) ** 2).sum(axis=-1)
    return total / max(1, int(chosen.sum()) - 1)


def weighted(states: States, weights: Floats) -> Floats:
    """Return weighted sums (K, P, L, d) of states for weights (K, prompts), block input by block input."""
    k, shape = len(weights), states.shape[1:]
    out = np.empty((k, *shape))
    for layer in range(shape[1]):
        flat = states[:, :, layer].reshape(len(states), -1).astype(np.float64)
        out[:, :, layer] = (weights @ flat).reshape(k, shape[0], shape[2])
    return out


def _contrast(weights: Floats, kinds: NDArray[np.bool_]) -> Floats:
    """Turn counts (K, prompts) into weights of a difference of means; rows that lack a kind become NaN."""
    out = np.full(weights.shape, np.nan)
    out[:, kinds] = weights[:, kinds]
    out[:, ~kinds] = -weights[:, ~kinds]
    with np.errstate(invalid="ignore", divide="ignore"):
        out[:, kinds] /= weights[:, kinds].sum(axis=1, keepdims=True)
        out[:, ~kinds] /= weights[:, ~kinds].sum(axis=1, keepdims=True)
    return out


def _cosines(a: Floats, b: Floats) -> Floats:
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(axis=-1) / np.maximum(size, np.finfo(float).tiny))


def _split_half(
    states: States, kinds: NDArray[np.bool_], clusters: NDArray[np.int64], n_halves: int, seed: int
) -> Floats:
    """Return the mean cosine (P, L) between directions of disjoint halves of the clusters of each kind."""
    rng = generator(seed, "candidates", "halves")
    found = []
    for _ in range(n_halves):
        first = np.zeros(len(kinds), dtype=bool)
        for kind in (kinds, ~kinds):
            codes = np.unique(clusters[kind])
            first |= kind & np.isin(clusters, rng.permutation(codes)[: len(codes) // 2])
        weights = _contrast(np.stack([first, ~first]).astype(np.float64), kinds)
        if np.isfinite(weights).all():
            a, b = weighted(states, weights)
            found.append(_cosines(a, b))
    return np.mean(found, axis=0) if found else np.full(states.shape[1:3], np.nan)


def _bootstrap_cosines(
    states: States,
    kinds: NDArray[np.bool_],
    candidates: Candidates,
    clusters: NDArray[np.int64],
    n_bootstrap: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Return percentile ends (P, L) of the cosine between the direction and those of resampled clusters."""
    nothing = np.full(states.shape[1:3], np.nan)
    if at_least(n_bootstrap, 0, "n_bootstrap") < 2:
        return nothing, nothing
    codes = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    found = []
    weights = _contrast(cluster_weights(codes, n_bootstrap, seed=seed), kinds)
    for part in np.array_split(weights[np.isfinite(weights).all(axis=1)], max(1, n_bootstrap // 50)):
        if len(part):
            found.append(_cosines(weighted(states, part), candidates.vectors[None]))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975], axis=0)
    return low, high
