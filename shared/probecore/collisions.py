"""The collision ladder: what a stream of codes knows of its clip, session and speaker, without training anything.

S(relation) is the probability that two frames with that relation carry the same code:

    clip      same clip, far apart in time          session   same session, other clip
    speaker   same speaker, other session           other     other speaker

    G_clip = log2(S_clip / S_session)   G_session = log2(S_session / S_speaker)   G_speaker = log2(S_speaker / S_other)

Each S is a mean of indicators, so unbiased for any number of frames; G is information of order 2 (Renyi) in bits, and
only the log of a ratio of means bends it a little. G_speaker holds what speakers add beyond their sessions.

G_clip compares far pairs with far pairs: S_session is there taken over frames of two clips whose distances from their
clip's start differ by as much. Codes drift along a sentence, and pairs without a near part meet its ends more often.

Weights. Pairs of clips count equally in a pair of sessions, sessions in a speaker, and speakers in the ladder; both
ends of a rung are means over the same sessions or speakers. Codes (frames, layers), masks (frames,): which count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lgamma, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.collision_pairs import far_collisions, session_collisions
from probecore.errors import DesignError, InputError
from probecore.seeds import generator
from probecore.stats.bootstrap import jackknife_error, t_quantile
from probecore.stats.permutation import max_t, p_value
from probecore.validation import at_least, codes_of, constant_inside, one_per_item

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RUNGS = ("clip", "session", "speaker")
FEWEST_FOR_INTERVAL = 3


@dataclass(frozen=True)
class Rung:
    """One step of the ladder for every layer, (layers,): above, below the two S; value = log2(above / below).

    low, high : t interval from the jackknife over speakers, NaN where there are fewer than 3.
    """

    above: Floats
    below: Floats
    value: Floats
    low: Floats
    high: Floats
    n_speakers: int


@dataclass(frozen=True)
class SpeakerTest:
    """The session-block permutation test of G_speaker: p and family-wise p per layer, (layers,).

    null_mean : mean G_speaker over permutations, (layers,). n_assignments : how many different ways there are to deal
    these sessions to speakers. smallest_p : the smallest p that the permutations can give.
    """

    p_value: Floats
    p_adjusted: Floats
    null_mean: Floats
    n_permutations: int
    n_assignments: float
    smallest_p: float


class CollisionLadder:
    """The ladder of some clips.

    codes, masks : of every clip, each with a frame that counts. speaker, session : names (clips,). sizes : of the
    codebooks, (layers,). far : the largest lag in frames that is not yet far.
    sessions : mean collision of two different clips, one of each session, (layers, C, C), C sessions in sorted order.

    Raises `InputError` when a session has two speakers or a clip has no frame that counts.
    """

    def __init__(
        self,
        codes: Sequence[Ints],
        masks: Sequence[NDArray[np.bool_]],
        speaker: ArrayLike,
        session: ArrayLike,
        *,
        sizes: Sequence[int],
        far: int,
    ) -> None:
        of_speaker = one_per_item(speaker, len(codes), "speaker")
        of_session = one_per_item(session, len(codes), "session")
        if not constant_inside(of_speaker, of_session):
            raise InputError("a session must have one speaker: give each speaker's sessions names of their own")
        member, _ = codes_of(of_session)
        first = np.unique(member, return_index=True)[1]
        self._speaker, self.speakers = codes_of(of_speaker[first])
        kept = [clip[mask] for clip, mask in zip(codes, masks, strict=True)]
        self.sessions = np.stack(
            [
                session_collisions(np.stack([np.bincount(part[:, k], minlength=size) for part in kept]), member)
                for k, size in enumerate(sizes)
            ]
        )
        far_apart = [
            far_collisions([codes[i] for i in own], [masks[i] for i in own], far)
            for own in (np.flatnonzero(member == c).tolist() for c in range(int(member.max()) + 1))
        ]
        self._clip, self._clip_control = (np.stack(part, axis=1) for part in zip(*far_apart, strict=True))

    def rung(self, name: str, level: float = 0.05) -> Rung:
        """Return one of `RUNGS` with its jackknife interval.

        Raises `DesignError` where no speaker has what the rung compares.
        """
        above, below = self._ends(name)
        if name == "speaker":
            return self._speaker_rung(level)
        with_both = np.isfinite(above).all(axis=0) & np.isfinite(below).all(axis=0)
        above, below = above[:, with_both], below[:, with_both]
        if not above.shape[1]:
            raise DesignError(_missing(name))
        n = above.shape[1]
        without = ~np.eye(n, dtype=bool)
        deleted = [_log_ratio(above[:, keep].mean(axis=1), below[:, keep].mean(axis=1)) for keep in without if n > 1]
        return _rung(above.mean(axis=1), below.mean(axis=1), deleted, n, level)

    def speaker_test(self, n_permutations: int = 1999, seed: int = 0) -> SpeakerTest:
        """Test G_speaker by dealing whole sessions to speakers anew, the same for all layers; max-T over layers.

        Speakers keep their number of sessions; those with one session take no part. Raises `DesignError` as `rung`
        does, and where there are fewer than 20 ways to deal them, as no p could then reach .05.
        """
        at_least(n_permutations, 19, "n_permutations")
        sessions, speaker = self._testable()
        n_ways = n_assignments(np.bincount(speaker).tolist())
        if n_ways < 20:
            raise DesignError(
                f"sessions can be dealt to speakers in {n_ways:.0f} ways only, so no p can reach .05: record 4 or more "
                "speakers with 2 sessions, or more sessions of each"
            )
        same, other = _weights(speaker)
        flat = np.stack([same.ravel(), other.ravel()], axis=1)
        rng = generator(seed, "sessions to speakers")
        orders = [np.arange(len(speaker)), *(rng.permutation(len(speaker)) for _ in range(n_permutations))]
        ends = np.stack(
            [sessions[:, order[:, None], order].reshape(len(sessions), -1) @ flat for order in orders], axis=1
        )
        statistics = _log_ratio(ends[..., 0], ends[..., 1])  # (layers, 1 + permutations)
        return SpeakerTest(
            p_value(statistics),
            max_t(statistics),
            statistics[:, 1:].mean(axis=1),
            n_permutations,
            n_ways,
            max(1 / (n_permutations + 1), 1 / n_ways),
        )

    def _ends(self, name: str) -> tuple[Floats, Floats]:
        """Return the two S of a rung by speaker, (layers, speakers); NaN where a speaker does not have one."""
        within = np.diagonal(self.sessions, axis1=1, axis2=2)
        above, below = (self._clip, self._clip_control) if name == "clip" else (within, self._across())
        both = np.isfinite(above) & np.isfinite(below)
        return (
            np.stack([_mean_by(self._speaker, layer) for layer in np.where(both, above, np.nan)]),
            np.stack([_mean_by(self._speaker, layer) for layer in np.where(both, below, np.nan)]),
        )

    def _across(self) -> Floats:
        """Return for each session the mean collision with the speaker's other sessions, (layers, sessions)."""
        same = self._speaker[:, None] == self._speaker[None]
        np.fill_diagonal(same, False)
        n = same.sum(axis=1)
        total = np.where(same, self.sessions, 0.0).sum(axis=2)
        out: Floats = np.where(n > 0, total / np.maximum(n, 1), np.nan)
        return out

    def _testable(self) -> tuple[Floats, Ints]:
        """Return the collisions of different sessions whose speaker has two (0 on the diagonal), sorted by speaker."""
        several = np.flatnonzero(np.bincount(self._speaker)[self._speaker] > 1)
        speaker, names = codes_of(self._speaker[several])
        if len(names) < 2:
            raise DesignError(_missing("speaker"))
        order = several[np.argsort(speaker, kind="stable")]
        chosen = self.sessions[:, order[:, None], order]
        return np.where(np.eye(len(order), dtype=bool), 0.0, chosen), np.sort(speaker)

    def _speaker_rung(self, level: float) -> Rung:
        sessions, speaker = self._testable()
        n = int(speaker.max()) + 1
        member = (speaker == np.arange(n)[:, None]).astype(np.float64)
        between = member @ sessions @ member.T
        size = member.sum(axis=1)
        between /= np.outer(size, size) - np.diag(size)  # (layers, speakers, speakers)
        deleted = [
            _log_ratio(*_diagonal_and_rest(between[:, keep][:, :, keep])) for keep in ~np.eye(n, dtype=bool) if n > 2
        ]
        return _rung(*_diagonal_and_rest(between), deleted, n, level)


