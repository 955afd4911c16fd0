"""The codec protocol: what every adapter gives, whatever model stands behind it.

Conventions. A clip is a 1-D float32 waveform at the codec's own sample rate. Its codes are one int64 array
(frames, layers), layers in the order in which the codec numbers them, 0 <= code < codebook size. One clip's codes
do not depend on the other clips of a batch. The decoder's input is the sum over layers of `layer_embeddings`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError

Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class CodecInfo:
    """Facts about a codec.

    parallel_groups : layers of one residual chain each; ((0,), (1, ..., 15)) says that layer 0 stands outside the
        chain of the others (both quantise the same latent).
    synthetic : True for the embedded codec, which every result must say.
    weights_hash : hash of the weights, part of the key of every cached encoding.
    """

    name: str
    sample_rate_hz: int
    hop_samples: int
    codebook_sizes: tuple[int, ...]
    parallel_groups: tuple[tuple[int, ...], ...]
    causal: bool
    synthetic: bool
    weights_hash: str
    source: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second."""
        return self.sample_rate_hz / self.hop_samples

    @property
    def n_layers(self) -> int:
        """Number of code streams."""
        return len(self.codebook_sizes)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, as rows show them."""
        return tuple(f"layer {i}" for i in range(self.n_layers))


@dataclass(frozen=True)
class Codes:
    """One clip's codes: `values` (frames, layers) int64, and how many samples the clip had before padding."""

    values: NDArray[np.int64]
    n_samples: int
    state: Any = None


@runtime_checkable
class Codec(Protocol):
    """What an adapter provides. Waveforms are checked by `check_waveform`, codes by `check_codes`."""

    @property
    def info(self) -> CodecInfo:
        """Facts about the codec."""
        ...

    @property
    def certificate(self) -> Mapping[str, Any]:
        """What was checked when it was opened, in JSON types; `device` says where it runs."""
        ...

    def encode(self, waveforms: Sequence[Waveform]) -> list[Codes]:
        """Encode clips; each clip's codes equal those of encoding it alone."""
        ...

    def codebook(self, layer: int) -> NDArray[np.float32]:
        """Return the table of one layer, (codebook size, dim), in the space the codec quantises in."""
        ...

    def layer_embeddings(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return each layer's term of the decoder's input, (layers, frames, dim)."""
        ...

    def decode_latent(self, latent: NDArray[np.float32], n_samples: int | None = None, state: Any = None) -> Waveform:  # noqa: ANN401
        """Decode a latent (frames, dim) to a waveform of n_samples (all frames when None)."""
        ...

    def decode(self, codes: Codes) -> Waveform:
        """Decode one clip."""
        ...


def check_waveform(waveform: NDArray[Any], name: str = "clip") -> Waveform:
    """Return a clip fit to be encoded: 1-D, float, finite, not empty.

    Raises `InputError` for stereo, integer samples, NaN or no samples; never guesses a rule.
    """
    if not isinstance(waveform, np.ndarray) or waveform.ndim != 1:
        shape = getattr(waveform, "shape", type(waveform).__name__)
        raise InputError(f"{name}: a clip must be a 1-D array of samples; got {shape}: average the channels first")
    if waveform.dtype.kind != "f":
        raise InputError(f"{name}: samples must be floats in [-1, 1]; got {waveform.dtype}: divide by its full scale")
    if len(waveform) == 0:
        raise InputError(f"{name}: a clip must hold at least 1 sample; got 0")
    if not np.isfinite(waveform).all():
        raise InputError(f"{name}: samples must be finite; got NaN or infinity")
    return np.ascontiguousarray(waveform, dtype=np.float32)


def check_codes(codes: NDArray[Any], sizes: Sequence[int], name: str = "clip") -> NDArray[np.int64]:
    """Return codes (frames, layers) as int64 after checking every range; -1 is never a code."""
    array = np.asarray(codes)
    if array.ndim != 2 or array.shape[1] != len(sizes) or array.dtype.kind not in "iu":
        raise InputError(
            f"{name}: codes must be integers of shape (frames, {len(sizes)}); got {array.dtype} {array.shape}"
        )
    if len(array) == 0:
        raise InputError(f"{name}: codes must hold at least 1 frame; got 0")
    bad = (array < 0) | (array >= np.asarray(sizes))
    if bad.any():
        frame, layer = map(int, np.argwhere(bad)[0])
        raise InputError(
            f"{name}: codes of layer {layer} must lie in [0, {sizes[layer]}); "
            f"got {array[frame, layer]} in frame {frame}"
        )
    return array.astype(np.int64, copy=False)
