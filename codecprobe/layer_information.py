"""What the layers of a codec share, frame by frame: coarse information, excess over a shift null, innovation.

Conventions. Bits. Pairs are (earlier layer, later layer). All pairs get the coarse lower bound, fitted on the other
half of the speakers; neighbours, and each layer with layer 0, also get the excess over circular shifts inside clips and
its p. Intervals are those of a jackknife over speakers (coarse) or over at most 10 groups of speakers (excess).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.codec import Codec
from probecore.codebooks import default_estimator, entropy
from probecore.information import (
    FRAMES_PER_PAIR,
    SHORTEST,
    counted_information,
    groups_supported,
    merge_codes,
    shift_orders,
    shifted_information,
)
from probecore.progress import progress
from probecore.results import Row
from probecore.seeds import generator
from probecore.stats.bootstrap import jackknife_error, t_quantile
from probecore.stats.permutation import max_t, p_value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MIN_SHIFT_S = 2.0
MOST_GROUPS = 10
SHIFTS_FOR_INTERVAL = 9
FEWEST_SPEAKERS = 3
FEWEST_FOR_HALVES = 4  # leaving one out must leave a speaker in either half


@dataclass(frozen=True)
class Streams:
    """Frames that count of the clips that are long enough: codes (frames, layers), length and speaker of each clip."""

    codes: Ints
    lengths: Ints
    speaker: Ints
    layers: tuple[str, ...]
    frame_rate_hz: float
    n_too_short: int

    @property
    def of_frame(self) -> Ints:
        """Speaker of each frame."""
        return np.repeat(self.speaker, self.lengths)

    @property
    def n_speakers(self) -> int:
        """Number of speakers."""
        return len(np.unique(self.speaker))

    def facts(self) -> Row:
        """Return the sample sizes that stand in every row."""
        return {"n_frames": len(self.codes), "n_clips": len(self.lengths), "n_speakers": self.n_speakers}


def streams_of(
    codes: Sequence[Ints], masks: Sequence[NDArray[np.bool_]], speaker: Ints, layers: Sequence[str], rate_hz: float
) -> Streams:
    """Lay the frames that count of all clips end to end; clips of fewer than 4 of them are left out and counted."""
    kept = [i for i, mask in enumerate(masks) if mask.sum() >= SHORTEST]
    frames = [codes[i][masks[i]] for i in kept]
    return Streams(
        codes=np.concatenate(frames) if frames else np.empty((0, len(layers)), dtype=np.int64),
        lengths=np.array([len(part) for part in frames], dtype=np.int64),
        speaker=speaker[kept],
        layers=tuple(layers),
        frame_rate_hz=rate_hz,
        n_too_short=len(masks) - len(kept),
    )


def information_rows(streams: Streams, codec: Codec, *, n_shifts: int, seed: int, quiet: bool) -> list[Row]:
    """Return the rows of all pairs of layers: coarse, excess, counted, and what is left of the later layer."""
    n_layers = len(streams.layers)
    close = chain_pairs(n_layers)
    coarse = coarse_information(streams, codec, seed)
    rows = []
    for (a, b), found in coarse.items():
        detail = b != a + 1
        rows.append({"metric": "shared information", **_pair(streams, a, b), **found, "detail": detail})
    excess = excess_information(streams, close, n_shifts=n_shifts, seed=seed, quiet=quiet)
    for (a, b), found in excess.items():
        rows.append({"metric": "excess information", **_pair(streams, a, b), **found, "detail": b != a + 1})
    for a, b in close:
        own = streams.codes[:, b]
        counted = counted_information(streams.codes[:, a], own)
        pair = _pair(streams, a, b)
        rows.append(
            {
                "metric": "counted information", **pair, "value": None if counted.reason else counted.value,
                "estimator": "miller-madow, all codes", "value_note": counted.reason or None, "detail": True,
            }
        )  # fmt: skip
        counts = np.bincount(own)
        alone = float(entropy(counts, default_estimator(counts)))
        known = counted.value if not counted.reason else coarse[a, b]["value"]
        what = "information counted" if not counted.reason else "coarse information: an upper bound"
        rows.append(
            {
                "metric": "conditional entropy", **pair, "value": None if known is None else alone - known,
                "most": alone, "estimator": f"entropy less {what}",
                "value_note": coarse[a, b]["value_note"] if known is None else None, "detail": True,
            }
        )  # fmt: skip
    return rows


def chain_pairs(n_layers: int) -> list[tuple[int, int]]:
    """Return neighbours, then layer 0 with the others: in a split codec layer 0 stands outside the chain."""
    return [(k - 1, k) for k in range(1, n_layers)] + [(0, k) for k in range(2, n_layers)]


def coarse_information(streams: Streams, codec: Codec, seed: int = 0) -> dict[tuple[int, int], Row]:
    """Return a lower bound on the shared information of every pair: codes merged to groups, then Miller-Madow.

    Groups are fitted on the frames of one half of the speakers (of the clips, where there is one speaker) and measured
    on those of the other, both ways round. As many groups, up to 64, as 10 frames for each pair of groups allow.
    """
    n_layers = len(streams.layers)
    halves, unit = halves_of(streams, seed)
    size = min(int(half.sum()) for half in halves)
    n_groups = groups_supported(size)
    facts = {"estimator": f"{n_groups} groups (lower bound)", "n_groups": n_groups}
    if not n_groups:
        reason = (
            f"{size} frames in a half of the {unit} do not support 4 groups of codes: {FRAMES_PER_PAIR * 16} needed"
        )
        nothing = {"value": None, "value_note": reason, "estimator": "groups (lower bound)", "n_groups": 0}
        return {(a, b): dict(nothing) for b in range(n_layers) for a in range(b)}
    merged = np.empty_like(streams.codes)
    for k in range(n_layers):
        table = codec.codebook(k)
        for half, other in zip(halves, halves[::-1], strict=True):
            counts = np.bincount(streams.codes[other, k], minlength=len(table))
            merged[half, k] = merge_codes(table, counts, n_groups, seed)[streams.codes[half, k]]
    found: dict[tuple[int, int], Row] = {}
    for b in range(n_layers):
        for a in range(b):
            value, low, high = _coarse_pair(merged[:, a], merged[:, b], streams.of_frame, halves, n_groups)
            note = None if np.isfinite(low) else f"fewer than {FEWEST_FOR_HALVES} speakers: no interval over speakers"
            found[a, b] = {"value": value, "ci_low": low, "ci_high": high, "ci_note": note, "value_note": None, **facts}
    return found


def excess_information(
    streams: Streams, pairs: Sequence[tuple[int, int]], *, n_shifts: int, seed: int, quiet: bool = True
) -> dict[tuple[int, int], Row]:
    """Return plug-in information less its mean under circular shifts inside clips, with p and family-wise p.

    The same shifts for all pairs, so that the maximum over pairs is one of one shifted world.
    """
    least = max(1, int(np.ceil(MIN_SHIFT_S * streams.frame_rate_hz)))
    orders = shift_orders(streams.lengths, n_shifts, least, seed)
    few = orders[: min(SHIFTS_FOR_INTERVAL, n_shifts)]
    speakers = np.unique(streams.speaker)
    dealt = generator(seed, "groups of speakers").permutation(len(speakers)) % MOST_GROUPS
    group = dealt[np.searchsorted(speakers, streams.of_frame)]
    groups = np.unique(group)
    kept = [_without(streams, group, g, few) for g in groups] if len(groups) >= FEWEST_SPEAKERS else []
    statistics, rows = [], []
    for a, b in progress(pairs, "information between layers", quiet=quiet):
        x, y = streams.codes[:, a], streams.codes[:, b]
        values = shifted_information(x, y, orders)
        deleted = []
        for frames, order in kept:
            part = shifted_information(x[frames], y[frames], order)
            deleted.append(part[0] - part[1:].mean())
        value = float(values[0] - values[1:].mean())
        low, high = _interval(value, np.array(deleted))
        note = None if len(kept) else f"fewer than {FEWEST_SPEAKERS} speakers: no interval over speakers"
        statistics.append(values)
        rows.append({"value": value, "ci_low": low, "ci_high": high, "ci_note": note, "null_mean": values[1:].mean()})
    p, adjusted = p_value(np.stack(statistics)), max_t(np.stack(statistics))
    facts = {"estimator": "plug-in less shift null", "n_permutations": n_shifts, "min_shift_frames": least}
    return {
        pair: {**row, "p_value": p[i], "p_adjusted": adjusted[i], **facts}
        for i, (pair, row) in enumerate(zip(pairs, rows, strict=True))
    }


def _coarse_pair(
    a: Ints, b: Ints, speaker: Ints, halves: Sequence[NDArray[np.bool_]], n_groups: int
) -> tuple[float, float, float]:
    """Return Miller-Madow information of merged codes, averaged over halves by frames, and its jackknife interval."""
    names = np.unique(speaker)
    member = np.searchsorted(names, speaker)
    tables = np.zeros((2, len(names), n_groups, n_groups))
    for half, table in zip(halves, tables, strict=True):
        index = (member[half] * n_groups + a[half]) * n_groups + b[half]
        table += np.bincount(index, minlength=table.size).reshape(table.shape)
    whole = tables.sum(axis=1)
    value = float(_average(whole[:, None])[0])
    if len(names) < FEWEST_FOR_HALVES:
        return value, np.nan, np.nan
    deleted = _average(whole[:, None] - tables)
    return value, *_interval(value, deleted)


def _average(tables: Floats) -> Floats:
    """Return the information of tables (halves, ..., groups, groups), averaged over halves by frames, (...)."""
    n = tables.sum(axis=(-1, -2))
    flat = tables.reshape(*tables.shape[:-2], -1)
    information = (
        entropy(tables.sum(axis=-1), "miller-madow")
        + entropy(tables.sum(axis=-2), "miller-madow")
        - entropy(flat, "miller-madow")
    )
    out: Floats = (n * information).sum(axis=0) / n.sum(axis=0)
    return out


def _interval(value: float, deleted: Floats) -> tuple[float, float]:
    if len(deleted) < FEWEST_SPEAKERS:
        return np.nan, np.nan
    half = t_quantile(len(deleted) - 1) * jackknife_error(deleted, np.zeros(len(deleted), dtype=np.int64))
    return value - half, value + half


def halves_of(streams: Streams, seed: int) -> tuple[tuple[NDArray[np.bool_], NDArray[np.bool_]], str]:
    """Return the frames of either half of the speakers, (frames,) each; of the clips where there is one speaker."""
    unit = "speakers" if streams.n_speakers > 1 else "clips"
    owner = streams.of_frame if unit == "speakers" else np.repeat(np.arange(len(streams.lengths)), streams.lengths)
    names = np.unique(owner)
    first = generator(seed, "halves").permutation(names)[: (len(names) + 1) // 2]
    in_first = np.isin(owner, first)
    return (in_first, ~in_first), unit


def _without(
    streams: Streams, group: Ints, left_out: int, orders: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the frames of all groups but one, and the orders among them: clips are whole, so shifts stay inside."""
    frames = np.flatnonzero(group != left_out)
    place = np.full(len(group), -1, dtype=np.intp)
    place[frames] = np.arange(len(frames))
    return frames, place[orders[:, frames]]


def _pair(streams: Streams, a: int, b: int) -> Row:
    return {
        "layer": f"{streams.layers[a]} and {streams.layers[b].removeprefix('layer ')}",
        "first": streams.layers[a], "second": streams.layers[b], "unit": "bits", "activity": "speech",
        **streams.facts(),
    }  # fmt: skip
