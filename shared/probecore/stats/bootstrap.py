"""Standard errors from resampled clusters, and the intervals made of them.

Conventions. `clusters` (items,) int64 codes; `strata` (clusters,) int64 codes or None, inside which clusters are drawn.
weights (resamples, items): how often each item's cluster was drawn. An interval is (low, high) at 1 - level.

A bootstrap of G clusters is too narrow by sqrt((G-1)/G) where the clusters are the noise, so its standard error is
multiplied by sqrt(G/(G-1)) and the quantile is that of t with G-1 degrees of freedom: coverage .94 to .99 where the
normal quantile alone gives .90 (10 clusters of 50 items).
"""

import numpy as np
from numpy.typing import NDArray

from probecore.seeds import generator

Floats = NDArray[np.float64]


def cluster_weights(
    clusters: NDArray[np.int64], n_resamples: int, *, strata: NDArray[np.int64] | None = None, seed: int = 0
) -> Floats:
    """Return how often each item is drawn when whole clusters are drawn with replacement, (resamples, items)."""
    rng = generator(seed, "bootstrap")
    n_clusters = int(clusters.max()) + 1
    strata = np.zeros(n_clusters, dtype=np.int64) if strata is None else strata
    counts = np.zeros((n_resamples, n_clusters))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n_resamples)
    return counts[:, clusters]


def bootstrap_error(values: Floats, strata_sizes: NDArray[np.int64]) -> float:
    """Return the standard error of bootstrap values (resamples,), widened for the smallest stratum of clusters."""
    kept = values[np.isfinite(values)]
    if len(kept) < 2:
        return float("nan")
    smallest = int(strata_sizes.min())
    return float(kept.std(ddof=1)) * float(np.sqrt(smallest / (smallest - 1)))


def jackknife_error(values: Floats, strata: NDArray[np.int64]) -> float:
    """Return the delete-one-cluster standard error of values (clusters,), inside strata (clusters,).

    Its expectation is at least the true variance with one cluster fewer (Efron & Stein 1981): it errs to the safe side.
    """
    if not np.isfinite(values).all():
        return float("nan")
    variance = 0.0
    for stratum in np.unique(strata):
        part = values[strata == stratum]
        variance += (len(part) - 1) / len(part) * float(((part - part.mean()) ** 2).sum())
    return float(np.sqrt(variance))


def expanded_interval(values: Floats, n_clusters: int, level: float = 0.05) -> tuple[float, float]:
    """Return percentiles of bootstrap values (resamples,), further out the fewer clusters there are (Hesterberg 2015).

    The tail is Phi(-t sqrt(G / (G - 1))), t the quantile with G - 1 degrees of freedom: for a mean the percentiles then
    cover as a t interval does. For statistics that are no means but monotone in the weights, as medians or lags are.
    """
    from scipy.special import ndtr

    kept = values[np.isfinite(values)]
    if n_clusters < 2 or len(kept) < 2:
        return float("nan"), float("nan")
    tail = float(ndtr(-t_quantile(n_clusters - 1, level) * np.sqrt(n_clusters / (n_clusters - 1))))
    low, high = np.quantile(kept, [tail, 1 - tail])
    return float(low), float(high)


def t_quantile(freedom: int, level: float = 0.05) -> float:
    """Return the two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - level / 2))


def t_p_value(t: float, freedom: int) -> float:
    """Return the two-sided p of a t value."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def share_interval(
    share: float,
    error: float,
    freedom: int,
    n_items: int,
    n_clusters: int,
    *,
    measured_at: float | None = None,
    level: float = 0.05,
) -> tuple[float, float]:
    """Return the interval of a share: logit(p) +- t SE / (m (1 - m)) in logits, p and m inside [.5/n, 1 - .5/n].

    measured_at : mean m of the resamples that gave the error, by default the share: the error is turned into logits
    where it was measured, and no nearer to 0 or 1 than the error itself: otherwise a share near 1 of which a few
    resamples fall well below would get an absurdly long interval.

    A share of exactly 0 or 1 reaches at least the exact binomial bound of its clusters (Clopper & Pearson), as if each
    were one trial: resamples that are all perfect have no spread to measure.
    """
    if not np.isfinite(error):
        return float("nan"), float("nan")
    ends = 0.5 / n_items, 1 - 0.5 / n_items
    p, nearest = float(np.clip(share, *ends)), max(ends[0], min(error, 0.5))
    m = float(np.clip(share if measured_at is None else measured_at, nearest, 1 - nearest))
    centre, half = np.log(p / (1 - p)), t_quantile(freedom, level) * error / (m * (1 - m))
    low, high = (float(1 / (1 + np.exp(-value))) for value in (max(centre - half, -700.0), min(centre + half, 700.0)))
    bound = (level / 2) ** (1 / n_clusters)
    if share >= 1:
        return min(low, bound), 1.0
    if share <= 0:
        return 0.0, max(high, 1 - bound)
    return min(low, share), max(high, share)
