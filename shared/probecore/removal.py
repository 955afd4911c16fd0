"""Curves of removal: how a score falls when k = 0, 1, 2, ... directions are taken out, and the numbers read off them.

Conventions. A curve (k_max + 1,) holds the score after k removals, entry 0 with nothing removed. k@q is the smallest k
whose score is below q times that of entry 0 (or below q itself, where `relative` is false). A curve is not monotone:
directions come in pairs, and half a pair can hurt more than the pair. So beside k@q stands `last`, the largest k whose
score is still at or above the line. A curve that never falls below it has no k@q: it is censored at k_max, and says so.

Where what falls is a behaviour and not the ability to do anything, a curve counts only while a second one, capability,
holds: k@q gated is the smallest k from which on a share q of the behaviour is gone, with capability still there.

>>> k_at([1.0, 0.9, 0.99, 0.5], 0.95), last_at([1.0, 0.9, 0.99, 0.5], 0.95)
(Crossing(k=1, k_max=3), 2)
>>> str(k_at([1.0, 1.0, 0.97], 0.95)), k_at([1.0, 1.0, 0.97], 0.95).censored
('> 2', True)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import DesignError, InputError
from probecore.seeds import generator
from probecore.validation import finite_matrix, one_per_item

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Crossing:
    """k@q of a curve: the smallest failing k, or None where no k up to k_max fails."""

    k: int | None
    k_max: int

    @property
    def censored(self) -> bool:
        """Tell whether the curve ended before it crossed."""
        return self.k is None

    @property
    def survives(self) -> int:
        """Return how many removals leave the score above the line, each of them: k - 1, or at least k_max."""
        return self.k_max if self.k is None else self.k - 1

    @property
    def least(self) -> int:
        """Return k, or k_max + 1, the least it can be."""
        return self.k_max + 1 if self.k is None else self.k

    def __str__(self) -> str:
        """Return the number, or `> k_max`."""
        return f"> {self.k_max}" if self.k is None else str(self.k)


def k_at(curve: ArrayLike, q: float, *, relative: bool = True) -> Crossing:
    """Return the smallest k whose score is below q times the score of k = 0 (or below q itself)."""
    values = _curve(curve)
    below = np.flatnonzero(values < _line(values, q, relative))
    return Crossing(int(below[0]) if len(below) else None, len(values) - 1)


def last_at(curve: ArrayLike, q: float, *, relative: bool = True) -> int | None:
    """Return the largest k whose score is at or above the line, None where not even k = 0 is."""
    values = _curve(curve)
    above = np.flatnonzero(values >= _line(values, q, relative))
    return int(above[-1]) if len(above) else None


def gated_at(curve: ArrayLike, gate: ArrayLike, q: float, *, keeps: float = 0.95) -> Crossing:
    """Return the smallest k at which a share q of `curve` is gone for good while `gate` keeps a share `keeps`.

    (curve[0] - curve[j]) / curve[0] >= q for every j from k to k_max, and gate[k] >= keeps gate[0]. `q` counts what is
    gone, so q = .95 is a curve below .05 of its start (`k_at` counts what is left).
    Raises `DesignError` where there is nothing to remove.
    """
    values, other = _curve(curve), _curve(gate)
    if values.shape != other.shape:
        raise InputError(f"curve and gate must have the same k; got {len(values)} and {len(other)} entries")
    if not values[0] > 0:
        raise DesignError(f"what is to be removed must be there with nothing removed; it starts at {values[0]:.3g}")
    gone = values <= _line(values, 1 - q, True) + 2e-12 * values[0]
    for_good = np.logical_and.accumulate(gone[::-1])[::-1]
    hit = np.flatnonzero(for_good & (other >= _line(other, keeps, True)))
    return Crossing(int(hit[0]) if len(hit) else None, len(values) - 1)


@dataclass(frozen=True)
class CrossingSpread:
    """Quantiles of k@q over resamples; a quantile that falls on censored ones is None: above k_max.

    not_reached : share of the resamples in which k@q is censored.
    """

    median: float | None
    low: float | None
    high: float | None
    not_reached: float


def crossing_spread(crossings: Sequence[Crossing], level: float = 0.05) -> CrossingSpread:
    """Return how k@q varies over resamples of the items behind a curve; censored ones count as larger than any k."""
    if not crossings:
        raise InputError("a spread needs at least 1 resample; got none")
    k = np.sort([np.inf if c.k is None else float(c.k) for c in crossings])
    # the nearest rank, outwards: between a number and "above k_max" there is nothing to interpolate
    places = [(len(k) - 1) // 2, int(np.floor(level / 2 * (len(k) - 1))), int(np.ceil((1 - level / 2) * (len(k) - 1)))]
    median, low, high = (float(k[i]) if np.isfinite(k[i]) else None for i in places)
    return CrossingSpread(median, low, high, float(np.isinf(k).mean()))


def selective_kill(own: ArrayLike, other: ArrayLike, *, dead: float = 0.5, keeps: float = 0.99) -> Crossing:
    """Return the smallest k at which `own` is below `dead` while `other` keeps a share `keeps` of what it had.

    Raises `DesignError` where `own` is below `dead` with nothing removed.
    """
    first, second = _curve(own), _curve(other)
    if first.shape != second.shape:
        raise InputError(f"both curves must have the same k; got {len(first)} and {len(second)} entries")
    if first[0] < dead:
        raise DesignError(f"what is to be killed must start at {dead:g} or above; it starts at {first[0]:.3g}")
    hit = np.flatnonzero((first < dead) & (second >= keeps * second[0]))
    return Crossing(int(hit[0]) if len(hit) else None, len(first) - 1)


def require_above_chance(baseline: float, chance: float, factor: float = 3.0) -> None:
    """Raise `DesignError` where a curve starts so near chance that no k@q means anything."""
    if baseline < min(factor * chance, (1 + chance) / 2):
        raise DesignError(f"a removal curve must start well above chance ({chance:.3g}); it starts at {baseline:.3g}")


def head_curves(
    states: ArrayLike,
    directions: ArrayLike,
    head: ArrayLike,
    bias: ArrayLike,
    answers: ArrayLike,
    subsets: Sequence[ArrayLike],
    k_max: int,
    *,
    centre: ArrayLike | None = None,
) -> Floats:
    """Return the accuracy of a linear head after the first 0 .. k_max directions leave the state it reads.

    states (items, d), directions (at least k_max, d) orthonormal rows, head (d, classes), bias (classes,), answers
    (items,). subsets : masks or indices of items; the result is (subsets, k_max + 1).
    centre : (d,) for h - QQ'(h - centre), which keeps the mean; None removes the whole component.

    Logits change by one outer product a direction, exact in float64: nothing is projected twice.
    """
    h, q = finite_matrix(states, "states").astype(np.float64), finite_matrix(directions, "directions")[:k_max]
    q, w = q.astype(np.float64), finite_matrix(head, "head").astype(np.float64)
    right = one_per_item(answers, len(h), "answers")
    if len(q) < k_max:
        raise InputError(f"k_max must be at most the number of directions; got {k_max} for {len(q)}")
    if len(q) and np.abs(q @ q.T - np.eye(len(q))).max() > 1e-6:
        raise InputError("directions must be orthonormal rows; these are not: orthonormalise them")
    logits = h @ w + np.asarray(bias, dtype=np.float64)
    along = (h if centre is None else h - np.asarray(centre, dtype=np.float64)) @ q.T
    by_class = q @ w
    picks = [np.flatnonzero(s) if np.asarray(s).dtype == bool else np.asarray(s) for s in subsets]
    curves = np.empty((len(picks), k_max + 1))
    for k in range(k_max + 1):
        if k:
            logits -= np.multiply.outer(along[:, k - 1], by_class[k - 1])
        correct = logits.argmax(1) == right
        curves[:, k] = [correct[pick].mean() for pick in picks]
    return curves


def random_frames(d: int, k: int, n: int, seed: int = 0) -> Floats:
    """Return n random orthonormal frames (n, k, d), uniform over all of them (Haar)."""
    rng = generator(seed, "random frames", d, k)
    frames, triangle = np.linalg.qr(rng.standard_normal((n, d, k)))
    signs = np.sign(np.einsum("nii->ni", triangle))
    return np.asarray((frames * signs[:, None]).transpose(0, 2, 1))


def _curve(curve: ArrayLike) -> Floats:
    values = np.asarray(curve, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"a curve must be a row of finite scores that starts at k = 0; got shape {values.shape}")
    return values


def _line(values: Floats, q: float, relative: bool) -> float:
    if not 0 < q < 1:
        raise InputError(f"q must lie in (0, 1); got {q}")
    return q * float(values[0]) * (1 - 1e-12) if relative else q
