"""Which layer carries how it is said: pitch and level by frame, raw and relative to the speaker.

Conventions. Pitch is the log of the median F0 of a frame that is voiced in at least half of it; level is in dB, on
frames of speech. Raw values hold the speaker's (and the recording's) mean, so knowing only who speaks explains much of
them: `speaker_mean_r2`, the share of variance between speakers, stands in every row. The normalised targets are
z-scored within each speaker, and only these are prosody proper.

Features are the code vectors of a frame and its two neighbours. R2 is that of leave-speaker-out ridge (`frame_probe`);
it can be negative. For p whole curves are exchanged between clips of one session (`frames.curve_orders`); chance is the
mean over exchanges in which no clip keeps its curve: what a layer gains by knowing speaker, session and the fall of any
clip. So p tests whether it follows the curve of its own clip.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.codec import Codec
from codecprobe.frame_probe import null_rows, probe_frames
from codecprobe.frames import MOST_FRAMES, Frames, curve_orders, draw_clips, frame_pitch, lay_frames, speaker_groups
from codecprobe.pitch import HOP_S, pitch_track
from codecprobe.tokenization import TokenizedCorpus
from codecprobe.voice_activity import RANGE_DB, frame_power, speech_frames
from probecore.errors import DesignError
from probecore.information import SHORTEST
from probecore.progress import progress
from probecore.provenance import digest
from probecore.results import Row
from probecore.store import ArrayCache

Floats = NDArray[np.float64]
TARGETS = ("f0", "f0-normalised", "energy", "energy-normalised")
ORDERS_FOR_CHANCE = 19
FEWEST_EXCHANGES = 20  # fewer give no p of .05
KEY = 1  # raise when the same clip would get other values
_FLOOR = 1e-10


@dataclass(frozen=True)
class ProsodyReading:
    """Rows, and what a reader must know."""

    rows: list[Row]
    notes: list[str]


def read_prosody(
    tokenized: TokenizedCorpus,
    codec: Codec,
    target: str,
    cache: ArrayCache,
    *,
    n_orders: int,
    seed: int,
    device: str,
    quiet: bool,
) -> ProsodyReading:
    """Measure how well each layer predicts pitch or level, one of `TARGETS`, for speakers it has not heard.

    Raises `DesignError` where the target does not vary.
    """
    clips = draw_clips(tokenized, seed)
    kind = target.removesuffix("-normalised")
    truth, counts, known = [], [], 0
    for i in progress(clips, "pitch" if kind == "f0" else "level", quiet=quiet):
        values, mask, exact = _of_clip(tokenized, i, kind, cache)
        truth.append(np.where(mask, values, 0.0))
        counts.append(mask)
        known += exact
    frames = lay_frames(tokenized, clips, truth, counts)
    values = speaker_scores(frames) if target.endswith("-normalised") else frames.truth
    if not np.ptp(values) > 0:
        raise DesignError(f"--target {target} does not vary over these frames: nothing to predict")
    orders, blocks, n_exchanges = curve_orders(frames, n_orders, seed)
    others, _, _ = curve_orders(frames, ORDERS_FOR_CHANCE, seed, deranged=True)
    labels = np.stack([values, *(values[order] for order in (*orders, *others))], axis=1)
    groups = speaker_groups(frames.of_frame, seed)
    statistics, intervals, chance = [], [], []
    for k in progress(range(codec.info.n_layers), f"probing {target}", quiet=quiet):
        vectors = codec.codebook(k).astype(np.float64)[frames.around[:, :, k]].reshape(len(values), -1)
        score = probe_frames(vectors, labels, groups, 0, device)
        statistics.append(score.scores[: 1 + n_orders])
        chance.append(float(score.scores[1 + n_orders :].mean()))
        intervals.append((score.ci_low, score.ci_high))
    between = speaker_mean_r2(values, frames.of_frame)
    common = {
        "target": target, "features": "embedding", "metric": "R2", **frames.sizes(), "speaker_mean_r2": between,
    }  # fmt: skip
    rows = null_rows(common, codec.info.layers, np.stack(statistics), intervals, chance=chance)
    if n_exchanges < FEWEST_EXCHANGES:
        reason = (
            f"no p-value: curves can be exchanged in {n_exchanges} ways only; record 4 or more clips of each speaker"
        )
        rows = [row | {"p_value": None, "p_adjusted": None, "chance": None, "p_note": reason} for row in rows]
    rows.append(_speaker_row(target, frames, between))
    return ProsodyReading(
        rows, [*_notes(target, tokenized, clips, frames, known), _null_note(frames, blocks, n_orders)]
    )


def speaker_scores(frames: Frames) -> Floats:
    """Return the truth z-scored within each speaker, (frames,); 0 for a speaker whose values do not vary."""
    of = frames.of_frame
    n = np.bincount(of)
    centred = frames.truth - (np.bincount(of, frames.truth) / n)[of]
    spread = np.sqrt(np.bincount(of, centred**2) / n)
    scores: Floats = np.where(spread[of] > 0, centred / np.where(spread > 0, spread, 1.0)[of], 0.0)
    return scores


def speaker_mean_r2(values: Floats, speaker: NDArray[np.int64]) -> float:
    """Return the R2 of predicting every frame by its speaker's own mean: the share of variance between speakers."""
    mean = np.bincount(speaker, values) / np.bincount(speaker)
    return float(1 - np.square(values - mean[speaker]).sum() / np.square(values - values.mean()).sum())


