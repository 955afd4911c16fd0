"""EnCodec (Défossez et al. 2022): one residual chain; 24 kHz has 75 frames a second and up to 32 layers of 1024.

Conventions, with z the encoder's output (frames, 128):

    r_0 = z,   c_k = argmin_j |r_k - E_k[j]|,   r_k+1 = r_k - E_k[c_k],   decoder's input = sum_k E_k[c_k]

All code books of the largest bandwidth are used (24 kbit/s: 32); the first 2, 4, 8, 16 are those of 1.5, 3, 6 and 12.
The convolutions are causal but mirror the start of the clip, so the first frames depend on the next six, and `causal`
is False.

The 48 kHz model is refused: it is stereo, and it encodes overlapping pieces of 1 s, each with a gain of its own, so its
codes are not one line of frames in time and a layer's entry means another vector in each piece.

Source: transformers 4.57.3 (modeling_encodec.py), the same in 5.17 and 5.23.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from codecprobe.codecs.checkpoint import array_of
from codecprobe.codecs.codec import Waveform
from codecprobe.codecs.residual import ResidualCodec
from probecore.errors import InputError


class EncodecCodec(ResidualCodec):
    """The adapter of `EncodecModel`; see `ResidualCodec`."""

    name = "encodec"
    model_class = "EncodecModel"

    def group_inputs(self, waveform: Waveform) -> tuple[NDArray[np.float32], ...]:
        """Return what the residual chain starts from, z: (frames, dim)."""
        return self._chain_inputs(waveform)

    def training_usage(self, layer: int) -> NDArray[np.float32]:
        """Return how much each entry was used near the end of training, a moving average, (entries,)."""
        return array_of(self._quantisers[self._checked(layer)].codebook.cluster_size)

    def facts(self) -> dict[str, Any]:
        """Return the bandwidth whose layers are read, and whether the checkpoint says how entries were used."""
        return {**super().facts(), "bandwidth_kbps": float(max(self.model.config.target_bandwidths))}

    def _prepare(self, source: str) -> None:
        config = self.model.config
        if config.audio_channels != 1 or config.chunk_length_s is not None or config.normalize:
            pieces = "one piece" if config.chunk_length_s is None else f"pieces of {config.chunk_length_s:g} s"
            gains = "with" if config.normalize else "without"
            raise InputError(
                f"{source}: an EnCodec here must be mono, in one piece and without gains; this one has "
                f"{config.audio_channels} channels, {pieces}, {gains} gains, so its codes are not one line of frames: "
                "give the 24 kHz model, facebook/encodec_24khz"
            )

    @property
    def _sample_rate_hz(self) -> int:
        return int(self.model.config.sampling_rate)

    @property
    def _hop_samples(self) -> int:
        return int(np.prod(self.model.config.upsampling_ratios))

    @property
    def _causal(self) -> bool:
        config = self.model.config
        return bool(config.use_causal_conv and config.pad_mode != "reflect" and config.trim_right_ratio == 1.0)

    @property
    def _dim(self) -> int:
        return int(self._table(0).shape[1])

    @property
    def _quantisers(self) -> Sequence[Any]:
        layers: Sequence[Any] = self.model.quantizer.layers
        return layers

    @property
    def _latent_module(self) -> nn.Module:
        module: nn.Module = self.model.encoder
        return module

    def _table(self, layer: int) -> Tensor:
        table: Tensor = self._quantisers[layer].codebook.embed
        return table

    def _encode(self, waveform: Tensor) -> Tensor:
        bandwidth = max(self.model.config.target_bandwidths)
        codes: Tensor = self.model.encode(waveform, bandwidth=bandwidth).audio_codes[0, 0]
        return codes

    def _term(self, layer: int, index: Tensor) -> Tensor:
        term: Tensor = self._quantisers[layer].decode(index)
        return term

    def _decoder_input(self, index: Tensor) -> Tensor:
        latent: Tensor = self.model.quantizer.decode(index.transpose(0, 1))
        return latent

    def _decode(self, latent: Tensor) -> Tensor:
        wave: Tensor = self.model.decoder(latent)[0, 0]
        return wave

    def _model_decode(self, index: Tensor) -> Tensor:
        wave: Tensor = self.model.decode(index[None], [None]).audio_values[0, 0]
        return wave


def open_encodec(
    folder: str | Path, device: str = "auto", source: str = "", n_layers: int | None = None
) -> EncodecCodec:
    """Open and certify an EnCodec; parameters and errors as in `ResidualCodec`."""
    return EncodecCodec(folder, device, source, n_layers)
