"""X-codec (Ye et al. 2024): 50 frames a second, 8 layers of 1024 entries over an acoustic and a semantic encoder.

Conventions, with a the acoustic latent (that of a DAC) and s the mean hidden state of a HuBERT or WavLM:

    z = W [a; s] + b,   r_0 = z,   c_k = argmin_j |r_k - E_k[j]|,   r_k+1 = r_k - E_k[c_k]
    decoder's input = sum_k E_k[c_k]   (the map to the acoustic decoder's own space, W' . + b', belongs to the decoder)

Every layer quantises both parts at once: no layer is "the semantic one". HuBERT normalises its first features over the
whole clip, so all codes depend on all samples, also on the zeros that fill the last frame.

Source: transformers 4.57.3 (modeling_xcodec.py), the same in 5.17 and 5.23. Models over WavLM need transformers 5: in
4.57.3 the semantic model of a saved folder is always taken for a HuBERT, which the check of the weights refuses.
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


class XcodecCodec(ResidualCodec):
    """The adapter of `XcodecModel`; see `ResidualCodec`."""

    name = "xcodec"
    model_class = "XcodecModel"

    def group_inputs(self, waveform: Waveform) -> tuple[NDArray[np.float32], ...]:
        """Return what the residual chain starts from, z: (frames, dim)."""
        return self._chain_inputs(waveform)

    def training_usage(self, layer: int) -> NDArray[np.float32]:
        """Return how much each entry was used near the end of training, a moving average, (entries,)."""
        return array_of(self._quantisers[self._checked(layer)].codebook.cluster_size)

    def facts(self) -> dict[str, Any]:
        """Return bandwidth and semantic model, and whether the checkpoint says how entries were used."""
        return {
            **super().facts(),
            "bandwidth_kbps": float(max(self.model.config.target_bandwidths)),
            "semantic_model": str(self.model.config.semantic_model_config.model_type),
        }

    @property
    def _sample_rate_hz(self) -> int:
        return int(self.model.config.sample_rate)

    @property
    def _hop_samples(self) -> int:
        return int(np.prod(self.model.config.acoustic_model_config.downsampling_ratios))

    @property
    def _causal(self) -> bool:
        return False

    @property
    def _dim(self) -> int:
        return int(self._table(0).shape[1])

    @property
    def _quantisers(self) -> Sequence[Any]:
        layers: Sequence[Any] = self.model.quantizer.quantizers
        return layers

    @property
    def _latent_module(self) -> nn.Module:
        module: nn.Module = self.model.fc
        return module

    def _latent(self, clip: Waveform) -> Tensor:
        return super()._latent(clip).transpose(1, 2)  # fc works on (1, frames, dim)

    def _table(self, layer: int) -> Tensor:
        table: Tensor = self._quantisers[layer].codebook.embed
        return table

    def _encode(self, waveform: Tensor) -> Tensor:
        bandwidth = max(self.model.config.target_bandwidths)
        codes: Tensor = self.model.encode(waveform, bandwidth=bandwidth).audio_codes[0]
        return codes

    def _term(self, layer: int, index: Tensor) -> Tensor:
        term: Tensor = self._quantisers[layer].decode(index)
        return term

    def _decoder_input(self, index: Tensor) -> Tensor:
        latent: Tensor = self.model.quantizer.decode(index.transpose(0, 1))
        return latent

    def _decode(self, latent: Tensor) -> Tensor:
        acoustic = self.model.fc2(latent.transpose(1, 2)).transpose(1, 2)
        wave: Tensor = self.model.acoustic_decoder(acoustic)[0, 0]
        return wave

    def _model_decode(self, index: Tensor) -> Tensor:
        wave: Tensor = self.model.decode(index).audio_values[0, 0]
        return wave


def open_xcodec(folder: str | Path, device: str = "auto", source: str = "", n_layers: int | None = None) -> XcodecCodec:
    """Open and certify an X-codec; parameters and errors as in `ResidualCodec`."""
    return XcodecCodec(folder, device, source, n_layers)
