"""What is true of each frame of codes: which phones sound in it, its pitch, its level.

Conventions. Frame i of a codec with F frames a second covers the seconds [i / F, (i + 1) / F) of its clip; its centre
is (i + 1/2) / F. At 12.5 frames a second a frame holds about one phone, so phones are given by their seconds inside it,
not by what sounds at its centre. With a lag d the truth of frame t stands beside the codes of frame t + d.

Analyses lay the frames that count of all clips end to end (`Frames`); where clips hold more than `MOST_FRAMES`, whole
clips are drawn, the same number of each speaker as far as they go: frames of one clip are dependent, and more of them
tell little more. The unit of every interval is the speaker.

Two nulls. Phones are short beside a clip: they are turned inside their clips (`probecore.information.shift_orders`).
Pitch and level are slow and fall over a clip, and turning breaks that curve at its seam (.26 of unrelated slow
series are rejected at .1): whole curves are exchanged between clips of one session instead (`curve_orders`).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import factorial, prod

import numpy as np
from numpy.typing import NDArray

from codecprobe.corpora.corpus import Phone
from codecprobe.tokenization import TokenizedCorpus
from probecore.errors import InputError
from probecore.information import SHORTEST
from probecore.seeds import generator
from probecore.validation import codes_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_FRAMES = 30_000
MOST_GROUPS = 10
ENOUGH_CLIPS = 4  # of a session, to exchange curves inside it
SILENCES = frozenset({"", "sil", "sp", "spn", "<eps>"})
F0_STEP_S = 0.01
_ROUNDING = 1e-9  # frames; an edge that lies this near to a centre lies on it


@dataclass(frozen=True)
class Frames:
    """Frames of several clips, end to end.

    codes : (frames, layers). around : (frames, 3, layers), codes of the frame before, this one, and the one after; the
    ends of a clip repeat themselves. truth : (frames, ...). lengths, speaker, session : of each clip.
    too_short : clips with fewer than 4 frames that count, which no circular shift can use.
    """

    around: Ints = field(repr=False)
    truth: Floats = field(repr=False)
    lengths: Ints = field(repr=False)
    speaker: Ints = field(repr=False)
    session: Ints = field(repr=False)
    too_short: int = 0

    @property
    def codes(self) -> Ints:
        """Codes of the frames themselves, (frames, layers)."""
        return self.around[:, 1]

    @property
    def of_frame(self) -> Ints:
        """Speaker of each frame."""
        return np.repeat(self.speaker, self.lengths)

    @property
    def n_speakers(self) -> int:
        """Number of speakers."""
        return len(np.unique(self.speaker))

    def sizes(self) -> dict[str, int]:
        """Return the sample sizes of a row: clips, speakers, frames."""
        return {"n_items": len(self.lengths), "n_groups": self.n_speakers, "n_frames": len(self.truth)}


def lay_frames(
    tokenized: TokenizedCorpus,
    clips: Sequence[int],
    truth: Sequence[Floats],
    counts: Sequence[NDArray[np.bool_]],
    lag: int = 0,
) -> Frames:
    """Lay the frames that count of some clips end to end.

    clips : indices into the corpus. truth, counts : for each of them (frames, ...) and which of its frames count.

    Raises `InputError` when fewer than 2 speakers are left.
    """
    speakers, _ = codes_of([clip.speaker for clip in tokenized.clips])
    parts, kept = [], []
    for i, values, mask in zip(clips, truth, counts, strict=True):
        codes = tokenized.codes[i]
        at = np.flatnonzero(mask)
        at = at[(at + lag >= 0) & (at + lag < len(codes))]
        if len(at) >= SHORTEST:
            where = np.clip(at[:, None] + lag + np.array([-1, 0, 1]), 0, len(codes) - 1)
            parts.append((codes[where], values[at]))
            kept.append(i)
    if len({int(speakers[i]) for i in kept}) < 2:
        raise InputError(
            f"leaving speakers out needs at least 2 of them with frames that count; got "
            f"{len({int(speakers[i]) for i in kept})}: add speakers, or longer clips"
        )
    return Frames(
        around=np.concatenate([around for around, _ in parts]),
        truth=np.concatenate([values for _, values in parts]),
        lengths=np.array([len(values) for _, values in parts], dtype=np.int64),
        speaker=codes_of(speakers[kept])[0],
        session=codes_of([tokenized.clips[i].session for i in kept])[0],
        too_short=len(clips) - len(kept),
    )


def draw_clips(tokenized: TokenizedCorpus, seed: int, most: int = MOST_FRAMES) -> list[int]:
    """Return the clips to analyse, in the corpus's order: all, or as many as hold `most` frames, speakers in turn."""
    sizes = [len(codes) for codes in tokenized.codes]
    if sum(sizes) <= most:
        return list(range(len(sizes)))
    turn: dict[str, int] = {}
    ranked = []
    for i in generator(seed, "clips to analyse").permutation(len(sizes)).tolist():
        speaker = tokenized.clips[i].speaker
        turn[speaker] = turn.get(speaker, 0) + 1
        ranked.append((turn[speaker], speaker, i))
    ordered = [i for _, _, i in sorted(ranked)]
    n = int(np.searchsorted(np.cumsum([sizes[i] for i in ordered]), most, side="right"))
    return sorted(ordered[: max(n, 2)])


