"""Codes to activations: windows of one length, and what each layer looks like to a probe.

Conventions. An item is one window of `window_s` seconds, the first of its clip, because clip length alone tells
speakers apart; a clip that is shorter is left out and named. Every layer is represented on the same windows, as

    histogram    Hellinger: square root of the code frequencies, then unit length, (codebook size,)
    embedding    mean and standard deviation over time of the code vectors, (2 x dim,)
    cumulative   the embeddings of layers 0..k side by side: what a layer adds, given the ones before

None of them knows the order of frames inside a window. Groups are sessions: what must be new at test. The speaker
was assigned to sessions and sex to speakers, so these are the units of their permutation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codecprobe import acoustics
from codecprobe.codecs.codec import Codec, CodecInfo
from codecprobe.corpora.corpus import Clip
from probecore.activations import Activations, Label
from probecore.errors import InputError

if TYPE_CHECKING:
    from codecprobe.tokenization import TokenizedCorpus

FEATURES = ("embedding", "histogram", "cumulative")


@dataclass(frozen=True)
class Windows:
    """One window per clip: its codes (frames, layers) and the whole clip's length; `too_short` names the rest."""

    clips: tuple[Clip, ...]
    codes: tuple[NDArray[np.int64], ...] = field(repr=False)
    durations_s: tuple[float, ...] = field(repr=False)
    window_s: float
    codec: CodecInfo
    too_short: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return len(self.codes[0])


def cut_windows(tokenized: "TokenizedCorpus", window_s: float = 3.0) -> Windows:
    """Cut the first `window_s` seconds of every clip.

    Raises `InputError` when the window is shorter than one frame or no clip is long enough.
    """
    frames = int(window_s * tokenized.codec.frame_rate_hz + 1e-9)  # 0.58 s at 50 Hz are 29 frames, not 28.999...
    if frames < 1:
        raise InputError(
            f"--window must hold at least 1 frame of {1 / tokenized.codec.frame_rate_hz:g} s; got {window_s:g} s"
        )
    fits = [duration >= window_s for duration in tokenized.durations_s]
    if not any(fits):
        raise InputError(
            f"--window {window_s:g} s is longer than every clip; the longest has {max(tokenized.durations_s):.2f} s"
        )
    kept = [i for i, fit in enumerate(fits) if fit]
    return Windows(
        clips=tuple(tokenized.clips[i] for i in kept),
        codes=tuple(tokenized.codes[i][:frames] for i in kept),
        durations_s=tuple(tokenized.durations_s[i] for i in kept),
        window_s=window_s,
        codec=tokenized.codec,
        too_short=tuple(clip.clip_id for clip, fit in zip(tokenized.clips, fits, strict=True) if not fit),
    )


def represent(windows: Windows, codec: Codec, features: str = "embedding") -> Activations:
    """Return the activations of all layers under one of `FEATURES`; each layer is computed when it is read."""
    if features == "histogram":
        sizes = codec.info.codebook_sizes
        return _activations(windows, codec.info.layers, lambda k: histogram(windows.codes, k, sizes[k]), features)
    tables = [codec.codebook(k) for k in range(codec.info.n_layers)]
    if features == "embedding":
        return _activations(windows, codec.info.layers, lambda k: embedding(windows.codes, k, tables[k]), features)
    if features == "cumulative":
        names = ["layer 0", *(f"layers 0-{k}" for k in range(1, codec.info.n_layers))]
        layers = [_standardised(embedding(windows.codes, k, table)) for k, table in enumerate(tables)]
        return _activations(windows, names, lambda k: np.concatenate(layers[: k + 1], axis=1), features)
    raise InputError(f"features must be one of {', '.join(FEATURES)}; got {features!r}")


def baselines(windows: Windows, energy: NDArray[np.float64], mfcc: NDArray[np.float64]) -> Activations:
    """Return the activations of what needs no codec: clip length, and energy and MFCC of the same windows."""
    lengths = np.stack([acoustics.clip_length(duration) for duration in windows.durations_s])
    values = (lengths, energy, mfcc)
    return _activations(windows, acoustics.BASELINES, lambda k: values[k], "baseline")


def histogram(codes: Sequence[NDArray[np.int64]], layer: int, size: int) -> NDArray[np.float64]:
    """Return Hellinger histograms of one layer, (windows, size), each of unit length."""
    counts = np.stack([np.bincount(window[:, layer], minlength=size) for window in codes]).astype(np.float64)
    hellinger: NDArray[np.float64] = np.sqrt(counts / counts.sum(axis=1, keepdims=True))
    return hellinger


def embedding(codes: Sequence[NDArray[np.int64]], layer: int, table: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return mean and standard deviation over time of the code vectors of one layer, (windows, 2 x dim)."""
    vectors = table[np.stack([window[:, layer] for window in codes])].astype(np.float64)
    return np.concatenate([vectors.mean(axis=1), vectors.std(axis=1)], axis=1)


def _activations(
    windows: Windows, names: Sequence[str], values: Callable[[int], NDArray[np.float64]], features: str
) -> Activations:
    index = {name: k for k, name in enumerate(names)}
    session = np.array([clip.session for clip in windows.clips])
    speaker = np.array([clip.speaker for clip in windows.clips])
    labels = {"speaker": Label(speaker, units=session), "session": Label(session)}
    shared = set.intersection(*(set(clip.labels) for clip in windows.clips))
    for name in sorted(shared - set(labels)):
        values_of = [clip.labels[name] for clip in windows.clips]
        labels[name] = Label(values_of, units=speaker if name == "sex" else None)
    return Activations(
        layers=tuple(names),
        read=lambda name: values(index[name]),
        groups=session,
        labels=labels,
        items=tuple(clip.clip_id for clip in windows.clips),
        rate_hz=windows.codec.frame_rate_hz,
        info=_facts(windows, features),
    )


def _facts(windows: Windows, features: str) -> dict[str, Any]:
    return {
        "features": features,
        "window_s": windows.window_s,
        "frames": windows.frames,
        "codec": windows.codec.name,
        "weights_hash": windows.codec.weights_hash,
    }


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Z-score over all windows (label-blind, so a permutation test stays exact); constant columns become 0."""
    spread = values.std(axis=0)
    scaled: NDArray[np.float64] = (values - values.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    return scaled