def n_assignments(sizes: list[int]) -> float:
    """Return in how many ways sessions can be dealt to speakers with these numbers of sessions, names not counting.

    C! / (product of n_s! x product over numbers j of m_j!), m_j speakers having j sessions.

    >>> [round(n_assignments(sizes)) for sizes in ([1, 1, 1], [2, 2], [2, 2, 2], [3, 3], [3, 3, 3])]
    [1, 3, 15, 10, 280]
    """
    ways = lgamma(sum(sizes) + 1) - sum(lgamma(n + 1) for n in sizes)
    ways -= sum(lgamma(sizes.count(j) + 1) for j in set(sizes))
    return float(np.exp(ways)) if ways < 700 * log(2) else float("inf")


def _weights(speaker: Ints) -> tuple[Floats, Floats]:
    """Return the weights of pairs of sessions whose sums give S_speaker and S_other, speakers counting equally."""
    size = np.bincount(speaker).astype(np.float64)
    n = len(size)
    same = speaker[:, None] == speaker[None]
    own = size[speaker]
    within = np.where(same & ~np.eye(len(speaker), dtype=bool), 1 / (n * own * np.maximum(own - 1, 1))[:, None], 0.0)
    across = np.where(same, 0.0, 1 / (n * (n - 1) * np.outer(own, own)))
    return within, across