def curve_orders(
    frames: Frames, n_orders: int, seed: int = 0, *, deranged: bool = False
) -> tuple[NDArray[np.intp], Ints, int]:
    """Return random exchanges of whole clips' curves as orders of frames, (n_orders, frames).

    Each clip takes the curve of a clip of its block, frame by frame from its start; a shorter curve begins again.
    Blocks are sessions where all sessions of a speaker have 4 clips, else the speaker. Also returns the block of each
    clip, (clips,), negative for a speaker, and how many exchanges there are in all (1: none is possible).

    deranged : no clip keeps its own curve, for the mean of the null. A p-value needs all exchanges alike, also those
    that leave some clips as they are: exchanges without them are more alike each other than the observed order, and
    reject too often.
    """
    of_session = Counter(frames.session.tolist())
    few = {int(s) for s, r in zip(frames.speaker, frames.session, strict=True) if of_session[int(r)] < ENOUGH_CLIPS}
    block = np.where(np.isin(frames.speaker, list(few)), -1 - frames.speaker, frames.session)
    members: dict[int, list[int]] = defaultdict(list)
    for i, name in enumerate(block.tolist()):
        members[name].append(i)
    starts = np.concatenate([[0], np.cumsum(frames.lengths)[:-1]])
    clip = np.repeat(np.arange(len(frames.lengths)), frames.lengths)
    place = np.arange(len(clip)) - starts[clip]
    rng = generator(seed, "exchange of curves")
    orders = np.empty((n_orders, len(clip)), dtype=np.intp)
    for i in range(n_orders):
        source = np.arange(len(frames.lengths))
        for own in members.values():
            drawn = rng.permutation(own)
            source[drawn if deranged else own] = np.roll(drawn, 1)
        orders[i] = starts[source[clip]] + place % frames.lengths[source[clip]]
    return orders, block, prod(factorial(len(own)) for own in members.values())


def speaker_groups(speaker: Ints, seed: int) -> Ints:
    """Return a group for each speaker code given, (...): one speaker each, or at most 10 groups of speakers."""
    n = int(speaker.max()) + 1
    dealt = np.arange(n) if n <= MOST_GROUPS else generator(seed, "groups of speakers").permutation(n) % MOST_GROUPS
    return np.asarray(dealt[speaker], dtype=np.int64)


def phone_seconds(phones: Sequence[Phone], names: Sequence[str], n_frames: int, rate_hz: float) -> Floats:
    """Return how many seconds of each phone of `names` sound in each frame, (frames, phones)."""
    edges = np.arange(n_frames + 1) / rate_hz
    starts, ends = np.array([[p.start_s, p.end_s] for p in phones]).reshape(-1, 2).T
    overlap = np.minimum(ends[:, None], edges[1:]) - np.maximum(starts[:, None], edges[:-1])
    which = np.array([[folded(p.name) == name for name in names] for p in phones], dtype=np.float64)
    seconds: Floats = np.maximum(overlap, 0.0).T @ which.reshape(len(phones), len(names))
    return seconds


def folded(name: str) -> str:
    """Return a phone without its stress digit; "" for silence.

    >>> folded("AH0"), folded("AH"), folded("sil")
    ('AH', 'AH', '')
    """
    return "" if name.lower() in SILENCES else name.rstrip("012")


def token_frames(start_s: float, end_s: float, n_frames: int, rate_hz: float) -> tuple[int, int, bool]:
    """Return first and last frame (inclusive) whose centre lies in [start_s, end_s], and whether there was none.

    Where no centre does, the nearest one to the middle is taken; the share of these forced tokens must be reported.

    >>> token_frames(0.12, 0.28, 100, 12.5), token_frames(0.05, 0.11, 100, 12.5)
    ((1, 3, False), (0, 0, True))
    """
    first = int(np.ceil(start_s * rate_hz - 0.5 - _ROUNDING))
    last = int(np.floor(end_s * rate_hz - 0.5 + _ROUNDING))
    forced = last < first
    if forced:
        first = last = round((start_s + end_s) / 2 * rate_hz - 0.5 - _ROUNDING)
    return min(max(first, 0), n_frames - 1), min(max(last, 0), n_frames - 1), forced


def frame_pitch(f0_hz: NDArray[np.floating], n_frames: int, rate_hz: float) -> Floats:
    """Return the log of the median pitch of each frame, (n_frames,); NaN where less than half of it is voiced.

    f0_hz : a value every 10 ms, the first at 0 s, 0 where unvoiced.
    """
    frame = np.floor(np.arange(len(f0_hz)) * F0_STEP_S * rate_hz + _ROUNDING).astype(np.int64)
    out = np.full(n_frames, np.nan)
    for i in range(min(n_frames, int(frame[-1]) + 1 if len(frame) else 0)):
        inside = f0_hz[frame == i]
        voiced = inside[inside > 0]
        if len(voiced) and 2 * len(voiced) >= len(inside):
            out[i] = np.log(np.median(voiced))
    return out
