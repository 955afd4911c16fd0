"""Mimi (Défossez et al. 2024, Moshi): 12.5 frames a second, up to 32 layers of 2048 entries, 24 kHz.

Conventions. Two residual chains quantise one latent z (frames, 512) side by side, each through a projection of its own;
layer 0 (semantic, distilled from WavLM) is *not* the start of the chain of the others:

    layer 0      c_0 = argmin_j |W_sem z - E_0[j]|
    layers 1-    r_1 = W_ac z,  c_k = argmin_j |r_k - E_k[j]|,  r_k+1 = r_k - E_k[c_k]
    E_k[j]     = embed_sum_k[j] / max(cluster_usage_k[j], 1e-5)
    decoder's input = O_sem E_0[c_0] + sum_k>0 O_ac E_k[c_k]

Both transformers attend over `sliding_window` steps of 40 ms (10 s), as Mimi was trained: transformers 4.57 ignores the
window, so a mask is put back here and results are the same on every version.

Source: transformers 4.57.3, 5.17 and 5.23 (modeling_mimi.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codecprobe.codecs.checkpoint import array_of
from codecprobe.codecs.codec import Waveform
from codecprobe.codecs.precision import exact_float32
from codecprobe.codecs.qwen3_compat import rope_frequencies
from codecprobe.codecs.residual import ResidualCodec
from probecore.errors import CertificateError

# Names inside the model from transformers 5.21 on, where the two halves are modules of their own, and published names.
_MOVED = {
    "encoder.encoder_seanet.": "encoder.",
    "encoder.encoder_transformer.": "encoder_transformer.",
    "encoder.downsample.": "downsample.",
    "decoder.decoder_seanet.": "decoder.",
    "decoder.decoder_transformer.": "decoder_transformer.",
    "decoder.upsample.": "upsample.",
}


class MimiCodec(ResidualCodec):
    """The adapter of `MimiModel`; see `ResidualCodec`."""

    name = "mimi"
    model_class = "MimiModel"

    @classmethod
    def published_name(cls, name: str) -> str:
        """Return the name of a tensor in the published checkpoint, the same on every transformers."""
        for inside, published in _MOVED.items():
            if name.startswith(inside):
                return published + name.removeprefix(inside)
        return name

    def group_inputs(self, waveform: Waveform) -> tuple[NDArray[np.float32], ...]:
        """Return what each residual chain starts from, W_sem z and W_ac z: (frames, 256)."""
        return self._chain_inputs(waveform)

    def training_usage(self, layer: int) -> NDArray[np.float32]:
        """Return how much each entry was used near the end of training, a moving average, (entries,)."""
        return array_of(self._quantisers[self._checked(layer)].codebook.cluster_usage)

    def facts(self) -> dict[str, Any]:
        """Return the attention window and what the checkpoint says of training; rotary frequencies must be plain."""
        if not all(_rope_holds(transformer) for transformer in self._transformers):
            raise CertificateError(f"{self.info.source}: rotary frequencies must equal theta^(-2i/d): load it again")
        window = int(self.model.config.sliding_window)
        return {**super().facts(), "rope_frequencies_equal_formula": True, "attention_window_steps": window}

    def _prepare(self, source: str) -> None:
        for transformer in self._transformers:
            transformer.register_forward_pre_hook(_windowed(self.model.config.sliding_window), with_kwargs=True)

    def _chain_inputs(self, waveform: Waveform) -> tuple[NDArray[np.float32], ...]:
        z = self._latent(waveform)
        with exact_float32(self.device):
            starts = [z if group.input_proj is None else group.input_proj(z) for group in self._residual_groups]
            return tuple(array_of(start[0].T) for start in starts[: len(self.info.parallel_groups)])

    def _groups(self, n_layers: int) -> tuple[tuple[int, ...], ...]:
        first = min(self._n_semantic, n_layers)
        groups = (tuple(range(first)), tuple(range(first, n_layers)))
        return tuple(group for group in groups if group)

    @property
    def _n_semantic(self) -> int:
        return len(self._residual_groups[0].layers)

    @property
    def _residual_groups(self) -> tuple[Any, Any]:
        quantizer = self.model.quantizer
        return quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer

    @property
    def _encoding(self) -> Any:  # noqa: ANN401
        """Return the module that holds encoder_transformer and downsample."""
        return self.model.encoder if hasattr(self.model.encoder, "downsample") else self.model

    @property
    def _decoding(self) -> Any:  # noqa: ANN401
        """Return the module that holds upsample and decoder_transformer."""
        return self.model.decoder if hasattr(self.model.decoder, "upsample") else self.model

    @property
    def _transformers(self) -> tuple[nn.Module, nn.Module]:
        return self._encoding.encoder_transformer, self._decoding.decoder_transformer

    @property
    def _sample_rate_hz(self) -> int:
        return int(self.model.config.sampling_rate)

    @property
    def _hop_samples(self) -> int:
        return int(np.prod(self.model.config.upsampling_ratios)) * int(self._encoding.downsample.conv.stride[0])

    @property
    def _causal(self) -> bool:
        config = self.model.config
        return bool(config.use_causal_conv and config.pad_mode != "reflect" and config.trim_right_ratio == 1.0)

    @property
    def _dim(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def _quantisers(self) -> Sequence[Any]:
        return [layer for group in self._residual_groups for layer in group.layers]

    @property
    def _latent_module(self) -> nn.Module:
        module: nn.Module = self._encoding.downsample
        return module

    def _table(self, layer: int) -> Tensor:
        table = self._quantisers[layer].codebook  # its property `embed` is a cache that moving the model leaves behind
        entries: Tensor = table.embed_sum / table.cluster_usage.clamp(min=table.epsilon)[:, None]
        return entries

    def _encode(self, waveform: Tensor) -> Tensor:
        codes: Tensor = self.model.encode(waveform).audio_codes[0]
        return codes

    def _term(self, layer: int, index: Tensor) -> Tensor:
        group = self._residual_groups[0 if layer < self._n_semantic else 1]
        term: Tensor = self._quantisers[layer].decode(index)
        return term if group.output_proj is None else group.output_proj(term)

    def _decoder_input(self, index: Tensor) -> Tensor:
        latent: Tensor = self.model.quantizer.decode(index)
        return latent

    def _decode(self, latent: Tensor) -> Tensor:
        half = self._decoding
        hidden = half.decoder_transformer(half.upsample(latent).transpose(1, 2))[0].transpose(1, 2)
        synthesis = half.decoder if half is self.model else half.decoder_seanet
        wave: Tensor = synthesis(hidden)[0, 0]
        return wave

    def _model_decode(self, index: Tensor) -> Tensor:
        wave: Tensor = self.model.decode(index).audio_values[0, 0]
        return wave


def open_mimi(folder: str | Path, device: str = "auto", source: str = "", n_layers: int | None = None) -> MimiCodec:
    """Open and certify a Mimi; parameters and errors as in `ResidualCodec`."""
    return MimiCodec(folder, device, source, n_layers)


def _windowed(window: int) -> Any:  # noqa: ANN401
    """Return a hook that gives a transformer the causal mask of its window when a clip is longer than that."""

    def give_mask(
        _module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = inputs[0]
        n_steps = hidden.shape[1]
        if n_steps <= window:
            return inputs, dict(named)
        step = torch.arange(n_steps, device=hidden.device)
        back = step[:, None] - step[None]
        mask = torch.zeros(n_steps, n_steps, dtype=hidden.dtype, device=hidden.device)
        mask.masked_fill_((back < 0) | (back >= window), -torch.inf)
        return inputs, {**named, "attention_mask": mask[None, None]}

    return give_mask


def _rope_holds(transformer: nn.Module) -> bool:
    rotary: list[Any] = [module for module in transformer.modules() if hasattr(module, "inv_freq")]
    return bool(rotary) and all(
        torch.equal(module.inv_freq.cpu(), rope_frequencies(module.config, len(module.inv_freq))) for module in rotary
    )
