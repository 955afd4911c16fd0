"""How far is an aligned model from its base? Estimators of lambda in V_aligned = V_base + lambda V_alignment.

Conventions. At a context x (prompt and prefix) ell(y|x) = log pi_a(y|x) - log pi_b(y|x) for every next token y; nats,
float64. Under the tilt pi_a ~ pi_b exp(lambda r), ell = lambda r + a constant of x. lambda and r are identified only as
a product: (lambda, r) and (c lambda, r / c + b(x)) are the same pair. So each estimator fixes a gauge:

L1 given reward, OLS   sum_x Cov_b(ell, r) / sum_x Var_b(r): lambda in units of the given r; R2 says how much of ell the
                       one-parameter tilt explains
L2 Jeffreys            sum_x [KL(a||b) + KL(b||a)] / sum_x [E_a r - E_b r]: exact under a tilt; noise over noise at
                       lambda = 0, so it is given only where the divergence is 3 times its floor
L3 unit gauge          sqrt(mean_x Var_b ell): lambda where r has mean variance 1 under the base; no reward, nats
L4 relative            argmin_s mean_x KL(m || softmax((1 - s) z_b + s z_a)): place of a checkpoint m on the path from
                       the base (0) to an anchor (1); the residual says how far off the path it lies
L5 dose                KL(a||b) by token, response and byte

Sums run over contexts, weighted: weights (prompts, K) give K resamples at once. The objective of L4 is convex in s:
KL(m || s) = KL(m || b) - s E_m[d] + K(s), d = log pi_a - log pi_b, K(s) = log E_b[exp(s d)] the cumulant generating
function. K, K' and K'' are kept on a grid and interpolated by Hermite's cubic, so that the minimum of any resample is
found without the logits. An interval over contexts is conditional on the two models: it knows nothing of what another
training run would give. Judge strength against its floor and by R2, not by whether the interval leaves out 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probecore.errors import InputError

Floats = NDArray[np.float64]
GRID = np.linspace(-0.5, 3.0, 29)
JEFFREYS_FLOOR = 3.0  # below this many times the floor's divergence, L2 is noise over noise


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the contexts of each of N prompts; what a prompt has none of is 0.

    n : (N,) contexts. kl_ab, kl_ba : (N,) KL(a||b), KL(b||a). variance : (N,) Var_b ell. With a reward r also
    covariance Cov_b(ell, r), spread Var_b r and moved E_a r - E_b r, each (N,); else None.
    """

    n: Floats
    kl_ab: Floats = field(repr=False)
    kl_ba: Floats = field(repr=False)
    variance: Floats = field(repr=False)
    covariance: Floats | None = field(default=None, repr=False)
    spread: Floats | None = field(default=None, repr=False)
    moved: Floats | None = field(default=None, repr=False)

    @staticmethod
    def empty(n_prompts: int, *, reward: bool = False) -> Moments:
        """Return the sums of no context."""
        zeros = [np.zeros(n_prompts) for _ in range(7)]
        return Moments(*zeros) if reward else Moments(*zeros[:4])

    def add(self, prompt: int, log_a: Tensor, log_b: Tensor, reward: Tensor | None = None) -> None:
        """Add contexts of a prompt: log-probabilities (contexts, vocabulary); reward likewise."""
        ell, p_b, p_a = log_ratio(log_a, log_b), log_b.exp(), log_a.exp()
        mean = _expected(p_b, ell)
        self.n[prompt] += len(ell)
        self.kl_ab[prompt] += float(_expected(p_a, ell).sum())
        self.kl_ba[prompt] -= float(mean.sum())
        self.variance[prompt] += float(_expected(p_b, (ell - mean[:, None]) ** 2).sum())
        if reward is None:
            return
        assert self.covariance is not None and self.spread is not None and self.moved is not None
        centre = _expected(p_b, reward)
        off = reward - centre[:, None]
        self.covariance[prompt] += float(_expected(p_b, (ell - mean[:, None]) * off).sum())
        self.spread[prompt] += float(_expected(p_b, off**2).sum())
        self.moved[prompt] += float((_expected(p_a, reward) - centre).sum())


@dataclass(frozen=True, eq=False)
class Path:
    """Where checkpoint m lies between base (0) and anchor (1): sums over the contexts of each of N prompts.

    total : (N,) KL(m||b). pull : (N,) E_m[d]. cumulant, slope, curve : (N, grid) K, K', K'' on `GRID`.
    """

    total: Floats
    pull: Floats = field(repr=False)
    cumulant: Floats = field(repr=False)
    slope: Floats = field(repr=False)
    curve: Floats = field(repr=False)

    @staticmethod
    def empty(n_prompts: int) -> Path:
        """Return the sums of no context."""
        grids = [np.zeros((n_prompts, len(GRID))) for _ in range(3)]
        return Path(np.zeros(n_prompts), np.zeros(n_prompts), *grids)

    def add(self, prompt: int, log_m: Tensor, log_b: Tensor, log_anchor: Tensor) -> None:
        """Add contexts of a prompt: log-probabilities (contexts, vocabulary) of checkpoint, base and anchor."""
        d, p_m = log_ratio(log_anchor, log_b), log_m.exp()
        self.total[prompt] += float(_expected(p_m, log_ratio(log_m, log_b)).sum())
        self.pull[prompt] += float(_expected(p_m, d).sum())
        for k, s in enumerate(GRID.tolist()):
            raised = log_b + s * d
            cumulant = torch.logsumexp(raised, dim=-1)
            p = (raised - cumulant[:, None]).exp()
            mean = _expected(p, d)
            self.cumulant[prompt, k] += float(cumulant.sum())
            self.slope[prompt, k] += float(mean.sum())
            self.curve[prompt, k] += float(_expected(p, (d - mean[:, None]) ** 2).sum())


