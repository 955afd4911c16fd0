"""Which layer carries what is said: phones by frame, as a probe, as shared information, and as ABX.

Conventions. Frames without a phone (silence) take no part. A frame's phone is the one with most seconds in it; the
information counts the seconds of all of them. The encoder's delay, the lag in frames at which codes and phones share
most information over all layers, is chosen on every fifth clip of each speaker; only the other clips are measured.

Everything but ABX is tested against circular shifts of the phones inside clips, the same for all layers. ABX is tested
against its own mean on shifted codes, by t over speakers (jackknife), adjusted by Holm over layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codecprobe.abx import (
    MODES,
    AbxTask,
    Triples,
    angles,
    average,
    cell_errors,
    find_tokens,
    make_task,
    pair_distances,
    same_code,
)
from codecprobe.codecs.codec import Codec
from codecprobe.corpora.corpus import Phone
from codecprobe.frame_probe import FEW, FEWEST_GROUPS, null_rows, probe_frames
from codecprobe.frames import MOST_FRAMES, Frames, draw_clips, folded, lay_frames, phone_seconds, speaker_groups
from codecprobe.phone_information import MEASURES, joint_seconds, phone_measures
from codecprobe.tokenization import TokenizedCorpus
from probecore.errors import DesignError, InputError
from probecore.information import SHORTEST, shift_orders
from probecore.progress import progress
from probecore.results import Row
from probecore.stats.bootstrap import jackknife_error, t_quantile
from probecore.stats.multiple import holm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LAGS = (-2, -1, 0, 1, 2)
DEVELOPMENT = 5  # every fifth clip of a speaker
MIN_SHIFT_S = 2.0
SHIFTS_FOR_INTERVAL = 9
SHIFTS_FOR_ABX = 4
_NO_SHIFT = np.empty((0, 0), dtype=np.intp)


@dataclass(frozen=True)
class PhoneReading:
    """Rows of all measures, notes, and the curve of the lag."""

    rows: list[Row]
    notes: list[str]
    lags: list[Row]


def read_phones(
    tokenized: TokenizedCorpus, codec: Codec, *, lag: int | None, n_shifts: int, seed: int, device: str, quiet: bool
) -> PhoneReading:
    """Measure how much of the phone each layer carries.

    lag : frames by which codes come later than sound; None chooses it on development clips.

    Raises `InputError` where the corpus does not know its phones.
    """
    truth = _truth(tokenized, seed)
    development, measured = _parted(tokenized, sorted(truth.seconds))
    lags = [] if lag is not None else lag_curve(tokenized, truth, development)
    kept = measured if lags else sorted(development + measured)
    best = max(lags, key=lambda row: (row["value"], -abs(row["lag"])))["lag"] if lags else 0
    chosen = best if lag is None else lag
    frames = _lay(tokenized, truth, kept, chosen)
    least = max(1, int(np.ceil(MIN_SHIFT_S * codec.info.frame_rate_hz)))
    orders = shift_orders(frames.lengths, n_shifts, least, seed)
    rows: list[Row] = []
    rows += _accuracy_rows(frames, codec, orders, seed, device, quiet)
    rows += _information_rows(frames, codec, orders, quiet)
    whole = [i for i in kept if len(tokenized.codes[i]) >= SHORTEST]
    abx, task = _abx_rows(tokenized, truth.phones, whole, codec, chosen, seed, quiet)
    rows += abx
    if lag is not None:
        delay = "as asked for"
    elif lags:
        delay = f"chosen on {len(development)} development clips (every fifth of each speaker), which are not measured"
    else:
        delay = "no clips to choose it on: every fifth of each speaker, if it has 9 frames, would be taken"
    n_frames = sum(len(tokenized.codes[i]) for i in kept)
    several = 100 * float(((frames.truth > 0).sum(axis=1) > 1).mean())
    seen = [row["n_codes"] for row in rows if row["metric"] == "PNMI"]
    notes = [
        f"phones: {len(truth.names)} without silence and stress; {len(frames.truth)} of {n_frames} frames hold one, "
        f"{several:.0f} % of these more than one; codes seen {min(seen)} to {max(seen)}, frames per code "
        f"{len(frames.truth) / max(seen):.0f} to {len(frames.truth) / min(seen):.0f}",
        f"lag {chosen:+d} frames: {delay}",
        f"accuracy and PNMI: p from {n_shifts} circular shifts inside clips of at least {MIN_SHIFT_S:g} s (or a "
        "quarter of the clip), adjusted by max-T over the layers; intervals by a jackknife over speakers",
        f"ABX error: chance is its mean on codes turned inside their clips ({SHIFTS_FOR_ABX} times), p is t over "
        f"speakers, adjusted by Holm; {len(task.tokens)} tokens, {100 * task.forced:.0f} % of them hold no centre of a "
        "frame and were given the nearest frame",
    ]
    if truth.without:
        notes.append(f"{truth.without} clips do not know their phones and were left out")
    if frames.too_short:
        notes.append(f"{frames.too_short} clips with fewer than {SHORTEST} frames of phones were left out")
    if len(truth.seconds) + truth.without < len(tokenized.clips):
        notes.append(f"{len(truth.seconds)} clips were drawn, as many as hold {MOST_FRAMES} frames, speakers in turn")
    return PhoneReading(rows, notes, lags)


def lag_curve(tokenized: TokenizedCorpus, truth: "PhoneTruth", clips: Sequence[int]) -> list[Row]:
    """Return the information that codes and phones share at each lag, mean over layers (bits), on the same frames."""
    rows: list[Row] = []
    edge = max(LAGS)
    usable = [i for i in clips if len(tokenized.codes[i]) > 2 * edge + SHORTEST]
    if not usable:
        return []
    for lag in LAGS:
        total, n = 0.0, 0
        seconds = np.concatenate([truth.seconds[i][edge:-edge] for i in usable])
        codes = np.concatenate([tokenized.codes[i][edge + lag : len(tokenized.codes[i]) - edge + lag] for i in usable])
        said = seconds.sum(axis=1) > 0
        for k in range(codes.shape[1]):
            joint = joint_seconds(codes[said, k], seconds[said], _NO_SHIFT)
            total, n = total + float(phone_measures(joint).information[0]), n + 1
        rows.append({"lag": lag, "value": total / n, "n_frames": int(said.sum())})
    return rows


@dataclass(frozen=True)
class PhoneTruth:
    """Phones of the clips that know them: names, seconds of each in each frame by clip, and the phones themselves."""

    names: tuple[str, ...]
    seconds: Mapping[int, Floats]
    phones: Mapping[int, Sequence[Phone]]
    without: int


def _truth(tokenized: TokenizedCorpus, seed: int) -> PhoneTruth:
    known = {i: clip.phones for i, clip in enumerate(tokenized.clips) if clip.phones}
    if not known:
        raise InputError(
            f"--target phone needs clips that know when each phone sounds, and {tokenized.corpus} has none: take "
            "--corpus embedded, or align the clips and give them as Clip.phones to codecprobe.probe_target"
        )
    names = tuple(sorted({name for phones in known.values() for p in phones if (name := folded(p.name))}))
    if len(names) < 2:
        raise InputError(f"--target phone needs at least 2 different phones; got {len(names)}")
    drawn = [i for i in draw_clips(tokenized, seed) if i in known]
    rate = tokenized.codec.frame_rate_hz
    seconds = {i: phone_seconds(known[i], names, len(tokenized.codes[i]), rate) for i in drawn}
    return PhoneTruth(names, seconds, known, len(tokenized.clips) - len(known))


def _parted(tokenized: TokenizedCorpus, clips: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return development and measured clips: every fifth clip of each speaker, and the others."""
    seen: dict[str, int] = {}
    parts: tuple[list[int], list[int]] = ([], [])
    for i in clips:
        speaker = tokenized.clips[i].speaker
        seen[speaker] = seen.get(speaker, 0) + 1
        parts[0 if seen[speaker] % DEVELOPMENT == 0 else 1].append(i)
    return parts


