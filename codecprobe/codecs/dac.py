"""DAC, the Descript audio codec (Kumar et al. 2023): 9 to 32 layers of 1024 entries, 50 to 86 frames a second.

Conventions, with z the encoder's output (frames, 1024), P_k and O_k the projections of a layer into 8 dimensions and
back, each with its own bias:

    r_0 = z,   c_k = argmax_j cos(P_k r_k, E_k[j]),   r_k+1 = r_k - O_k E_k[c_k],   decoder's input = sum_k O_k E_k[c_k]

A layer's term is O_k E_k[c_k] with its bias: leaving the term out is what the model does when it decodes fewer layers.
Entries are chosen by cosine, so only their directions compete; the decoder takes them with their lengths. The chain
runs in the space of z and not in that of the tables, so there are no `group_inputs`. The encoder drops what does not
fill a frame (16000 samples would come back as 15872): clips are padded here. Upsampling by an odd factor (24 kHz)
ends a few samples short of whole frames; these are zero.

Source: transformers 4.57.3 (modeling_dac.py), the same in 5.17 and 5.23.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codecprobe.codecs.checkpoint import array_of
from codecprobe.codecs.codec import Waveform
from codecprobe.codecs.precision import exact_float32
from codecprobe.codecs.residual import ResidualCodec, gap_to_nearest


class DacCodec(ResidualCodec):
    """The adapter of `DacModel`; see `ResidualCodec`."""

    name = "dac"
    model_class = "DacModel"

    def nearest_gap(self, waveform: Waveform, codes: NDArray[np.int64]) -> float:
        """Return by how much chosen entries miss being the nearest on the unit sphere; see `ResidualCodec`."""
        residual = torch.tensor(self.latents(waveform).T[None], device=self.device)
        index = self._index(codes)
        worst = 0.0
        with exact_float32(self.device):
            for layer, row in enumerate(index):
                point = array_of(self._quantisers[layer].in_proj(residual)[0].T).astype(np.float64)
                table = self.codebook(layer).astype(np.float64)
                worst = max(worst, gap_to_nearest(_unit(point), _unit(table), codes[:, layer]))
                residual = residual - self._term(layer, row[None])
        return worst

    @property
    def _sample_rate_hz(self) -> int:
        return int(self.model.config.sampling_rate)

    @property
    def _hop_samples(self) -> int:
        return int(np.prod(self.model.config.downsampling_ratios))

    @property
    def _causal(self) -> bool:
        return False

    @property
    def _dim(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def _quantisers(self) -> Sequence[Any]:
        layers: Sequence[Any] = self.model.quantizer.quantizers
        return layers

    @property
    def _latent_module(self) -> nn.Module:
        module: nn.Module = self.model.encoder
        return module

    def _table(self, layer: int) -> Tensor:
        table: Tensor = self._quantisers[layer].codebook.weight
        return table

    def _encode(self, waveform: Tensor) -> Tensor:
        codes: Tensor = self.model.encode(waveform).audio_codes[0]
        return codes

    def _term(self, layer: int, index: Tensor) -> Tensor:
        quantiser = self._quantisers[layer]
        term: Tensor = quantiser.out_proj(quantiser.codebook(index).transpose(1, 2))
        return term

    def _decoder_input(self, index: Tensor) -> Tensor:
        latent: Tensor = self.model.quantizer.from_codes(index)[0]
        return latent

    def _decode(self, latent: Tensor) -> Tensor:
        wave: Tensor = self.model.decode(quantized_representation=latent).audio_values[0]
        return wave

    def _model_decode(self, index: Tensor) -> Tensor:
        wave: Tensor = self.model.decode(audio_codes=index).audio_values[0]
        return wave


def open_dac(folder: str | Path, device: str = "auto", source: str = "", n_layers: int | None = None) -> DacCodec:
    """Open and certify a DAC; parameters and errors as in `ResidualCodec`."""
    return DacCodec(folder, device, source, n_layers)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float64] = vectors / np.maximum(length, 1e-12)
    return unit
