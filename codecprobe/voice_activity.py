"""Which frames of a codec hold speech: an energy detector on the audio, not on the codes.

Conventions. Frame i of a codec with F frames a second covers the seconds [i / F, (i + 1) / F) of a clip. Its level is
the mean square of its samples in dB, at the rate the clip was recorded at. A frame is speech where its level lies
within `RANGE_DB` of the loudest frame of the clip. A frame past the end of the audio is not. The detector knows levels
only: in loud noise everything is speech, and the delay of a codec's encoder is not made up for.
"""

import numpy as np
from numpy.typing import NDArray

from codecprobe.corpora.corpus import Audio
from codecprobe.tokenization import TokenizedCorpus
from probecore.progress import progress
from probecore.provenance import digest
from probecore.store import ArrayCache

RANGE_DB = 35.0
ACTIVITIES = ("speech", "all")
KEY = 1  # raise when the same clip would get another mask
Mask = NDArray[np.bool_]


def speech_frames(audio: Audio, n_frames: int, frame_rate_hz: float) -> Mask:
    """Return which of a clip's codec frames are speech, (n_frames,)."""
    power = frame_power(audio, n_frames, frame_rate_hz)
    speech: Mask = (power > 0) & (power >= power.max(initial=0.0) * 10 ** (-RANGE_DB / 10))
    return speech


def frame_power(audio: Audio, n_frames: int, frame_rate_hz: float) -> NDArray[np.float64]:
    """Return the mean square of the samples of each codec frame, (n_frames,), 0 past the end of the audio."""
    edges = np.round(np.arange(n_frames + 1) * audio.sample_rate_hz / frame_rate_hz).astype(np.int64)
    edges = np.minimum(edges, len(audio.samples))
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio.samples, dtype=np.float64))])
    power: NDArray[np.float64] = np.diff(energy[edges]) / np.maximum(np.diff(edges), 1)
    return power


def activity_masks(
    tokenized: TokenizedCorpus, cache: ArrayCache, *, quiet: bool = False
) -> dict[str, tuple[Mask, ...]]:
    """Return for "speech" and for "all" the frames of every clip that count, (frames,) each.

    What was computed before is read from the cache, by the content of the audio.
    """
    rate_hz = tokenized.codec.frame_rate_hz
    found = []
    for clip, codes in progress(
        list(zip(tokenized.clips, tokenized.codes, strict=True)), "voice activity", quiet=quiet
    ):
        key = digest("voice activity", clip.content_hash(), f"{KEY} {RANGE_DB:g} {rate_hz!r} {len(codes)}")
        known = cache.get(key)
        if known is None:
            known = {"speech": speech_frames(clip.read(), len(codes), rate_hz)}
            cache.put(key, known)
        found.append(known["speech"].astype(np.bool_))
    return {"speech": tuple(found), "all": tuple(np.ones(len(codes), dtype=np.bool_) for codes in tokenized.codes)}


def describe_activity(masks: dict[str, tuple[Mask, ...]]) -> str:
    """Return one sentence that says what counts as speech and how much of the corpus it is."""
    kept, total = (sum(int(mask.sum()) for mask in masks[name]) for name in ACTIVITIES)
    return (
        f"speech: frames within {RANGE_DB:g} dB of the loudest of their clip, {kept} of {total}; the rows of all "
        "frames are in the details"
    )
