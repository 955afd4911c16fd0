"""What is checked of Mimi, EnCodec, DAC and X-codec when they are opened.

Conventions. Checks run on two fixed signals of 12.6 and 5 frames (harmonics of a moving pitch, some noise). On a CPU
codes and audio must agree exactly; on a GPU audio may differ by kernel choice and is held to a tolerance.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from codecprobe.codecs.checkpoint import array_of
from codecprobe.codecs.codec import Waveform
from codecprobe.codecs.precision import exact_float32
from probecore.errors import CertificateError
from probecore.seeds import generator

if TYPE_CHECKING:
    from codecprobe.codecs.residual import ResidualCodec

# Float32 sums of up to 32 terms in two orders differ by at most about 32 roundings of the largest partial sum, 2e-6.
SUM_TOLERANCE = 1e-5  # of the largest sum of absolute terms
# |r|^2 + |e|^2 - 2 r e in float32 with some hundred dimensions is off by about 1e-5 of its terms: nearer ones are ties.
TIE = 1e-5  # of the squared norms
GPU_TOLERANCE = 1e-3  # of the peak: two kernels through about 100 operations in sequence


def certify(codec: "ResidualCodec") -> dict[str, Any]:
    """Return the certificate; raise `CertificateError` naming the first fact that does not hold."""
    long, short = _signal(codec, frames=12.6), _signal(codec, frames=5.0)
    alone, again = codec.encode([long])[0].values, codec.encode([short, long])[1].values
    if alone.shape != (13, codec.info.n_layers):
        wanted = f"12.6 frames of samples must give 13 frames of {codec.info.n_layers} codes"
        raise CertificateError(f"{codec.info.source}: {wanted}; got {alone.shape}: do not use these weights here")
    with exact_float32(codec.device):
        own = array_of(codec._model_decode(torch.tensor(alone.T[None], device=codec.device)))
    lacking = 13 * codec.info.hop_samples - len(own)
    if not 0 <= lacking < codec.info.hop_samples:
        wanted = f"13 frames must decode to {13 * codec.info.hop_samples} samples, or less than a frame fewer"
        raise CertificateError(f"{codec.info.source}: {wanted}; got {len(own)}: do not use these weights here")
    terms, latent = codec.layer_embeddings(alone), codec.latent(alone)
    decoded = codec.decode_latent(latent)[: len(own)]
    size = float(np.abs(terms).sum(axis=0).max())
    facts: dict[str, Any] = {
        "device": codec.device.type,
        "dtype": _dtype(codec.model),
        "eval_mode": not any(module.training for module in codec.model.modules()),
        "layers_used": codec.info.n_layers,
        "layers_of_model": codec.n_layers_of_model,
        "entries_finite": all(np.isfinite(codec.codebook(k)).all() for k in range(codec.info.n_layers)),
        "codes_in_tables": bool(((alone >= 0) & (alone < codec.info.codebook_sizes)).all()),
        "codes_independent_of_batch": np.array_equal(alone, again),
        "chosen_entries_miss_nearest_by": codec.nearest_gap(long, alone),
        "sum_of_layers_relative_error": float(np.abs(terms.sum(axis=0) - latent).max()) / size if size else 0.0,
        "decode_latent_equals_model_decode": _equal(codec, decoded, own),
        "short_of_whole_frames": lacking,
        **codec.facts(),
    }
    on_cpu = codec.device.type == "cpu"
    required = {
        "all weights must be float32": facts["dtype"] == "float32",
        "the model must be in eval mode": facts["eval_mode"],
        "all table entries must be finite": facts["entries_finite"],
        "codes must lie in their tables": facts["codes_in_tables"],
        "codes must not depend on the batch": facts["codes_independent_of_batch"] or not on_cpu,
        "chosen entries must be the nearest of their residual chain": facts["chosen_entries_miss_nearest_by"] <= TIE,
        "the layers' terms must add up to the decoder's input": facts["sum_of_layers_relative_error"] <= SUM_TOLERANCE,
        "decode_latent must equal the model's own decode": facts["decode_latent_equals_model_decode"],
    }
    failed = [rule for rule, holds in required.items() if not holds]
    if failed:
        raise CertificateError(f"{codec.info.source}: {failed[0]}; got {facts}: do not use these weights here")
    return facts


def _signal(codec: "ResidualCodec", frames: float) -> Waveform:
    rate = codec.info.sample_rate_hz
    time = np.arange(int(frames * codec.info.hop_samples)) / rate
    phase = 2 * np.pi * np.cumsum(140 + 50 * np.sin(2 * np.pi * 0.7 * time)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 8)) * (0.5 + 0.5 * np.sin(2 * np.pi * 2.3 * time))
    noise = generator(0, "certificate").standard_normal(len(time))
    return (0.1 * voice + 0.02 * noise).astype(np.float32)


def _equal(codec: "ResidualCodec", found: NDArray[np.float32], own: NDArray[np.float32]) -> bool:
    if codec.device.type == "cpu":
        return np.array_equal(found, own)
    return float(np.abs(found - own).max()) <= GPU_TOLERANCE * max(float(np.abs(own).max()), 1e-12)


def _dtype(model: torch.nn.Module) -> str:
    tensors = (*model.parameters(), *model.buffers())
    return ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}))
