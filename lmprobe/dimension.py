"""How many dimensions the states of prompts span, always with what makes such numbers misleading.

Conventions. The unit is the prompt: one state each, at the prompt's end, which is never position 0. Intervals leave
out one family at a time (jackknife, t). A number of prompts bounds every dimension (N items span at most N - 1), so
categories are compared at one fixed N: the mean over random subsets of that many prompts. Token clouds are shown with
and without position 0, whose state is massive in many models and then fakes a dimension near 1.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from probecore.errors import DesignError
from probecore.geometry import covariance_spectrum, dimensions, participation_ratio, pca_shares, rarefied, two_nn
from probecore.results import Row

Floats = NDArray[np.float64]
NO_TEST = "a description: no null says what a dimension should be"
RANDOM = "random weights"


def first_share(spectrum: ArrayLike) -> float:
    """Return the share of the variance in the first component."""
    return float(pca_shares(spectrum)[0])


def five_share(spectrum: ArrayLike) -> float:
    """Return the share of the variance in the first five components."""
    return float(pca_shares(spectrum)[:5].sum())


MEASURES: dict[str, Callable[[Floats], float]] = {
    "PC1 share": first_share,
    "share of 5 components": five_share,
    "participation ratio": participation_ratio,
}


def dimension_rows(
    states: ArrayLike,
    categories: Sequence[str],
    families: Sequence[str],
    layer: str,
    *,
    random_states: ArrayLike | None = None,
    seed: int = 0,
) -> list[Row]:
    """Return PC1 share, share of five components and participation ratio of states (prompts, width), and variants.

    Shown: all prompts, with a jackknife interval; `control` is the value of random weights. Details: the intrinsic
    dimension by TwoNN, each category at the N of the smallest one, and all prompts without the most variable
    coordinates and standardised.
    """
    x = np.asarray(states, dtype=np.float64)
    common: Row = {"layer": layer, "unit": "prompt", "n_families": len(set(families))}
    common |= {"p_value": None, "p_note": NO_TEST}
    try:
        spectrum = covariance_spectrum(x)
    except DesignError as error:
        missing = {"value": None, "ci_low": None, "ci_high": None, "value_note": str(error), "n_prompts": len(x)}
        return [{"metric": f"{n}, {layer}", "measure": n, **common, **missing, "detail": False} for n in MEASURES]
    rows: list[Row] = []
    for name, measure in MEASURES.items():
        low, high = jackknife_interval(x, families, measure)
        row: Row = {"metric": f"{name}, {layer}", "measure": name, "value": measure(spectrum), **common}
        row |= {"ci_low": low, "ci_high": high, "n_prompts": len(x), "detail": False}
        if random_states is not None:
            row |= {"control": _or_none(random_states, measure), "control_name": RANDOM}
        rows.append(row)
    rows.append(_neighbours(x, families, random_states, common))
    return rows + _by_category(x, categories, common, seed) + _variants(x, common, seed)


def token_rows(states: ArrayLike, is_first: ArrayLike, layer: str, n_prompts: int) -> list[Row]:
    """Return PC1 share and participation ratio of the states of all prompt tokens, with and without position 0.

    states (tokens, width), is_first (tokens,) whether a token is its prompt's first.
    """
    x, first = np.asarray(states, dtype=np.float64), np.asarray(is_first, dtype=bool)
    rows: list[Row] = []
    for words, cloud in (("with position 0", x), ("without position 0", x[~first])):
        for name in ("PC1 share", "participation ratio"):
            row: Row = {"metric": f"{name} of tokens {words}, {layer}", "measure": name, "layer": layer}
            row |= {"unit": "token", "value": _or_none(cloud, MEASURES[name]), "ci_low": None, "ci_high": None}
            row |= {"ci_note": "tokens of a prompt are not independent", "p_value": None, "p_note": NO_TEST}
            rows.append(row | {"n_prompts": n_prompts, "n_tokens": len(cloud), "detail": True})
    return rows


def massive_first_token(rows: Sequence[Row]) -> bool:
    """Tell whether position 0 alone makes the first component: its share falls by half or more without it."""
    shares = [row["value"] for row in rows if row["unit"] == "token" and row["measure"] == "PC1 share"]
    return len(shares) == 2 and None not in shares and shares[0] > 0.5 and shares[1] < shares[0] / 2


def jackknife_interval(
    x: Floats, families: Sequence[str], measure: Callable[[Floats], float], level: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """Return measure -/+ t se of the spectrum of x, se from leaving out one family at a time; None below 3 families."""
    codes = np.unique(np.asarray(families), return_inverse=True)[1]
    n = int(codes.max()) + 1
    if n < 3:
        return None, None
    left_out = np.array([measure(covariance_spectrum(x[codes != code])) for code in range(n)])
    return _jackknifed(measure(covariance_spectrum(x)), left_out, level)


def _jackknifed(value: float, left_out: Floats, level: float = 0.95) -> tuple[float, float]:
    n = len(left_out)
    error = float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error
    return value - half, value + half


def _neighbours(x: Floats, families: Sequence[str], random_states: ArrayLike | None, common: Row) -> Row:
    """Return the intrinsic dimension by TwoNN (Facco et al. 2017): of a curved sheet, where components count flat ones.

    It needs many prompts: with 20 families its jackknife interval is wide.
    """
    row: Row = {"metric": f"TwoNN dimension, {common['layer']}", "measure": "TwoNN dimension", **common}
    row |= {"n_prompts": len(x), "detail": True}
    codes = np.unique(np.asarray(families), return_inverse=True)[1]
    try:
        value = two_nn(x)
        left_out = np.array([two_nn(x[codes != code]) for code in range(int(codes.max()) + 1)])
    except DesignError as error:
        return row | {"value": None, "ci_low": None, "ci_high": None, "value_note": str(error)}
    low, high = _jackknifed(value, left_out) if len(left_out) > 2 else (None, None)
    row |= {"value": value, "ci_low": low, "ci_high": high}
    if low is None:
        row["ci_note"] = "fewer than 3 families"
    if random_states is not None:
        try:
            row |= {"control": two_nn(random_states), "control_name": RANDOM}
        except DesignError:
            row |= {"control": None, "control_name": RANDOM}
    return row


def map_table(states: ArrayLike, categories: Sequence[str], names: Sequence[str]) -> list[Row]:
    """Return each prompt's place on the first two principal components; signs are fixed, the largest loading is +.

    Components that do not exist are 0.
    """
    x = np.asarray(states, dtype=np.float64)
    x = x - x.mean(0)
    _, _, vectors = np.linalg.svd(x, full_matrices=False)
    axes = np.zeros((2, x.shape[1]))
    axes[: min(2, len(vectors))] = vectors[:2]
    axes *= np.where(axes[np.arange(2), np.abs(axes).argmax(1)] < 0, -1.0, 1.0)[:, None]
    places = x @ axes.T
    return [
        {"item": name, "category": category, "pc1": float(a), "pc2": float(b)}
        for name, category, (a, b) in zip(names, categories, places.tolist(), strict=True)
    ]


def _by_category(x: Floats, categories: Sequence[str], common: Row, seed: int) -> list[Row]:
    labels = np.asarray(categories)
    counts = {category: int((labels == category).sum()) for category in dict.fromkeys(categories)}
    size = min(counts.values())
    if size < 3:
        return []
    rows: list[Row] = []
    for category, count in counts.items():
        for name in ("PC1 share", "participation ratio"):
            row: Row = {"metric": f"{name} of {category} at N = {size}, {common['layer']}", "measure": name, **common}
            row |= {"category": category, "ci_low": None, "ci_high": None, "n_prompts": count, "n_rarefied": size}
            row |= {"ci_note": "mean over random subsets of N prompts", "detail": True}
            try:
                found = rarefied(x[labels == category], MEASURES[name], [size], n_draws=50, seed=seed)[0]
                rows.append(row | {"value": found["mean"], "sd_subsets": found["sd"]})
            except DesignError as error:
                rows.append(row | {"value": None, "value_note": str(error)})
    return rows


def _variants(x: Floats, common: Row, seed: int) -> list[Row]:
    rows: list[Row] = []
    try:
        variants = dimensions(x, n_permutations=20, seed=seed)
    except DesignError as error:
        none: Row = {"metric": f"variants of the coordinates, {common['layer']}", "measure": "variants", **common}
        none |= {"value": None, "ci_low": None, "ci_high": None, "value_note": str(error), "n_prompts": len(x)}
        return [{**none, "detail": True}]
    for found in variants:
        if found["variant"] == "as is":
            massive = found["massive"]
            continue
        for name, key in (("PC1 share", "pc1_share"), ("participation ratio", "participation_ratio")):
            row: Row = {
                "metric": f"{name} {found['variant']} coordinates, {common['layer']}",
                "measure": name,
                **common,
            }
            if found["variant"] == "standardised":
                row["metric"] = f"{name} of standardised coordinates, {common['layer']}"
            row |= {"variant": found["variant"], "value": found[key], "ci_low": None, "ci_high": None}
            row |= {"ci_note": "a variant, to be read beside the value", "n_prompts": len(x), "massive": massive}
            rows.append(row | {"detail": True})
    return rows


def _or_none(x: ArrayLike, measure: Callable[[Floats], float]) -> float | None:
    try:
        return measure(covariance_spectrum(x))
    except DesignError:
        return None
