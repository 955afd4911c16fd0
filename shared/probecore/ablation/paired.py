"""What ablations did, from measurements paired by item: effects with intervals and p, against a random control.

Conventions. `values` (arms, items): a measure of each item under each ablation; `unablated` (items,): the same measure
with nothing removed; `controls` (arms, items): with a random change of equal size. NaN marks a measure that does not
exist for an item; it leaves every mean it would enter. `clusters` (items,): what was sampled (speakers, prompts).

An effect is the mean over items of value - unablated. Intervals come from resampled clusters (t with as many degrees
of freedom as clusters less one, see `stats.bootstrap`), p from flipping the sign of all differences of a cluster
together (Fisher 1935), adjusted over the arms (Holm 1979). Where an item pairs two clusters, flips of one of them know
nothing of the other and reject too often (.12 of the cases at .05); p is then that of t with the error of the interval.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError, shorten
from probecore.results import Row
from probecore.stats.bootstrap import bootstrap_error, cluster_weights, share_interval, t_p_value, t_quantile
from probecore.stats.multiple import holm
from probecore.stats.samples import sign_flip_test
from probecore.validation import at_least, codes_of, one_per_item

Floats = NDArray[np.float64]


def paired_effects(
    values: ArrayLike,
    unablated: ArrayLike,
    controls: ArrayLike | None = None,
    *,
    clusters: ArrayLike,
    partners: ArrayLike | None = None,
    share: bool = False,
    untested: str = "",
    n_bootstrap: int = 2000,
    level: float = 0.05,
    seed: int = 0,
) -> list[Row]:
    """Return one row per arm: value, unablated and control value, effect, intervals and p-values.

    Parameters
    ----------
    partners : (items,) cluster of each item's partner, where an item pairs two clusters (a swap); both are resampled
        and an item counts as often as the product of their draws (Owen 2007), which errs to the wide side. p is then
        that of t, effect / error, because no flip of signs respects both.
    share : the measure is a share of 0 to 1 per item; its interval then stays inside 0 and 1.
    untested : why arm and unablated value are not tested against each other (the measure is a distance from the
        unablated state, positive under any change); empty when they are.
    n_bootstrap : resamples of clusters; 0 for no intervals.
    level : of intervals (1 - level) and of the p below which a design must be able to get.

    A row has value, ci_low, ci_high, unablated_value, control_value, effect, effect_low, effect_high (value -
    unablated), beyond_control, beyond_low, beyond_high (value - control), p_value, p_adjusted, p_control,
    p_control_adjusted, n_items, n_clusters, and p_note, p_control_note, ci_note: why there is none.

    Raises `InputError` when shapes do not fit.
    """
    arms, plain = np.atleast_2d(np.asarray(values, dtype=np.float64)), np.asarray(unablated, dtype=np.float64)
    random = np.full(arms.shape, np.nan) if controls is None else np.asarray(controls, dtype=np.float64)
    if arms.shape[1:] != plain.shape or random.shape != arms.shape:
        raise InputError(
            f"values, unablated and controls must have shapes (arms, items), (items,), (arms, items); got "
            f"{arms.shape}, {plain.shape}, {random.shape}"
        )
    codes = codes_of(one_per_item(clusters, len(plain), "clusters"))[0]
    weights = pair_weights(clusters, partners, n_bootstrap, seed)

    def test(differences: Floats) -> tuple[float | None, str]:
        if partners is not None:
            return t_test(differences, codes, weights)
        return flip_clusters(differences, codes, level, seed)

    rows = [
        _row(arm, plain, control, codes, weights, share, untested, level, test)
        for arm, control in zip(arms, random, strict=True)
    ]
    for name, adjusted in (("p_value", "p_adjusted"), ("p_control", "p_control_adjusted")):
        p = holm([np.nan if row[name] is None else row[name] for row in rows])
        for row, value in zip(rows, p, strict=True):
            row[adjusted] = None if np.isnan(value) else float(value)
    return rows


def pair_weights(clusters: ArrayLike, partners: ArrayLike | None, n_resamples: int, seed: int = 0) -> Floats:
    """Return how often each item counts when whole clusters are drawn with replacement, (resamples, items).

    partners : (items,) names of the same clusters in a second role, or None; an item then counts as often as the
        product of the draws of its two clusters (Owen 2007). Raises `InputError` for a partner that is no cluster.
    """
    at_least(n_resamples, 0, "n_bootstrap")
    codes, names = codes_of(clusters)
    weights = cluster_weights(codes, n_resamples, seed=seed)
    if partners is None:
        return weights
    others, other_names = codes_of(one_per_item(partners, len(codes), "partners"))
    strangers = sorted(set(other_names) - set(names))
    if strangers:
        raise InputError(f"partners must be among the clusters; got {shorten(strangers)}")
    drawn = weights[:, [int(np.flatnonzero(codes == names.index(name))[0]) for name in other_names]]
    product: Floats = weights * drawn[:, others]
    return product


def ratio_with_interval(
    part: Floats, whole: Floats, codes: NDArray[np.int64], weights: Floats, *, level: float = 0.05
) -> tuple[float, float, float, float]:
    """Return mean(part) / mean(whole), low, high and p of a ratio of 0 (t), over items (items,) that have both.

    NaN where the interval of mean(whole) holds 0: a share of nothing has no value. p is NaN where the ratio does not
    vary. At a ratio of 0 this is the t test of mean(part) (delta method); elsewhere it has more power where the two
    vary together, because items with more to gain gain more.
    """
    both = np.isfinite(part) & np.isfinite(whole)
    part, whole = np.where(both, part, np.nan), np.where(both, whole, np.nan)
    _, low, high = mean_with_interval(whole, codes, weights, level=level)
    if not low * high > 0:
        return float("nan"), float("nan"), float("nan"), float("nan")
    ratio = float(np.nanmean(part) / np.nanmean(whole))
    n_clusters = len(np.unique(codes[both]))
    error = bootstrap_error(weighted_means(part, weights) / weighted_means(whole, weights), np.array([n_clusters]))
    half = t_quantile(n_clusters - 1, level) * error
    p = t_p_value(ratio / error, n_clusters - 1) if error > 1e-12 else float("nan")
    return ratio, ratio - half, ratio + half, p


def mean_with_interval(
    values: Floats, codes: NDArray[np.int64], weights: Floats, *, share: bool = False, level: float = 0.05
) -> tuple[float, float, float]:
    """Return mean, low and high of values (items,), NaN left out; NaN ends below 2 clusters or without resamples."""
    kept = np.isfinite(values)
    n_clusters = len(np.unique(codes[kept]))
    if not kept.any():
        return float("nan"), float("nan"), float("nan")
    mean = float(values[kept].mean())
    if n_clusters < 2 or len(weights) < 2:
        return mean, float("nan"), float("nan")
    resampled = weighted_means(values, weights)
    error = bootstrap_error(resampled, np.array([n_clusters]))
    if share:
        centre = float(resampled[np.isfinite(resampled)].mean())
        low, high = share_interval(
            mean, error, n_clusters - 1, int(kept.sum()), n_clusters, measured_at=centre, level=level
        )
        return mean, low, high
    half = t_quantile(n_clusters - 1, level) * error
    return mean, mean - half, mean + half


def weighted_means(values: Floats, weights: Floats) -> Floats:
    """Return the mean of values (items,) under each row of weights (resamples, items), NaN left out."""
    kept = np.isfinite(values)
    total = weights[:, kept].sum(axis=1)
    means: Floats = np.where(total > 0, weights[:, kept] @ values[kept] / np.maximum(total, 1e-300), np.nan)
    return means


def flip_clusters(differences: Floats, codes: NDArray[np.int64], level: float, seed: int) -> tuple[float | None, str]:
    """Return p of a mean difference of 0 when clusters (items,) flip their sign, or None and why there is none."""
    kept = np.isfinite(differences)
    if not kept.any():
        return None, "nothing to compare"
    names, inverse = np.unique(codes[kept], return_inverse=True)
    n = len(names)
    if 2.0 ** (1 - n) > level:
        smallest = 2.0 ** (1 - n)
        return None, f"signs of {n} cluster(s) cannot give a p of {level:g}: the smallest is {smallest:.2g}"
    sums = np.bincount(inverse, weights=differences[kept]) * (n / kept.sum())
    return sign_flip_test(sums, seed=seed).p_value, ""


def t_test(differences: Floats, codes: NDArray[np.int64], weights: Floats) -> tuple[float | None, str]:
    """Return p of a mean difference of 0 by t with the error of resampled clusters, or None and why there is none."""
    kept = np.isfinite(differences)
    if not kept.any():
        return None, "nothing to compare"
    n_clusters = len(np.unique(codes[kept]))
    if n_clusters < 2 or len(weights) < 2:
        return None, _no_interval(n_clusters, len(weights))
    error = bootstrap_error(weighted_means(differences, weights), np.array([n_clusters]))
    mean = float(differences[kept].mean())
    if error > 0:
        return t_p_value(mean / error, n_clusters - 1), ""
    return (1.0, "") if mean == 0 else (None, "all items changed alike: there is no spread to test against")


def _no_interval(n_clusters: int, n_resamples: int) -> str:
    return f"{n_clusters} cluster(s), {n_resamples} resamples: 2 of each are needed"


def _row(
    arm: Floats,
    plain: Floats,
    control: Floats,
    codes: NDArray[np.int64],
    weights: Floats,
    share: bool,
    untested: str,
    level: float,
    test: Callable[[Floats], tuple[float | None, str]],
) -> Row:
    both = np.isfinite(arm) & np.isfinite(plain)
    arm, control = np.where(both, arm, np.nan), np.where(both, control, np.nan)
    value, low, high = mean_with_interval(arm, codes, weights, share=share, level=level)
    effect, effect_low, effect_high = mean_with_interval(arm - plain, codes, weights, level=level)
    beyond, beyond_low, beyond_high = mean_with_interval(arm - control, codes, weights, level=level)
    p, why = (None, untested) if untested else test(arm - plain)
    p_control, why_control = test(arm - control)
    n_clusters = len(np.unique(codes[both]))
    unknown = both.any() and not np.isfinite(low)
    return {
        "value": value, "ci_low": low, "ci_high": high,
        "unablated_value": float(plain[both].mean()) if both.any() else float("nan"),
        "control_value": float(np.nanmean(control)) if np.isfinite(control).any() else float("nan"),
        "effect": effect, "effect_low": effect_low, "effect_high": effect_high,
        "beyond_control": beyond, "beyond_low": beyond_low, "beyond_high": beyond_high,
        "p_value": p, "p_control": p_control, "p_note": why, "p_control_note": why_control,
        "n_items": int(both.sum()), "n_clusters": n_clusters,
        "ci_note": _no_interval(n_clusters, len(weights)) if unknown else "",
    }  # fmt: skip