def _lay(tokenized: TokenizedCorpus, truth: PhoneTruth, clips: Sequence[int], lag: int) -> Frames:
    seconds = [truth.seconds[i] for i in clips]
    return lay_frames(tokenized, clips, seconds, [part.sum(axis=1) > 0 for part in seconds], lag)


def _accuracy_rows(
    frames: Frames, codec: Codec, orders: NDArray[np.intp], seed: int, device: str, quiet: bool
) -> list[Row]:
    found, y = np.unique(frames.truth.argmax(axis=1), return_inverse=True)
    if len(found) < 2:
        raise DesignError("a probe needs at least 2 phones; one phone fills all frames: add clips")
    labels = np.stack([y, *(y[order] for order in orders)], axis=1)
    groups = speaker_groups(frames.of_frame, seed)
    statistics, intervals = [], []
    for k in progress(range(codec.info.n_layers), "probing phones", quiet=quiet):
        values = codec.codebook(k).astype(np.float64)[frames.codes[:, k]]
        score = probe_frames(values, labels, groups, len(found), device)
        statistics.append(score.scores)
        intervals.append((score.ci_low, score.ci_high))
    common = {
        "target": "phone",
        "features": "embedding",
        "metric": "accuracy",
        **frames.sizes(),
        "n_classes": len(found),
    }
    return null_rows(common, codec.info.layers, np.stack(statistics), intervals)


