"""A tiny random Qwen3-TTS 12 Hz tokenizer, built from the real classes and written by save_pretrained.

Published structure at small sizes: 16 of 32 encoder layers, one semantic, 1920 samples a frame, a decoder window of 72.
The release's own initialisation is useless for tests (all code books zero, decoder near silent), so gains are set and
the tables are drawn from the residuals each layer really sees. Random weights differ between transformers versions
for one seed: test relations, never literal codes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from codecprobe.codecs import qwen3_compat

RATE_HZ = 24_000
HOP = 1920
ENTRIES = 64


def build_tiny_qwen(folder: Path, seed: int = 0, **encoder: Any) -> Path:
    """Write a tokenizer into `folder`; `encoder` overrides fields of the encoder's configuration."""
    qwen3_compat.import_qwen_tts()
    from transformers import EncodecFeatureExtractor

    model = build_model(seed, **encoder)
    model.save_pretrained(folder)
    EncodecFeatureExtractor(feature_size=1, sampling_rate=RATE_HZ, padding_value=0.0).save_pretrained(folder)
    return folder


@torch.no_grad()
def build_model(seed: int = 0, **encoder: Any) -> Any:
    qwen3_compat.import_qwen_tts()
    from qwen_tts.core import Qwen3TTSTokenizerV2Config, Qwen3TTSTokenizerV2Model

    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 64, "codebook_size": ENTRIES}
    encoder_config = {
        **sizes,
        **{"_frame_rate": 12.5, "num_filters": 4, "num_residual_layers": 1, "upsampling_ratios": [8, 6, 5, 4]},
        **{"codebook_dim": 16, "vector_quantization_hidden_dimension": 16, "num_quantizers": 32},
        **{"num_semantic_quantizers": 1, "upsample_groups": 32, "sliding_window": 250, "use_cache": False},
        **encoder,
    }
    decoder_config = {
        **sizes,
        **{"codebook_dim": 32, "latent_dim": 32, "sliding_window": 72, "num_quantizers": 16},
        **{"upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2], "decoder_dim": 48},
    }
    torch.manual_seed(seed)
    config = Qwen3TTSTokenizerV2Config(encoder_config=encoder_config, decoder_config=decoder_config)
    model = Qwen3TTSTokenizerV2Model(config).eval()
    _give_gains(model)
    _fill_tables(model, torch.Generator().manual_seed(seed))
    return model


def voice(seconds: float, seed: int = 0, f0_hz: float = 120.0) -> np.ndarray:
    """Deterministic toy speech at 24 kHz: harmonics of a moving pitch, a slow envelope, a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(f0_hz + 0.5 * f0_hz * np.sin(2 * np.pi * 0.7 * time + seed)) / RATE_HZ
    tone = sum(np.sin(k * phase) / k for k in range(1, 8)) * (0.5 + 0.5 * np.sin(2 * np.pi * 2.3 * time))
    return (0.1 * tone + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


def _give_gains(model: Any) -> None:
    for module in model.decoder.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.02)
        if hasattr(module, "gamma"):
            module.gamma.fill_(0.1)
    for module in model.modules():
        if type(module).__name__.endswith("LayerScale"):
            module.scale.fill_(0.1)
    model.decoder.decoder[-1].conv.weight.mul_(0.012)
    for module in model.decoder.modules():  # without from_pretrained nothing rebuilds it
        if hasattr(module, "inv_freq"):
            module.inv_freq.copy_(qwen3_compat.rope_frequencies(module.config, len(module.inv_freq)))


def _fill_tables(model: Any, generator: torch.Generator) -> None:
    """Draw entries from each layer's own residuals; usage counts differ, and the decoder's tables are the same."""
    seen: list[torch.Tensor] = []
    hook = qwen3_compat.encoder_downsample(model).register_forward_hook(lambda _m, _i, out: seen.append(out))
    wave = torch.from_numpy(voice(16, seed=1))[None]
    model.encode(wave, torch.ones(wave.shape, dtype=torch.long))
    hook.remove()
    quantizer, decoder = model.encoder.quantizer, model.decoder.quantizer
    for group, decoder_group in (
        (quantizer.semantic_residual_vector_quantizer, decoder.rvq_first),
        (quantizer.acoustic_residual_vector_quantizer, decoder.rvq_rest),
    ):
        residual = group.input_proj(seen[0])
        for i, layer in enumerate(group.layers):
            flat = residual.transpose(1, 2).reshape(-1, residual.shape[1])
            entries = 0.8 * flat[torch.randperm(len(flat), generator=generator)[:ENTRIES]]
            usage = 1 + torch.rand(ENTRIES, generator=generator)
            layer.codebook.embed_sum.copy_(entries * usage[:, None])
            layer.codebook.cluster_usage.copy_(usage)
            layer.codebook._embed = None
            if i < len(decoder_group.vq.layers):
                decoder_group.vq.layers[i]._codebook.embedding_sum.copy_(layer.codebook.embed_sum)
                decoder_group.vq.layers[i]._codebook.cluster_usage.copy_(usage)
            residual = residual - layer.decode(layer.encode(residual))
