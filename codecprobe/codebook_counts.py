"""How often each code of a layer occurs, and what follows from it: entropy, codes used, dead codes, use in training.

Conventions. Bits and codes. Entropies by Chao-Shen where frames are fewer than 5 per code seen, else by Miller-Madow;
the others stand in the details. Intervals are t intervals of the jackknife over speakers (other speakers of this kind,
in equal numbers), cut off at what is possible. `most` is the largest value possible; an estimate may exceed it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.codec import Codec, CodecInfo
from codecprobe.tokenization import TokenizedCorpus
from probecore.codebooks import (
    ESTIMATORS,
    chao1,
    default_estimator,
    detection_limit,
    divergence,
    entropy,
    frames_to_see_all,
    rarefied_codes,
)
from probecore.errors import InputError
from probecore.results import Row
from probecore.stats.bootstrap import jackknife_error, t_quantile
from probecore.validation import at_least, codes_of

Floats = NDArray[np.float64]
FEWEST_SPEAKERS = 3
TOO_FEW = f"fewer than {FEWEST_SPEAKERS} speakers: no interval over speakers"


@runtime_checkable
class CountsItsTraining(Protocol):
    """A codec whose checkpoint holds how often each code was used in training."""

    def training_usage(self, layer: int) -> NDArray[np.float32]:
        """Return one number per code of a layer, (codes,), in proportion to its use."""
        ...


@dataclass(frozen=True)
class Counts:
    """How often each code of one layer occurs, by speaker (speakers, codes), on `n_clips` clips."""

    layer: str
    activity: str
    by_speaker: Floats
    n_clips: int

    @property
    def total(self) -> Floats:
        """Counts of all speakers, (codes,)."""
        return np.asarray(self.by_speaker.sum(axis=0))

    @property
    def without_one(self) -> Floats:
        """Counts without each speaker, (speakers, codes)."""
        return self.total - self.by_speaker

    @property
    def can_jackknife(self) -> bool:
        """Whether there are speakers enough for an interval."""
        return len(self.by_speaker) >= FEWEST_SPEAKERS


def count_codes(tokenized: TokenizedCorpus, masks: Sequence[NDArray[np.bool_]], activity: str) -> list[Counts]:
    """Count the codes of each layer by speaker, on the frames that count; clips without any take no part."""
    speaker, names = codes_of([clip.speaker for clip in tokenized.clips])
    counts = [np.zeros((len(names), size)) for size in tokenized.codec.codebook_sizes]
    for who, codes, mask in zip(speaker, tokenized.codes, masks, strict=True):
        for k, by_speaker in enumerate(counts):
            by_speaker[who] += np.bincount(codes[mask, k], minlength=by_speaker.shape[1])
    n_clips = sum(bool(mask.any()) for mask in masks)
    return [
        Counts(name, activity, table[table.sum(axis=1) > 0], n_clips)
        for name, table in zip(tokenized.codec.layers, counts, strict=True)
    ]


def chosen_budget(counts: Counts, budget: int | None) -> int:
    """Return the frames at which codes are counted, a round number that every jackknife sample has."""
    n = counts.total
    least = int(counts.without_one.sum(axis=1).min()) if counts.can_jackknife else int(n.sum())
    if budget is None:
        rounds = [step * 10**power for power in range(9) for step in (1, 2, 5)]
        return max([number for number in rounds if number <= least], default=1)
    if at_least(budget, 1, "--budget") > least:
        raise InputError(
            f"--budget must be at most the {least} frames of speech that are left without the longest speaker; got "
            f"{budget}: lower it or add clips"
        )
    return budget


def layer_rows(counts: Counts, budget: int) -> list[Row]:
    """Return the rows of one layer: entropies, perplexity, efficiency, codes used, codes in use, codes not seen."""
    total, size = counts.total, counts.by_speaker.shape[1]
    best = default_estimator(total)
    facts = _facts(counts)
    whole = float(np.log2(size))
    n = int(total.sum())
    ends: tuple[float | None, ...] = ()
    rows: list[Row] = []
    for estimator in ESTIMATORS:
        value = float(entropy(total, estimator))
        low, high = _jackknife(value, counts, partial(entropy, estimator=estimator), whole)
        chosen = {"estimator": estimator, "most": whole, "unit": "bits", **facts}
        name = "entropy" if estimator == best else f"entropy, {estimator}"
        rows.append({"metric": name, "value": value, "ci_low": low, "ci_high": high, **chosen,
                     "detail": facts["detail"] or estimator != best})  # fmt: skip
        if estimator == best:
            ends = (value, low, high)
    for metric, most, unit, ends_of in (
        ("perplexity", size, "codes", _scaled(ends, lambda end: 2.0**end)),
        ("efficiency", 1.0, "share", _scaled(ends, lambda end: end / whole if whole else np.nan)),
    ):
        rows.append({"metric": metric, "value": ends_of[0], "ci_low": ends_of[1], "ci_high": ends_of[2],
                     "estimator": best, "most": most, "unit": unit, **facts, "detail": True})  # fmt: skip
    used = float(rarefied_codes(total, budget)) if n >= budget else None
    low, high = (
        (None, None) if used is None else _jackknife(used, counts, partial(rarefied_codes, n_frames=budget), size)
    )
    rows.append({"metric": "codes used", "value": used, "ci_low": low, "ci_high": high, "budget": budget,
                 "estimator": f"rarefied to {budget} frames", "most": min(size, budget), "unit": "codes",
                 **facts})  # fmt: skip
    in_use = float(chao1(total))
    low, high = _jackknife(in_use, counts, chao1, size)
    rows.append({"metric": "codes in use", "value": in_use, "ci_low": low, "ci_high": high, "most": size,
                 "estimator": "chao1 (lower bound)", "unit": "codes", **facts, "detail": True})  # fmt: skip
    rows.append({**facts, "metric": "codes not seen", "value": int((total == 0).sum()), "ci_low": None,
                 "ci_high": None, "ci_note": "a count of these frames: read it with its detection limit",
                 "detection_limit": detection_limit(n), "frames_to_see_all": frames_to_see_all(size),
                 "estimator": "counted", "most": size, "unit": "codes"})  # fmt: skip
    return rows


def bit_rate_row(arm: Sequence[Counts], info: CodecInfo) -> Row:
    """Return the effective bit rate, frame rate x sum of entropies, beside the nominal one with log2 K for each."""
    f = info.frame_rate_hz
    totals = [counts.total for counts in arm]
    estimators = [default_estimator(total) for total in totals]
    value = f * sum(float(entropy(total, e)) for total, e in zip(totals, estimators, strict=True))
    low, high = None, None
    if arm[0].can_jackknife:
        deleted = f * np.sum([entropy(c.without_one, e) for c, e in zip(arm, estimators, strict=True)], axis=0)
        low, high = _interval(value, deleted)
    return {
        "metric": "bit rate", "layer": "all layers", "value": value, "ci_low": low, "ci_high": high,
        "most": f * float(sum(np.log2(size) for size in info.codebook_sizes)), "unit": "bit/s",
        "estimator": "sum of entropies (upper bound)", **{k: v for k, v in _facts(arm[0]).items() if k != "layer"},
    }  # fmt: skip


def training_rows(arm: Sequence[Counts], codec: Codec) -> tuple[list[Row], str]:
    """Return how the checkpoint says the codes were used in training, beside what was observed, and a note on it."""
    if not isinstance(codec, CountsItsTraining):
        return [], f"codec {codec.info.name} holds no counts of its training: no usage in training to compare with"
    rows: list[Row] = []
    flat = []
    for k, counts in enumerate(arm):
        usage = np.asarray(codec.training_usage(k), dtype=np.float64)
        facts = {**_facts(counts), "activity": "training", "detail": True}
        if not np.isfinite(usage).all() or (usage < 0).any() or usage.max() <= usage.min() * (1 + 1e-6):
            flat.append(counts.layer)
            reason = "all entries of the checkpoint are equal or not counts: they say nothing of use in training"
            rows.append({"metric": "training perplexity", "value": None, "value_note": reason, **facts})
            continue
        rows += _training_of_layer(counts, usage, facts)
    note = "usage in training: a moving average near the end of training, not a total; see the details"
    if flat:
        note += f"; no counts in {len(flat)} of {len(arm)} layers (all equal: normalised or never trained)"
    return rows, note


def _training_of_layer(counts: Counts, usage: Floats, facts: Row) -> list[Row]:
    prior = usage / usage.sum()
    size, total = len(prior), counts.total
    limit = detection_limit(int(total.sum()))
    estimator = default_estimator(total)
    perplexity = float(2 ** -(prior * np.log2(np.where(prior > 0, prior, 1.0))).sum())
    moving = {
        "estimator": "moving average of the checkpoint",
        **facts,
        "ci_note": "a fact of the checkpoint, no sample",
    }
    distance = divergence(total, usage, estimator)
    low, high = None, None
    if counts.can_jackknife:
        low, high = _interval(distance, np.array([divergence(c, usage, estimator) for c in counts.without_one]))
    return [
        {"metric": "training perplexity", "value": perplexity, "most": size, "unit": "codes", **moving},
        {"metric": "rare in training", "value": int((prior < 1e-6).sum()), "most": size, "unit": "codes",
         **moving, "estimator": "share below 1e-6"},
        {"metric": "used in training, not seen", "value": int(((total == 0) & (prior > limit)).sum()),
         "unit": "codes", "most": size, "detection_limit": limit, **moving,
         "estimator": "share above the detection limit"},
        {"metric": "divergence from training", "value": distance, "ci_low": low, "ci_high": high, "unit": "bits",
         "estimator": f"cross-entropy less {estimator}", **facts},
    ]  # fmt: skip


def _facts(counts: Counts) -> Row:
    return {
        "layer": counts.layer, "activity": counts.activity, "n_frames": int(counts.total.sum()),
        "n_clips": counts.n_clips, "n_speakers": len(counts.by_speaker),
        "ci_note": None if counts.can_jackknife else TOO_FEW, "detail": counts.activity != "speech",
    }  # fmt: skip


def _jackknife(
    value: float, counts: Counts, function: Callable[[Floats], Floats], most: float
) -> tuple[float | None, float | None]:
    """Return the interval of a function of counts (..., codes), at most `most`; None where speakers are too few."""
    if not counts.can_jackknife:
        return None, None
    low, high = _interval(value, function(counts.without_one))
    return max(low, 0.0), min(high, max(most, value))


def _interval(value: float, deleted: Floats) -> tuple[float, float]:
    error = jackknife_error(deleted, np.zeros(len(deleted), dtype=np.int64))
    half = t_quantile(len(deleted) - 1) * error
    return value - half, value + half


def _scaled(ends: Sequence[float | None], function: Callable[[float], float]) -> list[float | None]:
    return [None if end is None else function(end) for end in ends]
