"""Tiny random Mimi, EnCodec, DAC and X-codec folders, built from the real classes and written by save_pretrained.

Published structure at small sizes. The classes' own initialisation is useless for tests (code books zero, signals that
fade), so weights get unit gain and each table is drawn from the residuals its layer really sees. Random weights differ
between transformers versions for one seed: test relations, never literal codes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ENTRIES = 32
LAYERS = {"mimi": 6, "encodec": 4, "dac": 5, "xcodec": 4}
RATES = {"mimi": 24_000, "encodec": 24_000, "dac": 16_000, "xcodec": 16_000}
HOPS = {"mimi": 1920, "encodec": 320, "dac": 512, "xcodec": 320}


def build_tiny_codec(name: str, folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write a codec into `folder`; `config` overrides fields of its configuration."""
    build_model(name, seed, **config).save_pretrained(folder)
    return folder


@torch.no_grad()
def build_model(name: str, seed: int = 0, **config: Any) -> Any:
    torch.manual_seed(seed)
    model = {"mimi": _mimi, "encodec": _encodec, "dac": _dac, "xcodec": _xcodec}[name](config).eval()
    _give_gains(model)
    _fill_tables(name, model)
    _set_level(name, model)
    return model


def speech_like(seconds: float, rate_hz: int, seed: int = 0) -> np.ndarray:
    """Return harmonics of a moving pitch, with pauses and some noise, float32."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * np.cumsum(120 + 20 * seed + 40 * np.sin(2 * np.pi * 0.9 * time)) / rate_hz
    voice = sum(np.sin(k * phase) / k for k in range(1, 8)) * np.clip(np.sin(2 * np.pi * 1.7 * time), 0, 1)
    return (0.1 * voice + 0.01 * np.random.default_rng(seed).standard_normal(len(time))).astype(np.float32)


def _mimi(config: dict[str, Any]) -> Any:
    from transformers import MimiConfig, MimiModel

    sizes = {"hidden_size": 32, "num_filters": 4, "codebook_size": ENTRIES, "codebook_dim": 16, "num_quantizers": 6}
    sizes |= {"vector_quantization_hidden_dimension": 16, "upsample_groups": 32, "num_hidden_layers": 1}
    sizes |= {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    return MimiModel(MimiConfig(**{**sizes, "layer_scale_initial_scale": 0.5, **config}))


def _encodec(config: dict[str, Any]) -> Any:
    from transformers import EncodecConfig, EncodecModel

    sizes = {"hidden_size": 16, "num_filters": 4, "codebook_size": ENTRIES, "codebook_dim": 16, "num_lstm_layers": 1}
    return EncodecModel(EncodecConfig(**{**sizes, "target_bandwidths": [0.75, 1.5], **config}))


def _dac(config: dict[str, Any]) -> Any:
    from transformers import DacConfig, DacModel

    sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 64, "n_codebooks": 5, "codebook_size": ENTRIES}
    return DacModel(DacConfig(**{**sizes, "codebook_dim": 8, "sampling_rate": 16_000, **config}))


def _xcodec(config: dict[str, Any]) -> Any:
    from transformers import DacConfig, HubertConfig, XcodecConfig, XcodecModel

    ratios = [8, 5, 4, 2]
    acoustic = DacConfig(
        encoder_hidden_size=4, decoder_hidden_size=64, downsampling_ratios=ratios, upsampling_ratios=ratios,
        hidden_size=16, codebook_dim=16,
    )  # fmt: skip
    semantic = HubertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    sizes = {"codebook_size": ENTRIES, "target_bandwidths": [0.5, 1.0]}
    return XcodecModel(XcodecConfig(acoustic_model_config=acoustic, semantic_model_config=semantic, **sizes, **config))


def _give_gains(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)) and not hasattr(module, "parametrizations"):
            fan_in = module.weight[0].numel() if not isinstance(module, nn.ConvTranspose1d) else module.weight.shape[0]
            module.weight.normal_(std=fan_in**-0.5)
            if module.bias is not None:
                module.bias.normal_(std=0.02)


def _fill_tables(name: str, model: Any) -> None:
    rate = RATES[name]
    wave = torch.from_numpy(speech_like(96 * HOPS[name] / rate, rate))[None, None]
    wave = wave[..., : wave.shape[-1] // HOPS[name] * HOPS[name]]
    seen: list[torch.Tensor] = []
    halves = model.encoder if hasattr(getattr(model, "encoder", None), "downsample") else model
    source = {"mimi": lambda: halves.downsample, "xcodec": lambda: model.fc}.get(name, lambda: model.encoder)()
    hook = source.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model.encode(wave)
    hook.remove()
    latent = seen[0][0] if name == "xcodec" else seen[0][0].T
    if name == "dac":
        residual = latent
        for quantiser in model.quantizer.quantizers:
            point = quantiser.in_proj(residual.T[None])[0].T
            _draw(point, quantiser.codebook.weight)
            unit = nn.functional.normalize(point) @ nn.functional.normalize(quantiser.codebook.weight).T
            chosen = quantiser.codebook(unit.argmax(dim=-1))
            residual = residual - quantiser.out_proj(chosen.T[None])[0].T
        return
    if name == "mimi":
        both = model.quantizer
        chains = [both.semantic_residual_vector_quantizer, both.acoustic_residual_vector_quantizer]
        starts = [chain.input_proj(latent.T[None])[0].T for chain in chains]
    else:
        chains, starts = [model.quantizer], [latent]
    for chain, residual in zip(chains, starts, strict=True):
        for layer in getattr(chain, "layers", None) or chain.quantizers:
            book = layer.codebook
            table = torch.empty_like(book.embed_sum if name == "mimi" else book.embed)
            _draw(residual, table)
            usage = torch.rand(len(table)) + 0.5
            if name == "mimi":
                book.cluster_usage.copy_(usage)
                book.embed_sum.copy_(table * usage[:, None])
                book._embed = None
                table = book.embed_sum / usage[:, None]
            else:
                book.embed.copy_(table)
                book.cluster_size.copy_(usage)
            residual = residual - table[torch.cdist(residual, table).argmin(dim=-1)]


def _set_level(name: str, model: Any, peak: float = 0.3) -> None:
    """Scale the decoder's last convolution so that the certificate's kind of signal decodes to a peak of about 0.3."""
    if name == "encodec":  # weight normalisation keeps it there
        return
    decoder = getattr(model, "acoustic_decoder", None) or getattr(model.decoder, "decoder_seanet", model.decoder)
    last = decoder.layers[-1].conv if name == "mimi" else decoder.conv2
    seen: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    codes = model.encode(torch.from_numpy(speech_like(20 * HOPS[name] / RATES[name], RATES[name]))[None, None])
    model.decode(audio_codes=codes.audio_codes)
    hook.remove()
    last.weight.mul_(peak / seen[0].abs().max())


def _draw(points: torch.Tensor, table: torch.Tensor) -> None:
    rows = torch.randint(len(points), (len(table),))
    table.copy_(points[rows] + 0.1 * points.std() * torch.randn(table.shape))
