"""How much two streams of codes tell of each other, in bits, and when that cannot be told from so few frames.

Conventions. Streams are codes (frames,) of the same clips laid end to end; `lengths` (clips,) are the clips' frames.
I(a; b) = H(a) + H(b) - H(a, b). Counting pairs of codes overstates it by about (m_a - 1)(m_b - 1) / (2 N ln 2) bits,
with m the codes seen: two independent streams of 2,048 codes and 9,600 frames show 8.45 bits. So

    counted     Miller-Madow on all pairs, only where N >= 10 m_a m_b; refused otherwise
    coarse      the same after codes were merged to few groups: a lower bound (data processing), as merging loses
    excess      plug-in less its mean under circular shifts of b inside clips: what the streams share frame by frame,
                beyond what their clip, their marginals and their own pace give

The shifts also give the p-value. What both streams know of a clip (its speaker, its room) is in the null as well.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError
from probecore.seeds import generator
from probecore.validation import at_least

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FRAMES_PER_PAIR = 10
SHORTEST = 4  # frames: a shorter clip has no shift that leaves its own frames


@dataclass(frozen=True)
class Information:
    """Shared information and what follows from it, in bits; NaN where `reason` says why it cannot be had.

    value : I(a; b) by Miller-Madow. entropy_a, entropy_b : of either stream. given_b : H(a | b). seen_a, seen_b : codes
    seen. n_frames : N.
    """

    value: float
    entropy_a: float
    entropy_b: float
    given_b: float
    seen_a: int
    seen_b: int
    n_frames: int
    reason: str = ""


def mutual_information(a: ArrayLike, b: ArrayLike) -> float:
    """Return plug-in mutual information in bits; biased upwards, see the module's first lines."""
    x, y = _streams(a, b)
    return _entropy(_counts(x)) + _entropy(_counts(y)) - _entropy(_counts(_joint(x, y)))


def counted_information(a: ArrayLike, b: ArrayLike) -> Information:
    """Return Miller-Madow mutual information, or the reason why these frames do not support it."""
    x, y = _streams(a, b)
    marginals, joint = (_counts(x), _counts(y)), _counts(_joint(x, y))
    n, (seen_a, seen_b) = len(x), map(len, marginals)
    entropy_a, entropy_b = (_entropy(counts) + _miller_madow(counts) for counts in marginals)
    needed = FRAMES_PER_PAIR * seen_a * seen_b
    if n < needed:
        reason = (
            f"{n} frames are fewer than {FRAMES_PER_PAIR} x {seen_a} x {seen_b} = {needed} (codes seen): mostly bias"
        )
        return Information(np.nan, entropy_a, entropy_b, np.nan, seen_a, seen_b, n, reason)
    both = _entropy(joint) + _miller_madow(joint)
    return Information(entropy_a + entropy_b - both, entropy_a, entropy_b, both - entropy_b, seen_a, seen_b, n)


def groups_supported(n_frames: int, most: int = 64, least: int = 4) -> int:
    """Return into how many groups two streams may be merged for Miller-Madow, a power of 2; 0 below `least`.

    >>> [groups_supported(n) for n in (100, 2_560, 10_240, 10**6)]
    [0, 16, 32, 64]
    """
    side = int(np.sqrt(n_frames / FRAMES_PER_PAIR))
    found = min(most, 2 ** (side.bit_length() - 1)) if side else 0
    return found if found >= least else 0


