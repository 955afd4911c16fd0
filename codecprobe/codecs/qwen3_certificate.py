"""What is checked of a Qwen3-TTS tokenizer when it is opened.

Conventions. Checks run on two fixed signals of about one and two seconds (harmonics of a moving pitch, some noise),
the shorter not a whole number of frames. On a CPU codes must agree exactly; on a GPU, where kernels may differ with the
shape of a batch, agreement (share of equal codes, 0 to 1) is reported and never asserted. Facts that the released
weights decide, not the code (are encoder and decoder tables equal?), are reported on every device.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from codecprobe.codecs import qwen3_compat as compat
from codecprobe.codecs.precision import exact_float32
from probecore.errors import CertificateError
from probecore.seeds import generator

if TYPE_CHECKING:
    from codecprobe.codecs.qwen3_tts import Qwen3TTSCodec

# Float32 sums of 16 terms in two orders differ by at most about 16 roundings of the largest partial sum, 16 x 6e-8.
SUM_TOLERANCE = 1e-5  # of the largest sum of absolute terms


def certify(codec: "Qwen3TTSCodec") -> dict[str, Any]:
    """Return the certificate; raise `CertificateError` naming the first fact that does not hold."""
    on_cpu = codec.device.type == "cpu"
    short, long = _signal(codec, frames=12.6), _signal(codec, frames=25.0)
    window = compat.encoder_window(codec.model)
    (alone,) = codec.encode([short])
    codes = alone.values
    independent = np.array_equal(codes, codec.encode([short, long])[0].values)
    one_call = codec._encode_batch([short, long])[0]
    stock = torch.tensor(codes[None], device=codec.device)
    latent, terms = codec.latent(codes), codec.layer_embeddings(codes)
    with exact_float32(codec.device):
        released = codec.model.decode(stock, return_dict=True).audio_values[0].cpu().numpy()
    sum_error = float(np.abs(terms.sum(axis=0) - latent).max() / np.abs(terms).sum(axis=0).max())
    facts: dict[str, Any] = {
        "device": codec.device.type,
        "dtype": _dtype(codec.model),
        "rope_frequencies_equal_formula": _rope_holds(codec.model),
        "encoder_attends_to_whole_clip": window is None or window >= compat.WHOLE_CLIP,
        "entries_finite": all(np.isfinite(codec.codebook(k)).all() for k in range(codec.info.n_layers)),
        "codes_independent_of_batch": independent,
        "code_agreement_in_one_batch": _agreement(codes, one_call),
        "recomputed_code_agreement": _agreement(codes, recomputed_codes(codec, codec.group_inputs(short))),
        "sum_of_layers_relative_error": sum_error,
        "decode_latent_equals_released_decode": bool(
            np.array_equal(released, codec.decode_latent(latent)) if on_cpu else _close(released, codec, latent)
        ),
        "encoder_and_decoder_tables_equal": _tables_equal(codec),
        "training_usage_informative": any(np.ptp(codec.training_usage(k)) > 0 for k in range(codec.info.n_layers)),
    }
    required = {
        "all weights must be float32": facts["dtype"] == "float32",
        "rotary frequencies must equal theta^(-2i/d)": facts["rope_frequencies_equal_formula"],
        "the encoder must attend to the whole clip": facts["encoder_attends_to_whole_clip"],
        "all table entries must be finite": facts["entries_finite"],
        "the layers' terms must add up to the decoder's input": sum_error <= SUM_TOLERANCE,
        "decode_latent must equal the released decode": facts["decode_latent_equals_released_decode"],
        "codes must not depend on the batch": independent or not on_cpu,
        "codes recomputed from the latent must equal the released ones": (
            not on_cpu or facts["recomputed_code_agreement"] == 1.0
        ),
    }
    failed = [rule for rule, holds in required.items() if not holds]
    if failed:
        raise CertificateError(f"{codec.info.source}: {failed[0]}; got {facts}: do not use these weights here")
    return facts


def recomputed_codes(codec: "Qwen3TTSCodec", group_inputs: Sequence[NDArray[np.float32]]) -> NDArray[np.int64]:
    """Quantise the groups' inputs (frames, 256) by their own chain of nearest entries: codes (frames, 16)."""
    codes = np.empty((len(group_inputs[0]), codec.info.n_layers), np.int64)
    for group, start in zip(codec.info.parallel_groups, group_inputs, strict=True):
        residual = torch.tensor(start, device=codec.device)
        for layer in group:
            table = torch.tensor(codec.codebook(layer), device=codec.device)
            nearest = torch.cdist(residual[None], table[None])[0].argmin(dim=-1)
            residual = residual - table[nearest]
            codes[:, layer] = nearest.cpu().numpy()
    return codes


def _signal(codec: "Qwen3TTSCodec", frames: float) -> NDArray[np.float32]:
    rate = codec.info.sample_rate_hz
    time = np.arange(int(frames * codec.info.hop_samples)) / rate
    phase = 2 * np.pi * np.cumsum(140 + 50 * np.sin(2 * np.pi * 0.7 * time)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 8)) * (0.5 + 0.5 * np.sin(2 * np.pi * 2.3 * time))
    noise = generator(0, "certificate").standard_normal(len(time))
    return (0.1 * voice + 0.02 * noise).astype(np.float32)


def _agreement(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    return float((first == second).mean()) if first.shape == second.shape else 0.0


def _close(released: NDArray[np.float32], codec: "Qwen3TTSCodec", latent: NDArray[np.float32]) -> bool:
    return float(np.abs(released - codec.decode_latent(latent)).max()) <= 1e-4


def _dtype(model: torch.nn.Module) -> str:
    tensors = (*model.parameters(), *model.buffers())
    return ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}))


def _rope_holds(model: Any) -> bool:  # noqa: ANN401
    rotary = [module for module in model.modules() if hasattr(module, "inv_freq")]
    return bool(rotary) and all(
        torch.equal(module.inv_freq.cpu(), compat.rope_frequencies(module.config, len(module.inv_freq)))
        for module in rotary
    )


def _tables_equal(codec: "Qwen3TTSCodec") -> bool:
    return all(np.array_equal(codec.codebook(k), codec.decoder_codebook(k)) for k in range(codec.info.n_layers))