def _of_clip(
    tokenized: TokenizedCorpus, i: int, kind: str, cache: ArrayCache
) -> tuple[Floats, NDArray[np.bool_], bool]:
    """Return a value for each frame of a clip, which of them count, and whether the corpus knew the truth."""
    clip, n, rate = tokenized.clips[i], len(tokenized.codes[i]), tokenized.codec.frame_rate_hz
    if kind == "f0" and clip.f0_hz is not None:
        pitch = frame_pitch(clip.f0_hz, n, rate)
        return pitch, np.isfinite(pitch), True
    key = digest(f"frame {kind}", clip.content_hash(), f"{KEY} {HOP_S:g} {RANGE_DB:g} {rate!r} {n}")
    found = cache.get(key)
    if found is None:
        audio = clip.read()
        if kind == "f0":
            pitch = frame_pitch(pitch_track(audio.samples, audio.sample_rate_hz), n, rate)
            found = {"values": pitch, "counts": np.isfinite(pitch)}
        else:
            level = 10 * np.log10(frame_power(audio, n, rate) + _FLOOR)
            found = {"values": level, "counts": speech_frames(audio, n, rate)}
        cache.put(key, found)
    return found["values"].astype(np.float64), found["counts"].astype(np.bool_), False


def _speaker_row(target: str, frames: Frames, between: float) -> Row:
    why = "not a probe: the mean of the speaker who is tested is known to it"
    return {
        "target": target, "features": "baseline", "layer": "speaker mean", "metric": "R2", "value": between,
        "ci_low": None, "ci_high": None, "ci_note": why, "chance": None, "p_value": None, "p_adjusted": None,
        "p_note": why, "speaker_mean_r2": between, **frames.sizes(),
    }  # fmt: skip


def _null_note(frames: Frames, blocks: NDArray[np.int64], n_orders: int) -> str:
    inside = int((blocks >= 0).sum())
    where = "sessions" if inside == len(blocks) else "speakers" if not inside else f"sessions ({inside}) or speakers"
    alone = int((np.unique(blocks, return_counts=True)[1] == 1).sum())
    return (
        f"leave-speaker-out ridge on code vectors of three frames; p: {n_orders} exchanges of whole curves between "
        f"clips, inside {where}, adjusted by max-T over layers; intervals: jackknife over speakers"
        + (f"; {alone} clips have no other to exchange with and stay as they are" if alone else "")
    )


def _notes(target: str, tokenized: TokenizedCorpus, clips: list[int], frames: Frames, known: int) -> list[str]:
    total = sum(len(tokenized.codes[i]) for i in clips)
    if target.startswith("f0"):
        source = "exact, from the corpus" if known == len(clips) else "tracked on the audio (YIN, 60 to 400 Hz)"
        if 0 < known < len(clips):
            source = f"exact in {known} clips, tracked on the audio (YIN, 60 to 400 Hz) in the others"
        notes = [f"log F0, {source}; {len(frames.truth)} of {total} frames are voiced in at least half of their length"]
    else:
        notes = [
            f"level in dB on frames within {RANGE_DB:g} dB of the loudest of their clip, {len(frames.truth)} of {total}"
        ]
    if target.endswith("-normalised"):
        notes.append("z-scored within each speaker: the speaker's mean and spread are taken out")
    else:
        notes.append(
            "raw values hold the speaker's mean, so chance is what knowing speaker and session gives, not 0; "
            f"take --target {target}-normalised for the curve alone"
        )
    if len(clips) < len(tokenized.clips):
        notes.append(f"{len(clips)} clips were drawn, as many as hold {MOST_FRAMES} frames, speakers in turn")
    if frames.too_short:
        notes.append(f"{frames.too_short} clips with fewer than {SHORTEST} such frames were left out")
    return notes
