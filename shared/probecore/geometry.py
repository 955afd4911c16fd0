"""How many dimensions a cloud of items spans, and how two subspaces lie to each other.

x (items, features) float64. Eigenvalues are those of the covariance of the centred items, descending, (rank,).

Every measure of dimension is bound by the number of items (a population of entropy rank 75 reads 6 at 8 items), so two
clouds are compared at the same number only: `rarefied` gives the curve. One massive coordinate or item can make the
first component 97 %: `dimensions` repeats every measure without the largest coordinates and with unit variances.

>>> spectrum = np.array([4.0, 1.0, 1.0])
>>> round(participation_ratio(spectrum), 3), components_for(spectrum, 0.8)
(2.0, 2)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import DesignError, InputError
from probecore.results import Row
from probecore.seeds import generator
from probecore.validation import at_least, finite_matrix

Floats = NDArray[np.float64]

SHARES = (0.8, 0.9, 0.95, 0.98)


def covariance_spectrum(x: ArrayLike) -> Floats:
    """Return the eigenvalues (rank,) of the covariance (ddof 1) of x (items, features), descending, zeros left out.

    Raises `DesignError` when the items do not vary.
    """
    values = _cloud(x, 2)
    singular = np.linalg.svd(values - values.mean(0), compute_uv=False)
    kept = singular[singular > max(values.shape) * np.finfo(float).eps * max(singular[0], np.abs(values).max())]
    if not len(kept):
        raise DesignError("a spectrum needs items that differ; all are equal")
    return np.asarray(kept**2 / (len(values) - 1))


def pca_shares(eigenvalues: ArrayLike) -> Floats:
    """Return the share of the variance in each component, (rank,)."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    return np.asarray(values / values.sum())


def participation_ratio(eigenvalues: ArrayLike) -> float:
    """Return (sum lambda)^2 / sum lambda^2: 1 for one direction, r for r equal ones."""
    return float(1.0 / (pca_shares(eigenvalues) ** 2).sum())


def entropy_rank(eigenvalues: ArrayLike) -> float:
    """Return exp(-sum p log p) of the variance shares p (effective rank, Roy and Vetterli 2007)."""
    p = pca_shares(eigenvalues)
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def components_for(eigenvalues: ArrayLike, share: float) -> int:
    """Return k_q, the smallest number of components that hold a share q of the variance."""
    if not 0 < share <= 1:
        raise InputError(f"share must lie in (0, 1]; got {share}")
    return int(np.searchsorted(np.cumsum(pca_shares(eigenvalues)), share - 1e-12) + 1)


def two_nn(x: ArrayLike, discard: float = 0.1) -> float:
    """Return the intrinsic dimension from the ratio mu of each item's second to first neighbour distance.

    Facco et al. 2017: -log(1 - F(mu)) = dimension * log mu, a line through the origin fitted without the `discard`
    share of largest ratios. Equal items have distance 0 and are counted once. Raises `DesignError` below 10 items.
    """
    values = np.unique(_cloud(x, 10), axis=0)
    n = len(values)
    if n < 10:
        raise DesignError(f"TwoNN needs at least 10 different items; got {n}")
    values = values - values.mean(0)
    nearest = np.empty((n, 2))
    squares = (values**2).sum(1)
    for start in range(0, n, 1024):
        rows = slice(start, min(start + 1024, n))
        gap = squares[rows, None] + squares - 2 * values[rows] @ values.T
        gap[np.arange(rows.stop - start), np.arange(start, rows.stop)] = np.inf
        # the expansion loses digits for close items: find the candidates with it, measure them by difference
        near = np.argpartition(gap, min(5, n - 2), axis=1)[:, : min(6, n - 1)]
        exact = np.sort(((values[rows, None] - values[near]) ** 2).sum(2), axis=1)
        nearest[rows] = np.sqrt(exact[:, :2])
    ratios = np.sort(nearest[:, 1] / nearest[:, 0])
    kept = min(max(2, int(n * (1 - discard))), n - 1)  # F of the largest is 1: its log is infinite
    log_mu = np.log(ratios[:kept])
    rank = -np.log1p(-np.arange(1, kept + 1) / n)
    return float((log_mu @ rank) / (log_mu @ log_mu))


def parallel_analysis(x: ArrayLike, *, n_permutations: int = 100, quantile: float = 0.95, seed: int = 0) -> int:
    """Return how many leading eigenvalues exceed those of data whose columns were permuted independently (Horn 1965).

    The k-th eigenvalue is compared with the `quantile` of the k-th eigenvalues of the permuted data; counting stops
    at the first that does not exceed it.
    """
    values = _cloud(x, 3)
    values = values - values.mean(0)
    rng = generator(seed, "parallel analysis")
    own = np.linalg.svd(values, compute_uv=False)
    null = np.array(
        [
            np.linalg.svd(rng.permuted(values, axis=0), compute_uv=False)
            for _ in range(at_least(n_permutations, 1, "n_permutations"))
        ]
    )
    above = own > np.quantile(null, quantile, axis=0) * (1 + 1e-9)
    return int(np.argmin(above)) if not above.all() else len(above)