def _diagonal_and_rest(between: Floats) -> tuple[Floats, Floats]:
    """Return the means on and off the diagonal, (layers,) each."""
    n = between.shape[1]
    trace = np.trace(between, axis1=1, axis2=2)
    return trace / n, (between.sum(axis=(1, 2)) - trace) / (n * (n - 1))


def _rung(above: Floats, below: Floats, deleted: list[Floats], n_speakers: int, level: float) -> Rung:
    value = _log_ratio(above, below)
    half = np.full(len(value), np.nan)
    if n_speakers >= FEWEST_FOR_INTERVAL:
        strata = np.zeros(n_speakers, dtype=np.int64)
        errors = [jackknife_error(layer, strata) for layer in np.stack(deleted, axis=1)]
        half = t_quantile(n_speakers - 1, level) * np.array(errors)
    return Rung(above, below, value, value - half, value + half, n_speakers)


def _mean_by(member: Ints, values: Floats) -> Floats:
    """Return the mean of the finite values of each member, (members,); NaN where there is none."""
    finite = np.isfinite(values)
    n = np.bincount(member, weights=finite)
    total = np.bincount(member, weights=np.where(finite, values, 0.0))
    out: Floats = np.where(n > 0, total / np.maximum(n, 1), np.nan)
    return out


def _log_ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        out: Floats = np.log2(above) - np.log2(below)
    return np.where(np.isfinite(out), out, np.nan)


def _missing(name: str) -> str:
    return {
        "clip": "no session has two clips, one of them longer than the far lag: a clip cannot be told from its session",
        "session": "no speaker has two sessions, one of them with two clips: a session cannot be told from its speaker",
        "speaker": "speaker and session cannot be told apart: fewer than 2 speakers have two sessions",
    }[name]