def log_ratio(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Return log pi_a - log pi_b, 0 for tokens that neither model can take.

    Raises `InputError` where only one of them excludes a token: their divergence is infinite.
    """
    excluded = torch.isneginf(log_a) | torch.isneginf(log_b)
    if bool((torch.isneginf(log_a) != torch.isneginf(log_b)).any()):
        raise InputError("a token has probability 0 in one model only, so no strength relates them: compare others")
    return torch.where(excluded, torch.zeros_like(log_a), log_a - log_b)


def given_reward(moments: Moments, weights: Floats) -> Floats:
    """Return L1 (K,) for weights (N, K); NaN where the reward does not vary under the base."""
    assert moments.covariance is not None and moments.spread is not None
    return _ratio(moments.covariance @ weights, moments.spread @ weights)


def explained(moments: Moments, weights: Floats) -> Floats:
    """Return R2 (K,): the share of the variance of ell that the tilt along the given reward explains."""
    assert moments.covariance is not None and moments.spread is not None
    both = (moments.spread @ weights) * (moments.variance @ weights)
    return _ratio((moments.covariance @ weights) ** 2, both)


def jeffreys(moments: Moments, weights: Floats) -> Floats:
    """Return L2 (K,); see `JEFFREYS_FLOOR` for when it means something."""
    assert moments.moved is not None
    return _ratio((moments.kl_ab + moments.kl_ba) @ weights, moments.moved @ weights)


def unit_gauge(moments: Moments, weights: Floats) -> Floats:
    """Return L3 (K,), nats."""
    return np.sqrt(_ratio(moments.variance @ weights, moments.n @ weights))


def dose(moments: Moments, weights: Floats) -> Floats:
    """Return L5 (K,), KL(a||b) a token, nats."""
    return _ratio(moments.kl_ab @ weights, moments.n @ weights)


def relative(path: Path, weights: Floats) -> Floats:
    """Return L4 (K,); NaN where the minimum lies outside the grid [-0.5, 3] or base and anchor do not differ."""
    pull, slope, curve = path.pull @ weights, path.slope.T @ weights, path.curve.T @ weights
    found = np.full(weights.shape[1], np.nan)
    for k in range(len(found)):
        excess = slope[:, k] - pull[k]  # increasing: the derivative of a convex function
        if not excess[0] <= 0 <= excess[-1] or not curve[:, k].max() > 0:
            continue
        i = int(np.clip(np.searchsorted(excess, 0.0, side="left") - 1, 0, len(GRID) - 2))
        found[k] = _root(GRID[i : i + 2], excess[i : i + 2], curve[i : i + 2, k])
    return found


def off_path(path: Path, weights: Floats) -> Floats:
    """Return the residual share (K,): least KL(m || path) over KL(m || base); 0 is on the path. NaN where L4 is."""
    places = relative(path, weights)
    total, pull = path.total @ weights, path.pull @ weights
    cumulant, slope = path.cumulant.T @ weights, path.slope.T @ weights
    left = np.full(len(places), np.nan)
    for k, s in enumerate(places.tolist()):
        if np.isfinite(s):
            i = int(np.clip(np.searchsorted(GRID, s) - 1, 0, len(GRID) - 2))
            left[k] = total[k] - s * pull[k] + _hermite(s, GRID[i : i + 2], cumulant[i : i + 2, k], slope[i : i + 2, k])
    return np.maximum(_ratio(left, total), 0.0)


def tilted(path: Path, moments: Moments, weights: Floats, strength: float) -> Floats:
    """Return KL(strength || base) a context (K,), s K'(s) - K(s), of a path whose anchor is the aligned model itself.

    NaN outside the grid [-0.5, 3].
    """
    if not GRID[0] <= strength <= GRID[-1]:
        return np.full(weights.shape[1], np.nan)
    i = int(np.clip(np.searchsorted(GRID, strength) - 1, 0, len(GRID) - 2))
    ends, two = GRID[i : i + 2], slice(i, i + 2)
    cumulant, slope, curve = (x.T @ weights for x in (path.cumulant, path.slope, path.curve))
    n = moments.n @ weights
    return np.array([
        (strength * _hermite(strength, ends, slope[two, k], curve[two, k])
         - _hermite(strength, ends, cumulant[two, k], slope[two, k])) / n[k]
        for k in range(len(n))
    ])  # fmt: skip


def _root(ends: Floats, values: Floats, slopes: Floats) -> float:
    """Return where Hermite's cubic through an increasing function's ends is 0, by bisection."""
    low, high = float(ends[0]), float(ends[1])
    for _ in range(60):
        middle = (low + high) / 2
        if _hermite(middle, ends, values, slopes) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _hermite(at: float, ends: Floats, values: Floats, slopes: Floats) -> float:
    h = float(ends[1] - ends[0])
    t = (at - float(ends[0])) / h
    return float(
        (1 + 2 * t) * (1 - t) ** 2 * values[0]
        + t * (1 - t) ** 2 * h * slopes[0]
        + t**2 * (3 - 2 * t) * values[1]
        + t**2 * (t - 1) * h * slopes[1]
    )


def _expected(p: Tensor, values: Tensor) -> Tensor:
    return (p * values).sum(dim=-1)


def _ratio(upper: Floats, lower: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(lower) > 0, upper / lower, np.nan)