def rarefied(
    x: ArrayLike,
    measure: Callable[[Floats], float] = participation_ratio,
    sizes: Sequence[int] | None = None,
    *,
    n_draws: int = 50,
    seed: int = 0,
) -> tuple[Row, ...]:
    """Return a measure of the spectrum of random subsets of N items, one row per N: n_items, mean, sd, draws.

    sizes : None means 8, 16, 32, ... and all items. Compare two clouds at equal N.
    """
    values = _cloud(x, 3)
    n = len(values)
    doubling = [2**i for i in range(3, 40) if 2**i < n]
    asked = sorted(set(sizes if sizes is not None else [*doubling, n]))
    if asked[0] < 3 or asked[-1] > n:
        raise InputError(f"sizes must lie between 3 and the {n} items there are; got {asked}")
    rows: list[Row] = []
    for size in asked:
        rng = generator(seed, "rarefied", size)
        draws = [
            measure(covariance_spectrum(values[rng.choice(n, size, replace=False)]))
            for _ in range(1 if size == n else at_least(n_draws, 2, "n_draws"))
        ]
        sd = float(np.std(draws, ddof=1)) if len(draws) > 1 else None
        rows.append({"n_items": size, "mean": float(np.mean(draws)), "sd": sd, "draws": len(draws)})
    return tuple(rows)


def dimensions(x: ArrayLike, *, n_outliers: int = 3, n_permutations: int = 50, seed: int = 0) -> tuple[Row, ...]:
    """Return every measure for the items as they are, without their 1.. most variable coordinates, and standardised.

    One row per variant: variant, n_items, n_features, pc1_share, k_80, k_90, k_95, k_98, participation_ratio,
    entropy_rank, two_nn (None below 10 different items), parallel_analysis, massive. `massive` says that the variant as
    is has a first component which one coordinate carries: its participation ratio doubles without that coordinate.
    """
    values = _cloud(x, 3)
    order = np.argsort(-values.var(0), kind="stable")
    variants = {"as is": values}
    for k in range(1, min(n_outliers, values.shape[1] - 1) + 1):
        variants[f"without top {k}"] = np.delete(values, order[:k], axis=1)
    sd = values.std(0)
    variants["standardised"] = (values - values.mean(0))[:, sd > 0] / sd[sd > 0]
    rows: list[Row] = []
    for name, cloud in variants.items():
        spectrum = covariance_spectrum(cloud)
        row: Row = {"variant": name, "n_items": len(cloud), "n_features": cloud.shape[1]}
        row["pc1_share"] = float(pca_shares(spectrum)[0])
        row.update({f"k_{round(100 * q)}": components_for(spectrum, q) for q in SHARES})
        row["participation_ratio"] = participation_ratio(spectrum)
        row["entropy_rank"] = entropy_rank(spectrum)
        row["two_nn"] = two_nn(cloud) if len(np.unique(cloud, axis=0)) >= 10 else None
        row["parallel_analysis"] = parallel_analysis(cloud, n_permutations=n_permutations, seed=seed)
        rows.append(row)
    doubled = len(rows) > 2 and rows[1]["participation_ratio"] > 2 * rows[0]["participation_ratio"]
    for row in rows:
        row["massive"] = doubled and row["variant"] == "as is"
    return tuple(rows)


@dataclass(frozen=True)
class Overlap:
    """How two subspaces of the same space lie to each other.

    angles (min(a, b),) : principal angles in radians, ascending. overlap : mean squared cosine, |Qa'Qb|^2 / min(a, b),
    1 when one contains the other. chance : its expectation for random subspaces, max(a, b) / d. Activations are not
    isotropic: the null that counts permutes labels or draws frames with the same covariance.
    """

    angles: Floats
    overlap: float
    chance: float
    distance: float


def subspace_overlap(first: ArrayLike, second: ArrayLike) -> Overlap:
    """Compare the spans of the rows of `first` (a, d) and `second` (b, d); distance is Grassmann's, ||angles||."""
    a, b = _frame(first, "first"), _frame(second, "second")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"both subspaces must lie in the same space; got {a.shape[1]} and {b.shape[1]} dimensions")
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    product = small @ large.T
    cosines = np.clip(np.linalg.svd(product, compute_uv=False), 0.0, 1.0)
    # arccos has no digits near 1: small angles come from the sine, the part of one frame outside the other
    sines = np.clip(np.linalg.svd(small - product @ large, compute_uv=False)[::-1], 0.0, 1.0)
    angles = np.where(cosines**2 < 0.5, np.arccos(cosines), np.arcsin(sines[: len(cosines)]))
    squared = float((cosines**2).sum()) / len(small)
    return Overlap(angles, squared, len(large) / a.shape[1], float(np.linalg.norm(angles)))


def _frame(vectors: ArrayLike, name: str) -> Floats:
    """Return an orthonormal frame of the span of rows (k, d)."""
    rows = finite_matrix(vectors, name).astype(np.float64)
    _, singular, frame = np.linalg.svd(rows, full_matrices=False)
    kept = singular > max(rows.shape) * np.finfo(float).eps * singular[0]
    if not kept.any():
        raise InputError(f"{name} must span a subspace; all its vectors are zero")
    return np.asarray(frame[kept])


def _cloud(x: ArrayLike, least: int) -> Floats:
    values = finite_matrix(x, "x").astype(np.float64)
    if len(values) < least:
        raise DesignError(f"this measure needs at least {least} items; got {len(values)}")
    return values
