"""What Mimi, EnCodec, DAC and X-codec share: residual chains of nearest entries around a latent of transformers.

Conventions. A clip is 1-D float32 at the codec's own rate, zero-padded here to whole frames of `hop_samples`, so that
it has ceil(samples / hop) frames. Clips are encoded one at a time on every device, so codes cannot depend on the
batch: these encoders take no mask, and most look both ways. Codes (frames, layers) are those of the model's own
`encode`; `n_layers` keeps the first layers of the chain, what a lower bandwidth of the model would give. With z the
latent and C_k[c] the term of a layer,

    decoder's input = sum_k C_k[c_k]        decode_latent = the model's own decoder modules behind that sum

A subclass names the modules; `residual_certificate.py` says what is checked when a codec is opened.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codecprobe.codecs.checkpoint import array_of, load_model, weights_hash
from codecprobe.codecs.codec import CodecInfo, Codes, Waveform, check_codes, check_waveform
from codecprobe.codecs.precision import exact_float32
from probecore.devices import device_of
from probecore.errors import CertificateError, InputError
from probecore.provenance import versions


class ResidualCodec(ABC):
    """An adapter for one model of transformers; see the `Codec` protocol.

    Parameters
    ----------
    folder : as `save_pretrained` writes it.
    device : auto, cpu, cuda or cuda:N.
    source : what results call it; the folder's own name by default.
    n_layers : how many layers to keep, from the first; None keeps all.

    Raises
    ------
    InputError : nothing can be loaded, or the model has no single time line of codes.
    CertificateError : the model is not what it must be.
    """

    name: ClassVar[str]
    model_class: ClassVar[str]

    def __init__(self, folder: str | Path, device: str = "auto", source: str = "", n_layers: int | None = None) -> None:
        from codecprobe.codecs.residual_certificate import certify

        folder = Path(folder).resolve()
        source = source or folder.name
        self.model = load_model(self.model_class, folder, self.published_name)
        self._prepare(source)
        found = len(self._quantisers)
        if n_layers is not None and not 1 <= n_layers <= found:
            raise InputError(f"{source}: the number of layers must lie in 1 to {found}; got {n_layers}")
        kept = n_layers or found
        known = versions()
        self.info = CodecInfo(
            name=self.name,
            sample_rate_hz=self._sample_rate_hz,
            hop_samples=self._hop_samples,
            codebook_sizes=tuple(len(self._table(k)) for k in range(kept)),
            parallel_groups=self._groups(kept),
            causal=self._causal,
            synthetic=False,
            weights_hash=weights_hash(self.model, folder, self.published_name),
            source=source,
            versions={name: known[name] for name in ("transformers", "torch")},
        )
        self.n_layers_of_model = found
        self.model.to(device_of(device))
        self.certificate: Mapping[str, Any] = certify(self)

    @property
    def device(self) -> torch.device:
        """Where the model lies and inputs are sent."""
        where: torch.device = next(self.model.parameters()).device
        return where

    def encode(self, waveforms: Sequence[Waveform]) -> list[Codes]:
        """Encode clips, one at a time.

        Raises `InputError` for a clip that is not 1-D, float, finite and of at least 1 sample, or too long for memory.
        """
        clips = [check_waveform(waveform, f"clip {i}") for i, waveform in enumerate(waveforms)]
        return [Codes(array_of(self._codes(clip).T).astype(np.int64), len(clip)) for clip in clips]

    def latents(self, waveform: Waveform) -> NDArray[np.float32]:
        """Return the latent before quantisation, (frames, dim)."""
        return array_of(self._latent(check_waveform(waveform))[0].T)

    def codebook(self, layer: int) -> NDArray[np.float32]:
        """Return the table of a layer, (entries, dim)."""
        return array_of(self._table(self._checked(layer)))

    def layer_embeddings(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return each layer's term C_k of the decoder's input, (layers, frames, dim)."""
        index = self._index(codes)
        with exact_float32(self.device):
            return array_of(torch.stack([self._term(k, row[None])[0].T for k, row in enumerate(index)]))

    def latent(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the decoder's input as the model itself computes it from codes, (frames, dim)."""
        index = self._index(codes)
        with exact_float32(self.device):
            return array_of(self._decoder_input(index[None])[0].T)

    def decode_latent(self, latent: NDArray[np.float32], n_samples: int | None = None, state: Any = None) -> Waveform:  # noqa: ANN401
        """Decode a latent (frames, dim) in one piece to n_samples samples (all of its frames when None).

        Where the model's decoder stops short of whole frames (see `short_of_whole_frames` in the certificate), the rest
        is zero.
        """
        array = np.asarray(latent)
        fits = array.ndim == 2 and array.shape[1] == self._dim and len(array) > 0 and array.dtype.kind == "f"
        if not fits or not np.isfinite(array).all():
            raise InputError(
                f"latent must be finite floats of shape (frames, {self._dim}); got {array.dtype} {array.shape}"
            )
        whole = len(array) * self.info.hop_samples
        if n_samples is not None and not 1 <= n_samples <= whole:
            raise InputError(f"n_samples must lie in 1 to {whole}, {len(array)} frames; got {n_samples}")
        with exact_float32(self.device):
            wave = array_of(self._decode(torch.tensor(array.T[None], dtype=torch.float32, device=self.device)))
        filled = np.zeros(whole, np.float32)
        filled[: len(wave)] = wave
        return filled[:n_samples]

    def decode(self, codes: Codes) -> Waveform:
        """Decode one clip to its n_samples samples."""
        return self.decode_latent(self.latent(codes.values), codes.n_samples, codes.state)

    def nearest_gap(self, waveform: Waveform, codes: NDArray[np.int64]) -> float:
        """Return by how much chosen entries miss being the nearest, the worst of all, as a share of squared norms.

        Recomputed in float64 from the inputs of the residual chains, along the codes that were chosen: 0 when each is
        the nearest entry, rounding where two entries are equally near.
        """
        worst = 0.0
        for group, start in zip(self.info.parallel_groups, self._chain_inputs(waveform), strict=True):
            residual = start.astype(np.float64)
            for layer in group:
                table = self.codebook(layer).astype(np.float64)
                worst = max(worst, gap_to_nearest(residual, table, codes[:, layer]))
                residual = residual - table[codes[:, layer]]
        return worst

    @classmethod
    def published_name(cls, name: str) -> str:
        """Return the name of a tensor in the published checkpoint."""
        return name

    def facts(self) -> dict[str, Any]:
        """Return further facts for the certificate; raises `CertificateError` where one must not be."""
        training_usage = getattr(self, "training_usage", None)
        if training_usage is None:
            return {}
        told = any(np.ptp(training_usage(layer)) > 0 for layer in range(self.info.n_layers))
        return {"training_usage": "in the checkpoint" if told else "not in the checkpoint"}

    def _codes(self, clip: Waveform) -> Tensor:
        """Return the codes of one clip from the model's own encode, (layers, frames)."""
        padded = np.pad(clip, (0, -len(clip) % self.info.hop_samples))
        try:
            with exact_float32(self.device):
                codes = self._encode(torch.from_numpy(padded)[None, None].to(self.device))
        except torch.OutOfMemoryError:
            raise InputError(
                f"a clip of {len(clip) / self.info.sample_rate_hz:.0f} s does not fit into the memory of "
                f"{self.device}: cut it, or use --device cpu"
            ) from None
        return codes[: self.info.n_layers]

    def _latent(self, clip: Waveform) -> Tensor:
        """Return z of one clip, (1, dim, frames), as it comes out of the encoder in a real encode."""
        seen: list[Tensor] = []
        hook = self._latent_module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            self._codes(clip)
        finally:
            hook.remove()
        if len(seen) != 1:
            raise CertificateError(f"the encoder must run once in an encode; it ran {len(seen)} times")
        return seen[0]

    def _chain_inputs(self, waveform: Waveform) -> tuple[NDArray[np.float32], ...]:
        """Return what each residual chain starts from, in the space of its tables."""
        return (self.latents(waveform),)

    def _index(self, codes: NDArray[np.int64]) -> Tensor:
        """Return checked codes as (layers, frames) on the device."""
        checked = check_codes(codes, self.info.codebook_sizes)
        return torch.tensor(checked.T, dtype=torch.long, device=self.device)

    def _checked(self, layer: int) -> int:
        if not 0 <= layer < self.info.n_layers:
            raise InputError(f"layer must lie in 0 to {self.info.n_layers - 1}; got {layer}")
        return layer

    def _groups(self, n_layers: int) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(n_layers)),)

    def _prepare(self, source: str) -> None:  # noqa: B027 (most have nothing to do)
        """Refuse a configuration whose codes are not one line of frames; mend what a version of transformers lacks."""

    @property
    @abstractmethod
    def _sample_rate_hz(self) -> int: ...

    @property
    @abstractmethod
    def _hop_samples(self) -> int: ...

    @property
    @abstractmethod
    def _causal(self) -> bool: ...

    @property
    @abstractmethod
    def _dim(self) -> int:
        """Return the size of the decoder's input."""

    @property
    @abstractmethod
    def _quantisers(self) -> Sequence[Any]: ...

    @property
    @abstractmethod
    def _latent_module(self) -> nn.Module:
        """Return the module whose output is z, (1, dim, frames)."""

    @abstractmethod
    def _table(self, layer: int) -> Tensor: ...

    @abstractmethod
    def _encode(self, waveform: Tensor) -> Tensor:
        """Return the codes of the model's own encode, (layers, frames), of a waveform (1, 1, samples)."""

    @abstractmethod
    def _term(self, layer: int, index: Tensor) -> Tensor:
        """Return a layer's term of the decoder's input, (1, dim, frames), of codes (1, frames)."""

    @abstractmethod
    def _decoder_input(self, index: Tensor) -> Tensor:
        """Return the decoder's input, (1, dim, frames), of codes (1, layers, frames)."""

    @abstractmethod
    def _decode(self, latent: Tensor) -> Tensor:
        """Return the waveform (samples,) of a decoder's input (1, dim, frames)."""

    @abstractmethod
    def _model_decode(self, index: Tensor) -> Tensor:
        """Return the waveform (samples,) of the model's own decode of codes (1, layers, frames)."""


def gap_to_nearest(points: NDArray[np.float64], table: NDArray[np.float64], chosen: NDArray[np.int64]) -> float:
    """Return how far chosen entries are from being the nearest: the largest excess in squared distance.

    points (frames, dim), table (entries, dim), chosen (frames,); as a share of |point|^2 + |entry|^2.
    """
    squares = (points**2).sum(axis=1)
    distance = squares[:, None] - 2 * points @ table.T + (table**2).sum(axis=1)
    taken = distance[np.arange(len(chosen)), chosen]
    scale = squares + (table[chosen] ** 2).sum(axis=1)
    return float(((taken - distance.min(axis=1)) / np.maximum(scale, 1e-30)).max())
