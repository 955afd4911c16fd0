"""What a layer gives to the decoder's input, and that input with some layers replaced.

Conventions. The decoder's input of a clip is the sum over layers of its terms C_k (frames, dim). An edit replaces the
terms of a set S of layers and leaves all others:

    drop        C_k = 0: the term is left out of the sum. Not code 0 and not code -1, which are vectors of the table
    mean        the mean of C_k over the frames of other clips: what is left is the average of the layer
    shuffle     the clip's own terms in another order of frames, the same for all layers of S: the clip keeps its codes
                and loses their timing
    resample    frames drawn at random, with replacement, from a clip of another speaker, the same for all layers of S
    swap        the terms of a clip of another speaker, frame by frame: its codes with their timing

Nothing replaced gives the stock decoder's input, bit for bit; everything dropped gives zeros; everything swapped gives
the other clip's input, bit for bit. Float32 throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.codec import Codec
from probecore.errors import InputError
from probecore.validation import one_of

Terms = NDArray[np.float32]
KINDS = ("drop", "mean", "shuffle", "resample")
SWAP = "swap"


@dataclass(frozen=True)
class Contributions:
    """One clip: the terms of its layers (layers, frames, dim) and the decoder's input (frames, dim) as decoded."""

    terms: Terms
    latent: NDArray[np.float32]

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.terms)


def contributions(codec: Codec, codes: NDArray[np.int64]) -> Contributions:
    """Return the terms of codes (frames, layers), and the decoder's input as the codec itself computes it.

    An adapter whose decoder adds the layers in another order than `layer_embeddings` (before its output projection,
    say) has a method `latent(codes)`; its result differs from the sum of the terms by rounding.
    """
    terms = codec.layer_embeddings(codes)
    stock = getattr(codec, "latent", None)
    return Contributions(terms, terms.sum(axis=0) if stock is None else stock(codes))


def edited(
    clip: Contributions,
    layers: Sequence[int],
    kind: str,
    *,
    rng: np.random.Generator,
    donor: Contributions | None = None,
    mean: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return the decoder's input (frames, dim) with the terms of `layers` replaced.

    Parameters
    ----------
    kind : one of `KINDS` or "swap".
    rng : draws the order (shuffle) or the frames (resample).
    donor : the clip of another speaker (resample, swap); a swap needs as many frames.
    mean : mean terms (layers, dim) over other clips (mean).

    Raises `InputError` for a layer that is not there, or a donor of another length in a swap.
    """
    one_of(kind, (*KINDS, SWAP), "the kind of an ablation")
    chosen = sorted(set(layers))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < clip.n_layers:
        raise InputError(f"layers must lie in 0 to {clip.n_layers - 1}; got {chosen}")
    if not chosen:
        return clip.latent
    frames = len(clip.latent)
    terms = clip.terms.copy()
    if kind == "drop":
        terms[chosen] = 0
    elif kind == "mean":
        if mean is None:
            raise InputError("an ablation by the mean needs the mean terms of other clips: give mean")
        terms[chosen] = mean[chosen][:, None]
    elif kind == "shuffle":
        terms[chosen] = terms[chosen][:, rng.permutation(frames)]
    else:
        if donor is None:
            raise InputError(f"{kind} needs a clip of another speaker: give donor")
        if kind == "resample":
            terms[chosen] = donor.terms[chosen][:, rng.integers(0, len(donor.latent), frames)]
        else:
            if len(donor.latent) != frames:
                raise InputError(f"a swap needs clips of one length; got {frames} and {len(donor.latent)} frames")
            if len(chosen) == clip.n_layers:
                return donor.latent
            terms[chosen] = donor.terms[chosen]
    changed: NDArray[np.float32] = terms.sum(axis=0)
    return changed


def random_control(
    latent: NDArray[np.float32], changed: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return the latent moved as far as an edit moved it, in every frame, in a direction drawn at random.

    A frame's displacement has the norm that `changed - latent` has there; directions are uniform on the sphere and
    independent between frames. Where an ablation drops a layer this is noise of the energy of the dropped term.
    """
    direction = rng.standard_normal(latent.shape)
    length = np.linalg.norm(changed.astype(np.float64) - latent, axis=1, keepdims=True)
    moved: NDArray[np.float32] = (
        latent + direction * (length / np.linalg.norm(direction, axis=1, keepdims=True))
    ).astype(np.float32)
    return moved


def mean_terms(clips: Sequence[Contributions]) -> NDArray[np.float32]:
    """Return the mean of each layer's term over all frames of the clips, (layers, dim).

    The mean over frames is the mean over codes weighted by how often each is used; a table's plain mean would weigh
    entries that are never used as well.
    """
    n_frames = sum(len(clip.latent) for clip in clips)
    total = sum(clip.terms.sum(axis=1, dtype=np.float64) for clip in clips)
    return np.asarray(total / n_frames, dtype=np.float32)
