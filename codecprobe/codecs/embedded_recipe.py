"""The recipe that makes the weights of the embedded codec from synthetic voices.

`python -m codecprobe.codecs.embedded_recipe` writes them into the package (about 15 s of one core). They are fitted in
closed form or by k-means from a fixed seed, on voices and sentences that no embedded corpus of a small seed
contains. Planted, in this order:

    layer 0      content: the phone a linear read-out hears; its embedding is the mean latent of that phone over
                 voices. The read-out is fitted so that its errors, too, depend little on who speaks.
    layers 1-2   voice: linear discriminants of the speakers (sessions count as noise), quantised twice; their
                 embeddings are the mean of what layer 0 left of the latent.
    layers 3-7   detail: residual vector quantisation of the rest.

The flat codec has layer 0 and, as layers 1-7, a residual quantisation of the latent that the content around the
frame predicts: everything in it is a function of content.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import scipy.linalg
from numpy.typing import NDArray

from codecprobe.codecs.embedded_features import (
    CONTENT_FEATURES,
    content_codes,
    content_features,
    content_units,
    context,
    nearest,
    voice_features,
)
from codecprobe.codecs.vocoder import HOP, RATE_HZ, Analysis, analyse, latent
from codecprobe.corpora.corpus import Phone
from codecprobe.corpora.embedded import embedded_corpus
from codecprobe.corpora.phones import PHONES
from probecore.seeds import generator

WEIGHTS = Path(__file__).parent / "data" / "embedded.safetensors"
RECIPE = "embedded codec 1"
CORPUS_SEEDS = tuple(range(910_000, 910_016))
CORPUS_SIZE = {"speakers": 8, "sessions": 2, "clips": 2}
UNITS = 1024
ENTRIES = 64
DETAIL_LAYERS = 5
FLAT_LAYERS = 7
VOICE_DIMENSIONS = 6
RIDGE = 1.0
SPEAKER_PENALTY = 5.0
RARITY = 0.3  # scores are divided by the frequency of their phone to this power, or rare phones are never heard
_KMEANS_ROWS, _KMEANS_ROUNDS = 12_000, 12


def fit(seeds: Sequence[int] = CORPUS_SEEDS) -> dict[str, NDArray[Any]]:
    """Return the weights; the same machine gives the same bytes, another one the same codes but for rare ties."""
    frames = _training(seeds)
    weights: dict[str, NDArray[Any]] = {}
    _fit_content(frames, weights)
    for clip in frames:
        clip.content = content_codes(clip.analysis, weights)
    content = np.concatenate([clip.content for clip in frames])
    spectra = np.concatenate([latent(clip.analysis) for clip in frames])
    weights["layer 0"] = _means(spectra, content, len(PHONES))
    rest = spectra - weights["layer 0"][content]
    rest = _fit_voice(frames, rest, weights)
    for layer in range(3, 3 + DETAIL_LAYERS):
        weights[f"layer {layer}"], rest = _quantise(rest, f"detail {layer}")
    _fit_flat(frames, spectra, weights)
    return weights


def phone_shares(phones: tuple[Phone, ...], n_frames: int) -> NDArray[np.float64]:
    """Return the share of each frame that each phone fills, (frames, phones); what no phone fills is silence."""
    edges = np.arange(n_frames + 1) * HOP / RATE_HZ
    shares = np.zeros((n_frames, len(PHONES)))
    for phone in phones:
        inside = np.minimum(edges[1:], phone.end_s) - np.maximum(edges[:-1], phone.start_s)
        shares[:, PHONES.index(phone.name)] += np.clip(inside, 0, None)
    shares *= RATE_HZ / HOP
    shares[:, 0] += np.clip(1 - shares.sum(axis=1), 0, None)
    return shares


@dataclass
class _Frames:
    """One training clip: its analysis, the phones in its frames, its speaker, later its content codes."""

    analysis: Analysis
    shares: NDArray[np.float64]
    speaker: str
    content: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def _training(seeds: Sequence[int]) -> list[_Frames]:
    """Return the training clips: other voices, channels and sentences for each seed."""
    frames = []
    for seed in seeds:
        for clip in embedded_corpus(seed, **CORPUS_SIZE).clips:
            analysis = analyse(clip.read().samples)
            shares = phone_shares(clip.phones or (), analysis.n_frames)
            frames.append(_Frames(analysis, shares, f"{seed}/{clip.speaker}"))
    return frames


def _fit_content(frames: list[_Frames], weights: dict[str, NDArray[Any]]) -> None:
    """Fit the read-out of phones: ridge regression on the shares of phones in a frame, with one more penalty.

    The penalty is the scatter of the units' means by speaker and phone around their means by phone: directions along
    which one phone looks different in different speakers are used less (nuisance attribute projection, made soft).
    """
    typical = np.stack([clip.analysis.log_mel.mean(axis=0, dtype=np.float64) for clip in frames]).mean(axis=0)
    features = [content_features(clip.analysis, typical) for clip in frames]
    stacked = np.concatenate(features)
    rng = generator(0, RECIPE, "content units")
    weights["content.typical"] = typical
    weights["content.mean"], weights["content.scale"] = stacked.mean(axis=0), stacked.std(axis=0)
    spread = 1.5 / np.sqrt(CONTENT_FEATURES)
    weights["content.random"] = (spread * rng.standard_normal((CONTENT_FEATURES, UNITS))).astype(np.float16)
    weights["content.bias"] = rng.standard_normal(UNITS)
    n_units = UNITS + CONTENT_FEATURES + 1
    gram, cross = np.zeros((n_units, n_units)), np.zeros((len(PHONES), n_units))
    shares_gram = np.zeros((len(PHONES), len(PHONES)))
    names = sorted({clip.speaker for clip in frames})
    units_of = np.zeros((len(names), len(PHONES), n_units))
    shares_of = np.zeros((len(names), len(PHONES), len(PHONES)))
    counts_of = np.zeros((len(names), len(PHONES)))
    for clip, rows in zip(frames, features, strict=True):
        units = content_units(rows, weights)
        gram += units.T @ units
        cross += clip.shares.T @ units
        shares_gram += clip.shares.T @ clip.shares
        heard = np.eye(len(PHONES))[clip.shares.argmax(axis=1)]
        speaker = names.index(clip.speaker)
        units_of[speaker] += heard.T @ units
        shares_of[speaker] += heard.T @ clip.shares
        counts_of[speaker] += heard.sum(axis=0)
    by_phone = np.linalg.solve(shares_gram + 1e-6 * np.eye(len(PHONES)), cross)
    for count, units, shares in zip(counts_of, units_of, shares_of, strict=True):
        said = count > 0
        shift = (units - shares @ by_phone)[said] / np.sqrt(count[said])[:, None]
        whole = shift.T @ np.sqrt(count[said] / count.sum())
        gram += SPEAKER_PENALTY * (shift.T @ shift + 5 * np.outer(whole, whole))
    readout = np.linalg.solve(gram + RIDGE * np.eye(n_units), cross.T)
    frequency = np.diag(shares_gram) / np.diag(shares_gram).mean()
    weights["content.readout"] = (readout / frequency**RARITY).astype(np.float32)


def _fit_voice(
    frames: list[_Frames], rest: NDArray[np.float64], weights: dict[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """Fit the discriminants of the speakers and layers 1 and 2; return what they leave of the latent."""
    ends = np.cumsum([len(clip.content) for clip in frames])
    parts = np.split(rest, ends[:-1])
    heard = np.concatenate([voice_features(part, clip.analysis) for part, clip in zip(parts, frames, strict=True)])
    speaker = np.repeat([clip.speaker for clip in frames], [len(clip.content) for clip in frames])
    names, index = np.unique(speaker, return_inverse=True)
    means = _means(heard, index, len(names)).astype(np.float64)
    within = np.cov((heard - means[index]).T) + 1e-4 * np.eye(heard.shape[1])
    values, vectors = scipy.linalg.eigh(np.cov(means.T), within)
    strongest = np.argsort(values)[::-1][:VOICE_DIMENSIONS]
    weights["voice.project"] = vectors[:, strongest] * np.sign(vectors[:, strongest].sum(axis=0))
    voice = heard @ weights["voice.project"]
    for layer in (1, 2):
        weights[f"voice.{layer}"], left = _quantise(voice, f"voice {layer}")
        codes = nearest(voice, weights[f"voice.{layer}"])
        weights[f"layer {layer}"] = _means(rest, codes, ENTRIES)
        rest = rest - weights[f"layer {layer}"][codes]
        voice = left
    return rest


def _fit_flat(frames: list[_Frames], spectra: NDArray[np.float64], weights: dict[str, NDArray[Any]]) -> None:
    """Fit the latent that content predicts from its neighbours, and its residual quantisation."""
    around = np.concatenate([context(clip.content, len(PHONES)) for clip in frames])
    gram = around.T @ around + 10 * np.eye(around.shape[1])
    weights["flat.context"] = np.linalg.solve(gram, around.T @ spectra).astype(np.float32)
    content = np.concatenate([clip.content for clip in frames])
    rest = around @ weights["flat.context"].astype(np.float64) - weights["layer 0"][content]
    for layer in range(1, 1 + FLAT_LAYERS):
        weights[f"flat layer {layer}"], rest = _quantise(rest, f"flat {layer}")


def _means(rows: NDArray[np.float64], codes: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """Return the mean row of each code, (size, dim); 0 for a code that never occurs."""
    sums = np.zeros((size, rows.shape[1]))
    np.add.at(sums, codes, rows)
    return (sums / np.maximum(np.bincount(codes, minlength=size), 1)[:, None]).astype(np.float32)


def _quantise(rows: NDArray[np.float64], name: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the table (64, dim) of one layer by Lloyd's k-means, and what it leaves of the rows."""
    rng = generator(0, RECIPE, "k-means", name)
    sample = rows[rng.permutation(len(rows))[:_KMEANS_ROWS]]
    table = sample[:ENTRIES].astype(np.float32)
    for _ in range(_KMEANS_ROUNDS):
        codes = nearest(sample, table)
        counts = np.bincount(codes, minlength=ENTRIES)
        table = np.where(counts[:, None] > 0, _means(sample, codes, ENTRIES), table)
    return table, rows - table[nearest(rows, table)]


def main() -> None:
    """Fit the weights and write them into the package."""
    arrays = {name: np.ascontiguousarray(array) for name, array in sorted(fit().items())}
    WEIGHTS.parent.mkdir(exist_ok=True)
    safetensors.numpy.save_file(arrays, WEIGHTS)
    WEIGHTS.chmod(0o644)


if __name__ == "__main__":
    main()