def _information_rows(frames: Frames, codec: Codec, orders: NDArray[np.intp], quiet: bool) -> list[Row]:
    statistics: dict[str, list[Floats]] = {name: [] for name in MEASURES}
    intervals: dict[str, list[tuple[float, float]]] = {name: [] for name in (*MEASURES, "adjusted PNMI")}
    adjusted, information, seen = [], [], []
    few = orders[: min(SHIFTS_FOR_INTERVAL, len(orders))]
    for k in progress(range(codec.info.n_layers), "information on phones", quiet=quiet):
        codes = frames.codes[:, k]
        whole = phone_measures(joint_seconds(codes, frames.truth, orders))
        by_speaker = joint_seconds(codes, frames.truth, few, frames.of_frame)
        without = phone_measures(by_speaker.sum(axis=0) - by_speaker)
        for name in MEASURES:
            statistics[name].append(whole.named(name))
            intervals[name].append(_jackknife(float(whole.named(name)[0]), without.named(name)[:, 0]))
        adjusted.append(float(whole.adjusted()))
        intervals["adjusted PNMI"].append(_jackknife(adjusted[-1], without.adjusted()))
        information.append(whole.information)
        seen.append(len(np.unique(codes)))
    common = {"target": "phone", "features": "code", **frames.sizes()}
    rows = null_rows(
        {**common, "metric": "adjusted PNMI"},
        codec.info.layers,
        np.stack(information),
        intervals["adjusted PNMI"],
        adjusted,
    )
    for name in MEASURES:
        rows += null_rows({**common, "metric": name}, codec.info.layers, np.stack(statistics[name]), intervals[name])
    for row in rows:
        k = codec.info.layers.index(row["layer"])
        row |= {"n_codes": seen[k], "frames_per_code": row["n_frames"] / seen[k], "detail": "purity" in row["metric"]}
    return rows


def _abx_rows(
    tokenized: TokenizedCorpus, phones: Mapping[int, Sequence[Phone]], clips: Sequence[int], codec: Codec, lag: int,
    seed: int, quiet: bool,
) -> tuple[list[Row], AbxTask]:  # fmt: skip
    lengths = [len(tokenized.codes[i]) for i in clips]
    names = sorted({tokenized.clips[i].speaker for i in clips})
    speaker = [names.index(tokenized.clips[i].speaker) for i in clips]
    tokens, forced = find_tokens([phones[i] for i in clips], lengths, speaker, codec.info.frame_rate_hz, lag)
    task = make_task(tokens, forced, seed)
    codes = np.concatenate([tokenized.codes[i] for i in clips])
    least = max(1, int(np.ceil(MIN_SHIFT_S * codec.info.frame_rate_hz)))
    turned = [codes, *(codes[order] for order in shift_orders(lengths, SHIFTS_FOR_ABX, least, seed))]
    made: dict[tuple[str, str], list[Row]] = {(f, mode): [] for mode in MODES for f in ("code", "embedding")}
    for k in progress(range(codec.info.n_layers), "ABX", quiet=quiet):
        table = codec.codebook(k)
        for features, cost in (("code", same_code(len(table))), ("embedding", angles(table))):
            distances = [pair_distances(task, each[:, k], cost) for each in turned] if len(task.pairs) else []
            for mode in MODES:
                row = {
                    "target": "phone", "features": features, "layer": codec.info.layers[k],
                    "metric": f"ABX error {mode}",
                    **_abx_row(task.triples[mode], distances), "n_items": len(task.tokens), "n_frames": len(codes),
                    "forced": task.forced, "detail": features == "embedding",
                }  # fmt: skip
                made[features, mode].append(row)
    rows = []
    for family in made.values():
        p = holm([np.nan if row["p_value"] is None else row["p_value"] for row in family])
        rows += [row | {"p_adjusted": None if np.isnan(q) else float(q)} for row, q in zip(family, p, strict=True)]
    return rows, task


def _abx_row(triples: Triples, distances: Sequence[Floats]) -> Row:
    """Return value, interval, chance and p of one mode; distances of the codes and of each turned copy."""
    nothing: Row = dict.fromkeys(("value", "ci_low", "ci_high", "chance", "p_value"))
    speakers = np.unique(triples.speaker)
    if not len(triples.near):
        reason = "no two phones share a context and a speaker: more clips are needed"
        return nothing | {"value_note": reason, "p_note": reason, "n_groups": 0}
    errors = [cell_errors(triples, each) for each in distances]
    value, chance = average(triples, errors[0]), float(np.mean([average(triples, each) for each in errors[1:]]))
    row = nothing | {"value": value, "chance": chance, "n_groups": len(speakers), "n_cells": len(errors[0])}
    if len(speakers) < FEWEST_GROUPS:
        return row | {"ci_note": FEW, "p_note": FEW}
    without = np.array([[average(triples, each, int(s)) for each in errors] for s in speakers])
    low, high = _jackknife(value, without[:, 0])
    gain = without[:, 1:].mean(axis=1) - without[:, 0]
    error = jackknife_error(gain, np.zeros(len(gain), dtype=np.int64))
    if not (np.isfinite(error) and error > 0):
        reason = (
            "the error is the same whichever speaker is left out"
            if error == 0
            else "a speaker holds all cells of a kind"
        )
        return row | {"p_note": f"no p-value: {reason}", "ci_note": f"no interval: {reason}"}
    from scipy.special import stdtr

    p = float(stdtr(len(speakers) - 1, -(chance - value) / error))
    return row | {
        "ci_low": max(low, 0.0), "ci_high": min(high, 1.0), "p_value": p,
        "p_note": None,
    }  # fmt: skip


def _jackknife(value: float, without: Floats) -> tuple[float, float]:
    n = len(without)
    if n < FEWEST_GROUPS:
        return np.nan, np.nan
    half = t_quantile(n - 1) * jackknife_error(without, np.zeros(n, dtype=np.int64))
    return value - half, min(value + half, 1.0)