def merge_codes(table: ArrayLike, counts: ArrayLike, n_groups: int, seed: int = 0) -> Ints:
    """Return a group for each code, (codes,): k-means on the code vectors (codes, dim), weighted by their counts.

    Codes without a count do not pull a centre but get a group all the same. Fit on other clips than are measured.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    vectors, weights = np.asarray(table, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if vectors.ndim != 2 or weights.shape != vectors.shape[:1] or not np.isfinite(vectors).all():
        raise InputError(f"code vectors must be finite, one row per count; got {vectors.shape} and {weights.shape}")
    used = weights > 0
    distinct = len(np.unique(vectors[used], axis=0))
    k = min(at_least(n_groups, 1, "n_groups"), distinct)
    state = int(generator(seed, "merge codes").integers(2**31))
    with threadpool_limits(1):  # the order of a sum over threads would change the last digits
        fitted = KMeans(k, n_init=4, random_state=state).fit(vectors[used], sample_weight=weights[used])
        groups: Ints = fitted.predict(vectors).astype(np.int64)
    return groups


def shift_orders(lengths: ArrayLike, n_shifts: int, least: int, seed: int = 0) -> NDArray[np.intp]:
    """Return random circular shifts inside clips as orders of frames, (n_shifts, frames): `stream[order]` is shifted.

    Each clip turns by its own number of frames, at least `least` away from where it was, or a quarter of its length
    where it is shorter than 4 x `least`. Raises `InputError` for clips under 4 frames.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.ndim != 1 or not len(sizes) or sizes.min() < SHORTEST:
        shortest = min(sizes.tolist(), default=0)
        raise InputError(f"a circular shift needs clips of at least {SHORTEST} frames; got {shortest}: leave it out")
    nearest = np.minimum(at_least(least, 1, "least"), np.maximum(sizes // 4, 1))
    rng = generator(seed, "circular shifts")
    by = rng.integers(nearest, sizes - nearest + 1, size=(at_least(n_shifts, 1, "n_shifts"), len(sizes)))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    clip = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(sizes.sum()) - starts[clip]
    return np.asarray(starts[clip] + (place + by[:, clip]) % sizes[clip], dtype=np.intp)


def shifted_information(a: ArrayLike, b: ArrayLike, orders: NDArray[np.intp]) -> Floats:
    """Return plug-in mutual information in bits, as observed and with b in each of `orders`, (1 + shifts,).

    The first entry less the mean of the others is the excess; `probecore.stats.permutation.p_value` gives the p.
    """
    x, y = _streams(a, b)
    alone = _entropy(_counts(x)) + _entropy(_counts(y))
    width = int(y.max()) + 1
    base = x * width
    joint = [_entropy(_counts(base + y))] + [_entropy(_counts(base + y[order])) for order in orders]
    return alone - np.array(joint)


def _streams(a: ArrayLike, b: ArrayLike) -> tuple[Ints, Ints]:
    x, y = np.asarray(a), np.asarray(b)
    for stream in (x, y):
        if stream.ndim != 1 or stream.dtype.kind not in "iu" or not len(stream) or stream.min() < 0:
            raise InputError(
                f"a stream must be whole numbers from 0, shape (frames,); got {stream.dtype} {stream.shape}"
            )
    if len(x) != len(y):
        raise InputError(f"two streams must have the same frames; got {len(x)} and {len(y)}")
    # codes without gaps keep the number of a pair small, which sorts faster
    dense = [np.unique(stream, return_inverse=True)[1] for stream in (x, y)]
    return dense[0].astype(np.int64), dense[1].astype(np.int64)


def _joint(x: Ints, y: Ints) -> Ints:
    out: Ints = x * (int(y.max()) + 1) + y
    return out


def _counts(values: Ints) -> Ints:
    """Return how often each distinct value occurs, without zeros."""
    kind = np.int32 if values.max() < 2**31 else np.int64  # half the bytes sort in half the time
    ordered = np.sort(values.astype(kind))
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    return np.diff(edges).astype(np.int64)


def _entropy(counts: Ints) -> float:
    """Return plug-in entropy in bits of counts without zeros."""
    n = counts.sum()
    return float(np.log2(n) - (counts * np.log2(counts)).sum() / n)


def _miller_madow(counts: Ints) -> float:
    return float((len(counts) - 1) / (2 * counts.sum() * np.log(2)))
