"""ABX: is a phone nearer to another token of itself than to a token of another phone? Nothing is trained.

Conventions. A token is a phone with a phone before and one after it, its context; its frames are those whose centre it
holds, both ends included, or the nearest one where it holds none (forced; at 12.5 frames a second that is common). For
a cell (A, B, context, speaker of A and B, speaker of X) the error is the mean over triples, a and x of A, b of B, x not
a, of 1 where d(a, x) > d(b, x) and 1/2 where they are equal. within: one speaker; across: x by another.
Cells are averaged over contexts, then over speakers, then over ordered pairs of phones (Schatz 2016).

d is the mean cost along the path of dynamic time warping with the least total cost (of these the shortest). Cost of
two codes: 0 or 1 (`same_code`), or the angle between their vectors over pi (`angles`). Chance is near .5 but not
exactly: tokens of one phone are alike in length, so it is measured on codes turned inside their clips.

Libri-light's and ZeroSpeech 2021's slices end one frame early, which at this rate is most of a phone.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codecprobe.corpora.corpus import Phone
from codecprobe.frames import folded, token_frames
from probecore.seeds import generator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MODES = ("within", "across")
MOST_TOKENS = 8  # of one phone in one context by one speaker
MOST_SPEAKERS = 10  # other speakers of x for one cell


class Token(NamedTuple):
    """A phone in its context, and its frames in the codes of all clips laid end to end."""

    phone: str
    context: tuple[str, str]
    speaker: int
    first: int
    n_frames: int


@dataclass(frozen=True)
class Triples:
    """All triples of one mode as pairs of tokens, and the cells they fall into.

    near, far, cell (triples,): index of the pair (a, x), of (b, x), and of the cell. phones, speaker, speaker_x
    (cells,): the ordered pair of phones, the speaker of A and B, the speaker of X.
    """

    near: Ints = field(repr=False)
    far: Ints = field(repr=False)
    cell: Ints = field(repr=False)
    phones: Ints = field(repr=False)
    speaker: Ints = field(repr=False)
    speaker_x: Ints = field(repr=False)


@dataclass(frozen=True)
class AbxTask:
    """Tokens, the pairs of them that are compared (pairs, 2), the triples of each mode, and the share forced."""

    tokens: tuple[Token, ...] = field(repr=False)
    pairs: Ints = field(repr=False)
    triples: dict[str, Triples] = field(repr=False)
    forced: float


def find_tokens(
    phones: Sequence[Sequence[Phone]], lengths: Sequence[int], speaker: Sequence[int], rate_hz: float, lag: int = 0
) -> tuple[tuple[Token, ...], float]:
    """Return the tokens of all clips and the share of them without a frame centre of their own.

    lengths : frames of each clip. lag : frames by which codes come later than sound; tokens it moves out are dropped.
    """
    found, forced, start = [], 0, 0
    for clip, n_frames, who in zip(phones, lengths, speaker, strict=True):
        names = [folded(p.name) for p in clip]
        for i in range(1, len(clip) - 1):
            if not names[i]:
                continue
            first, last, empty = token_frames(clip[i].start_s, clip[i].end_s, n_frames, rate_hz)
            if first + lag >= 0 and last + lag < n_frames:
                context = (names[i - 1], names[i + 1])
                found.append(Token(names[i], context, who, start + first + lag, last - first + 1))
                forced += empty
        start += n_frames
    return tuple(found), forced / max(len(found), 1)


def make_task(tokens: Sequence[Token], forced: float, seed: int = 0) -> AbxTask:
    """Find all cells and their triples; where a cell is large, at most 8 tokens of a phone and 10 other speakers."""
    rng = generator(seed, "abx")
    cells: dict[tuple[str, str], dict[int, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(dict))
    for i, token in enumerate(tokens):
        cells[token.context][token.speaker].setdefault(token.phone, []).append(i)
    for by_speaker in cells.values():
        for by_phone in by_speaker.values():
            for phone, members in by_phone.items():
                if len(members) > MOST_TOKENS:
                    by_phone[phone] = sorted(rng.permutation(members)[:MOST_TOKENS].tolist())
    pairs: dict[tuple[int, int], int] = {}
    triples = {mode: _triples(cells, mode, pairs, rng) for mode in MODES}
    return AbxTask(tuple(tokens), np.array(list(pairs), dtype=np.int64).reshape(-1, 2), triples, forced)


def same_code(size: int) -> Floats:
    """Return the cost of two codes: 0 for the same, 1 for others, (size, size)."""
    return 1.0 - np.eye(size)


def angles(table: NDArray[np.floating]) -> Floats:
    """Return the angle between code vectors over pi, (size, size); a vector of zeros is at right angles to others."""
    vectors = table.astype(np.float64)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norm > 0, norm, 1.0)
    cosine = unit @ unit.T
    cost = np.arccos(np.clip((cosine + cosine.T) / 2, -1, 1)) / np.pi
    np.fill_diagonal(cost, 0.0)
    return np.asarray(cost)


def pair_distances(task: AbxTask, codes: Ints, cost: Floats) -> Floats:
    """Return d for every pair of tokens, (pairs,); codes (frames,) of all clips, cost (size, size)."""
    first = np.array([token.first for token in task.tokens])
    size = np.array([token.n_frames for token in task.tokens])
    a, b = task.pairs.T
    a, b = np.where(size[a] <= size[b], a, b), np.where(size[a] <= size[b], b, a)
    out = np.empty(len(task.pairs))
    shape = size[a] * (int(size.max()) + 1) + size[b]
    for kind in np.unique(shape):
        at = np.flatnonzero(shape == kind)
        n, m = size[a[at[0]]], size[b[at[0]]]
        rows, columns = codes[first[a[at], None] + np.arange(n)], codes[first[b[at], None] + np.arange(m)]
        out[at] = _warp(cost[rows[:, :, None], columns[:, None, :]])
    return out


def cell_errors(triples: Triples, distances: Floats) -> Floats:
    """Return the error of every cell, (cells,)."""
    near, far = distances[triples.near], distances[triples.far]
    wrong = (near > far) + 0.5 * (near == far)
    return np.asarray(np.bincount(triples.cell, wrong) / np.bincount(triples.cell))


def average(triples: Triples, errors: Floats, without: int | None = None) -> float:
    """Return the error over contexts, speakers, pairs of phones in turn; NaN without a cell.

    without : a speaker whose cells are left out.
    """
    kept = np.ones(len(errors), dtype=np.bool_)
    if without is not None:
        kept = (triples.speaker != without) & (triples.speaker_x != without)
    if not kept.any():
        return float("nan")
    n = int(max(triples.speaker.max(), triples.speaker_x.max())) + 1
    phones = triples.phones[kept]
    key = (phones * n + triples.speaker[kept]) * n + triples.speaker_x[kept]
    groups, place = np.unique(key, return_inverse=True)
    by_speakers = np.bincount(place, errors[kept]) / np.bincount(place)
    _, place = np.unique(groups // (n * n), return_inverse=True)
    return float((np.bincount(place, by_speakers) / np.bincount(place)).mean())


def _triples(
    cells: dict[tuple[str, str], dict[int, dict[str, list[int]]]],
    mode: str,
    pairs: dict[tuple[int, int], int],
    rng: np.random.Generator,
) -> Triples:
    near: list[int] = []
    far: list[int] = []
    cell: list[int] = []
    facts: list[tuple[int, int, int]] = []
    names: dict[tuple[str, str], int] = {}
    for context in sorted(cells):
        by_speaker = cells[context]
        for who in sorted(by_speaker):
            for phone_a, phone_b in permutations(sorted(by_speaker[who]), 2):
                of_a, of_b = by_speaker[who][phone_a], by_speaker[who][phone_b]
                for who_x in _speakers_of_x(by_speaker, who, phone_a, mode, rng):
                    before = len(near)
                    for x, a in product(by_speaker[who_x][phone_a], of_a):
                        if a == x:
                            continue
                        for b in of_b:
                            near.append(_index(pairs, a, x))
                            far.append(_index(pairs, b, x))
                            cell.append(len(facts))
                    if len(near) > before:
                        pair = names.setdefault((phone_a, phone_b), len(names))
                        facts.append((pair, who, who_x))
    columns = np.array(facts, dtype=np.int64).reshape(-1, 3).T
    return Triples(
        np.array(near, dtype=np.int64), np.array(far, dtype=np.int64), np.array(cell, dtype=np.int64), *columns
    )


def _speakers_of_x(
    by_speaker: dict[int, dict[str, list[int]]], who: int, phone: str, mode: str, rng: np.random.Generator
) -> Iterable[int]:
    if mode == "within":
        return [who]
    others = sorted(s for s, by_phone in by_speaker.items() if s != who and phone in by_phone)
    return others if len(others) <= MOST_SPEAKERS else sorted(rng.permutation(others)[:MOST_SPEAKERS].tolist())


def _index(pairs: dict[tuple[int, int], int], i: int, j: int) -> int:
    return pairs.setdefault((min(i, j), max(i, j)), len(pairs))


def _warp(cost: Floats) -> Floats:
    """Return the mean cost along the best path through each (n, m) of cost (pairs, n, m), (pairs,).

    Paths are compared by total cost, then by length; this order is kept by adding a step, so the recursion is exact.
    """
    _, n, m = cost.shape
    total, length = np.empty_like(cost), np.empty(cost.shape, dtype=np.int64)
    for i, j in product(range(n), range(m)):
        came = [(i - di, j - dj) for di, dj in ((1, 1), (1, 0), (0, 1)) if i >= di and j >= dj]
        if not came:
            total[:, 0, 0], length[:, 0, 0] = cost[:, 0, 0], 1
            continue
        best, steps = total[:, came[0][0], came[0][1]], length[:, came[0][0], came[0][1]]
        for a, b in came[1:]:
            better = (total[:, a, b] < best) | ((total[:, a, b] == best) & (length[:, a, b] < steps))
            best, steps = np.where(better, total[:, a, b], best), np.where(better, length[:, a, b], steps)
        total[:, i, j], length[:, i, j] = best + cost[:, i, j], steps + 1
    return np.asarray(total[:, -1, -1] / length[:, -1, -1])
