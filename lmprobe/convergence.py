"""Does a trajectory of hidden states converge? Five named readings, because the word alone means nothing.

Conventions. A trajectory is (T, D): the states at T successive generated tokens. Slopes are per token, from ordinary
least squares on t = 0, 1, ...; a negative slope of a log distance means "closer".

C1 step slope         slope of log |h[t+1] - h[t]|. Its null permutes the increments and integrates them again, which
                      keeps a random walk a random walk: calibrated there (.05), while independent points, whose steps
                      share their ends, reject .10. Only its SIGN means something, a noise floor shrinks its size.
C2 end slope          slope of log |h[t] - h[T-1]|, and the fraction of steps that come closer to the end. BIASED: a
                      pure random walk gives -0.046 and 87 %. No usable null exists. Never a headline.
C3 path efficiency    |h[T-1] - h[0]| / sum of step lengths, and the slope of the distance to the trajectory's mean.
C4 Lyapunov slope     how a small change of one state fades or grows over the tokens after it, with all tokens fixed
                      (`lmprobe.perturbation`). Recovers log rho of a linear system. In a transformer it measures how
                      long the context remembers, not an attractor.
C5 entropy slope      slope of the next-token entropy over the tokens.

Shuffling time instead of increments rejects a pure random walk always: it is not offered.

>>> line = np.outer([8.0, 4.0, 2.0, 1.0], [1.0, 0.0])
>>> round(step_slope(line), 4), round(end_slope(line[:3]), 4), path_efficiency(line)
(-0.6931, -1.0986, 1.0)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError
from probecore.seeds import generator

Floats = NDArray[np.float64]
FEWEST_STATES = 6  # below this a slope says nothing: leave such prompts out and say so


@dataclass(frozen=True)
class StepTest:
    """C1 over trajectories: mean slope, each one's own, two-sided p and what the null looks like."""

    slope: float
    slopes: Floats
    p_value: float | None
    null_low: float | None
    null_high: float | None


def slope(values: ArrayLike) -> float:
    """Return the least-squares slope of values (T,) on 0, 1, ..., T - 1."""
    y = np.asarray(values, dtype=np.float64)
    t = np.arange(len(y)) - (len(y) - 1) / 2
    return float(t @ y / (t @ t))


def step_lengths(trajectory: ArrayLike) -> Floats:
    """Return the lengths of the steps of a trajectory (T, D): (T - 1,)."""
    return np.asarray(np.linalg.norm(np.diff(_checked(trajectory), axis=0), axis=1))


def step_slope(trajectory: ArrayLike) -> float:
    """Return C1, the slope of the log step length."""
    return slope(_log(step_lengths(trajectory)))


def end_slope(trajectory: ArrayLike) -> float:
    """Return C2, the slope of the log distance to the last state. Biased: see the module."""
    return slope(_log(_to_end(trajectory)))


def fraction_closer(trajectory: ArrayLike) -> float:
    """Return the fraction of steps that come closer to the last state. Biased: see the module."""
    return float((np.diff(_to_end(trajectory)) < 0).mean())


def path_efficiency(trajectory: ArrayLike) -> float:
    """Return C3, the distance between both ends over the length of the path; 1 is a straight line."""
    h = _checked(trajectory)
    length = float(step_lengths(h).sum())
    return float(np.linalg.norm(h[-1] - h[0])) / length if length else 0.0


def mean_slope(trajectory: ArrayLike) -> float:
    """Return the slope of the log distance to the trajectory's own mean (same caveat as C2)."""
    h = _checked(trajectory)
    return slope(_log(np.linalg.norm(h - h.mean(0), axis=1)))


def step_test(trajectories: Sequence[ArrayLike], *, n_permutations: int = 999, seed: int = 0) -> StepTest:
    """Test C1 over trajectories: whether their mean step slope is other than 0.

    The increments of each trajectory are permuted and integrated again, independently; as only the order of the step
    lengths changes, the null permutes these. p = (b + 1) / (m + 1), two-sided; None without permutations.
    Raises `InputError` without a trajectory, or for one with fewer than 3 states.
    """
    logs = [_log(step_lengths(h)) for h in trajectories]
    if not logs:
        raise InputError("C1 needs at least 1 trajectory; got none")
    slopes = np.array([slope(y) for y in logs])
    if n_permutations < 1:
        return StepTest(float(slopes.mean()), slopes, None, None, None)
    rng = generator(seed, "convergence", "increments")
    total = np.zeros(n_permutations)
    for y in logs:
        t = np.arange(len(y)) - (len(y) - 1) / 2
        total += rng.permuted(np.broadcast_to(y, (n_permutations, len(y))), axis=1) @ t / (t @ t)
    null = np.concatenate([[slopes.mean()], total / len(logs)])
    size = np.abs(null)
    low, high = np.quantile(null, [0.025, 0.975])
    p = float((size >= size[0] * (1 - 1e-9)).mean())
    return StepTest(float(slopes.mean()), slopes, p, float(low), float(high))


def _to_end(trajectory: ArrayLike) -> Floats:
    h = _checked(trajectory)
    return np.asarray(np.linalg.norm(h[:-1] - h[-1], axis=1))


def _log(lengths: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(lengths, 1e-12)))


def _checked(trajectory: ArrayLike) -> Floats:
    h = np.asarray(trajectory, dtype=np.float64)
    if h.ndim != 2 or len(h) < 3 or not np.isfinite(h).all():
        raise InputError(
            f"a trajectory must have shape (states, features), at least 3 finite states; got {h.shape}: "
            "leave out the steps after the end token"
        )
    return h
