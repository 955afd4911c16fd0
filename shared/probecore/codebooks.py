"""How much of a codebook is used: entropies in bits, and how many entries there are behind those that were seen.

Conventions. `counts` (..., K): how often each of K codes occurred; N their sum, m the codes seen, f1 and f2 those seen
once and twice, p = counts / N. Functions work on the last axis and return (...). Every count is of one layer: pooling
layers says nothing about any of them. 0 log 0 is 0, exactly.

    plug-in        H = -sum p log2 p                                              too low by about (m - 1) / (2 N ln 2)
    miller-madow   H + (m - 1) / (2 N ln 2)                                                              Miller (1955)
    chao-shen      -sum q log2 q / (1 - (1 - q)^N), q = (1 - f1/N) p                               Chao & Shen (2003)
    grassberger    log2 N - sum n G(n) / (N ln 2)                                                  Grassberger (2003)

>>> round(float(entropy([4, 4, 4, 4])), 6), round(float(entropy([4, 4, 4, 4], "miller-madow")), 3)
(2.0, 2.135)
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, psi

from probecore.errors import InputError
from probecore.validation import at_least, one_of

Floats = NDArray[np.float64]
ESTIMATORS = ("plug-in", "miller-madow", "chao-shen", "grassberger")
MISSED = 0.05  # the risk of missing a code at which a detection limit is stated


def entropy(counts: ArrayLike, estimator: str = "plug-in") -> Floats:
    """Return the entropy of the source in bits by one of `ESTIMATORS`, (...)."""
    n = _counts(counts)
    one_of(estimator, ESTIMATORS, "estimator")
    total = n.sum(-1, keepdims=True)
    if estimator == "chao-shen":
        return _chao_shen(n, total)
    if estimator == "grassberger":
        table = np.concatenate([[0.0], _grassberger_g(np.arange(1, int(n.max()) + 1))])
        value = np.log2(total[..., 0]) - (n * table[n.astype(np.int64)]).sum(-1) / (total[..., 0] * np.log(2))
        return np.asarray(value)
    plug_in = -_x_log2_x(n / total).sum(-1)
    if estimator == "plug-in":
        return np.asarray(plug_in)
    return np.asarray(plug_in + ((n > 0).sum(-1) - 1) / (2 * total[..., 0] * np.log(2)))


def default_estimator(counts: ArrayLike) -> str:
    """Return the estimator to trust: Chao-Shen where frames are fewer than 5 per code seen, else Miller-Madow.

    Miller-Madow corrects for codes that were seen too rarely, Chao-Shen also for those that were not seen at all.
    """
    n = _counts(counts)
    if n.ndim != 1:
        raise InputError(f"counts must have shape (codes,) to choose an estimator; got {n.shape}: choose by layer")
    return "chao-shen" if (n > 0).sum() > n.sum() / 5 else "miller-madow"


def rarefied_codes(counts: ArrayLike, n_frames: int) -> Floats:
    """Return how many codes are expected in n_frames of these frames, drawn without replacement (Hurlbert 1971), (...).

    E[m] = sum over codes of 1 - C(N - n, n_frames) / C(N, n_frames). Use at unequal N cannot be compared otherwise.
    Raises `InputError` when there are fewer frames than asked for.
    """
    n = _counts(counts)
    total = n.sum(-1, keepdims=True)
    at_least(n_frames, 1, "n_frames")
    if n_frames > total.min():
        raise InputError(f"a budget of {n_frames} frames needs as many; got {int(total.min())}: lower the budget")
    left = total - n
    log_missed = np.where(
        left >= n_frames,
        gammaln(left + 1) - gammaln(np.maximum(left - n_frames, 0) + 1) - gammaln(total + 1)
        + gammaln(total - n_frames + 1),
        -np.inf,
    )  # fmt: skip
    seen: Floats = np.where(n > 0, -np.expm1(np.minimum(log_missed, 0.0)), 0.0)
    return np.asarray(seen.sum(-1))


def chao1(counts: ArrayLike) -> Floats:
    """Return a lower bound on the number of codes in use, seen or not: m + f1 (f1 - 1) / (2 (f2 + 1)) (Chao 1984)."""
    n = _counts(counts)
    once, twice = (n == 1).sum(-1), (n == 2).sum(-1)
    return np.asarray((n > 0).sum(-1) + once * (once - 1) / (2 * (twice + 1)), dtype=np.float64)


def collision(counts: ArrayLike) -> Floats:
    """Return how often two different frames carry the same code: sum n (n - 1) / (N (N - 1)), unbiased for sum p^2."""
    n = _counts(counts)
    total = n.sum(-1)
    if (total < 2).any():
        raise InputError(f"a collision needs at least 2 frames; got {int(total.min())}")
    return np.asarray((n * (n - 1)).sum(-1) / (total * (total - 1)))


def detection_limit(n_frames: int) -> float:
    """Return the probability above which a code would have been seen in n_frames with 95 %: -ln(.05) / N.

    A code that was not seen is dead only in this sense: its true probability lies below the limit.

    >>> round(detection_limit(9600), 6)
    0.000312
    """
    return float(-np.log(MISSED) / at_least(n_frames, 1, "n_frames"))


def frames_to_see_all(n_codes: int) -> int:
    """Return how many independent frames show every code of an evenly used book with 95 %: K ln(K / .05).

    >>> frames_to_see_all(2048)
    21751
    """
    return int(np.ceil(at_least(n_codes, 1, "n_codes") * np.log(n_codes / MISSED)))


def divergence(counts: ArrayLike, weights: ArrayLike, estimator: str | None = None) -> float:
    """Return KL(observed || prior) in bits: how far these frames are from the usage that `weights` (K,) describe.

    The cross-entropy to the prior, with half a frame added to every code so that no probability is 0, less the entropy
    by `estimator`, None taking the default. Near 0 it can come out slightly negative.
    """
    n, prior = _counts(counts), np.asarray(weights, dtype=np.float64)
    if n.ndim != 1 or prior.shape != n.shape or not np.isfinite(prior).all() or (prior < 0).any() or not prior.any():
        raise InputError(
            f"weights must be {n.shape[-1]} numbers, none negative, not all 0, one per code; got shape {prior.shape}"
        )
    total = n.sum()
    smooth = (prior / prior.sum() * total + 0.5) / (total + 0.5 * len(n))
    return float(-(n / total * np.log2(smooth)).sum() - entropy(n, estimator or default_estimator(n)))


def _chao_shen(n: Floats, total: Floats) -> Floats:
    once = (n == 1).sum(-1, keepdims=True)
    coverage = 1 - np.where(once == total, total - 1, once) / total
    q = coverage * n / total
    seen = -np.expm1(total * np.log1p(-np.minimum(q, 1 - 1e-16)))  # 1 - (1 - q)^N
    return np.asarray(-(_x_log2_x(q) / np.where(n > 0, seen, 1.0)).sum(-1))


def _grassberger_g(n: NDArray[np.int64]) -> Floats:
    """Return G(n) = psi(n) + (-1)^n [psi((n + 1) / 2) - psi(n / 2)] / 2 for n >= 1."""
    out: Floats = psi(n) + 0.5 * (-1.0) ** n * (psi((n + 1) / 2) - psi(n / 2))
    return out


def _x_log2_x(p: Floats) -> Floats:
    out: Floats = p * np.log2(np.where(p > 0, p, 1.0))
    return out


def _counts(counts: ArrayLike) -> Floats:
    n = np.asarray(counts)
    whole = n.ndim >= 1 and n.size and n.dtype.kind in "iuf" and bool((n >= 0).all() and (n == np.floor(n)).all())
    if not whole or (n.sum(-1) < 1).any():
        raise InputError(
            f"counts must be whole numbers of shape (..., codes) with at least 1 frame; got {n.dtype} {n.shape}"
        )
    return n.astype(np.float64)
