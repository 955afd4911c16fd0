"""The Qwen3-TTS 12 Hz tokenizer: 12.5 frames a second, 16 layers of 2048 entries, 24 kHz.

Conventions. A clip is 1-D float32 at 24 kHz; its codes are (frames, 16) int64 with frames = ceil(samples / 1920). The
encoder makes one latent z (frames, 512), which two residual chains quantise side by side, each through a projection
of its own (layer 0 is *not* the start of the chain of layers 1 to 15):

    layer 0         c_0 = argmin_j |W_sem z - E_0[j]|
    layers 1-15     r_1 = W_ac z,  c_k = argmin_j |r_k - E_k[j]|,  r_k+1 = r_k - E_k[c_k]
    E_k[j]        = embed_sum_k[j] / max(cluster_usage_k[j], 1e-5)
    decoder's input = sum_k C_k,   C_0 = O_sem E'_0[c_0],   C_k = O_ac E'_k[c_k]       (512-d, E' the decoder's tables)

Always float32. Every clip is padded to whole frames here, because the released code pads inside its convolutions when
a clip is alone and outside them when it is not, and the last frame differs. On a CPU clips are encoded one by one,
because matrix products of another shape round otherwise and a near tie flips now and then; on a GPU they are encoded in
batches, and the certificate says how many codes agreed.

Source: qwen-tts 0.1.1 (modeling_qwen3_tts_tokenizer_v2.py), transformers 4.57.3 (modeling_mimi.py).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codecprobe.codecs import qwen3_compat as compat
from codecprobe.codecs.codec import CodecInfo, Codes, Waveform, check_codes, check_waveform
from codecprobe.codecs.precision import exact_float32
from probecore.devices import device_of
from probecore.errors import CertificateError, InputError
from probecore.provenance import digest, versions

BATCH_SECONDS = 300.0  # audio in one GPU batch, padding included, before memory says otherwise
WHOLE_FRAMES = 750  # clips of up to a minute are decoded in one piece
_VOLATILE = frozenset({"transformers_version", "architectures", "torch_dtype", "dtype", "_name_or_path"})


def open_qwen3_tts(folder: str | Path, device: str = "auto", source: str = "") -> "Qwen3TTSCodec":
    """Open and certify a tokenizer from a folder as `save_pretrained` writes it.

    `source` is what results call it; the folder's own name by default. Raises `MissingExtraError` without qwen-tts,
    `InputError` when it cannot be loaded, `CertificateError` when it is not what it must be.
    """
    folder = Path(folder).resolve()
    tokenizer = compat.load_tokenizer(folder, device_of(device))
    return Qwen3TTSCodec(tokenizer, source=source or folder.name, weights_hash=_weights_hash(tokenizer.model, folder))


class Qwen3TTSCodec:
    """The adapter; see the `Codec` protocol. `decode` equals the released decode bit for bit up to 300 frames."""

    def __init__(self, tokenizer: Any, *, source: str, weights_hash: str) -> None:  # noqa: ANN401
        from codecprobe.codecs.qwen3_certificate import certify

        self.tokenizer = tokenizer
        self.model = tokenizer.model
        self.info = _info(tokenizer, source, weights_hash)
        self._batch_samples = int(BATCH_SECONDS * self.info.sample_rate_hz)
        self.certificate: Mapping[str, Any] = certify(self)

    @property
    def device(self) -> torch.device:
        """Where the model lies and inputs are sent."""
        where: torch.device = next(self.model.parameters()).device
        return where

    def to(self, device: str) -> "Qwen3TTSCodec":
        """Move model, tables and inputs to a device, and certify again there."""
        from codecprobe.codecs.qwen3_certificate import certify

        self.model.to(device_of(device))
        self.tokenizer.device = self.device
        for layer in range(self.info.n_layers):  # a cached table is no buffer: moving the model leaves it behind
            self._encoder_table(layer)._embed = None
        self.certificate = certify(self)
        return self

    def encode(self, waveforms: Sequence[Waveform]) -> list[Codes]:
        """Encode clips; on a CPU the codes are bit-equal to encoding each alone.

        Raises `InputError` for a clip that is not 1-D, float, finite and of at least 1 sample.
        """
        clips = [check_waveform(waveform, f"clip {i}") for i, waveform in enumerate(waveforms)]
        found: dict[int, NDArray[np.int64]] = {}
        waiting = sorted(range(len(clips)), key=lambda i: -len(clips[i]))  # longest first: memory fails early or never
        while waiting:
            batch = self._next_batch(waiting, clips)
            codes = self._encode_with_back_off([clips[i] for i in batch])
            found.update(zip(batch, codes, strict=True))
            waiting = waiting[len(batch) :]
        return [Codes(found[i], len(clip)) for i, clip in enumerate(clips)]

    def latents(self, waveform: Waveform) -> NDArray[np.float32]:
        """Return the latent before quantisation, (frames, 512)."""
        return _array(self._latent_of(check_waveform(waveform))[0].T)

    def group_inputs(self, waveform: Waveform) -> tuple[NDArray[np.float32], ...]:
        """Return what each residual chain of `info.parallel_groups` starts from, W_sem z and W_ac z: (frames, 256)."""
        z = self._latent_of(check_waveform(waveform))
        with exact_float32(self.device):
            return tuple(_array((z if project is None else project(z))[0].T) for project in self._input_projections)

    def codebook(self, layer: int) -> NDArray[np.float32]:
        """Return the encoder's table of a layer, (entries, 256)."""
        table = self._encoder_table(self._layer(layer))
        return _array(table.embed_sum / table.cluster_usage.clamp(min=table.epsilon)[:, None])

    def decoder_codebook(self, layer: int) -> NDArray[np.float32]:
        """Return the decoder's own table of a layer, (entries, 256); the certificate says whether they are equal."""
        _, vq = self._decoder_layer(self._layer(layer))
        table = vq._codebook
        return _array(table.embedding_sum / table.cluster_usage.clamp(min=table.epsilon)[:, None])

    def training_usage(self, layer: int) -> NDArray[np.float32]:
        """Return how much each entry was used near the end of training, a moving average, (entries,)."""
        return _array(self._encoder_table(self._layer(layer)).cluster_usage)

    def layer_embeddings(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return each layer's term C_k of the decoder's input, (16, frames, 512)."""
        index = self._index(codes)
        with exact_float32(self.device):
            terms = []
            for k in range(self.info.n_layers):
                group, vq = self._decoder_layer(k)
                terms.append(group.output_proj(vq.decode(index[None, k]))[0].T)
            return _array(torch.stack(terms))

    def latent(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the decoder's input as the released code computes it, (frames, 512)."""
        index = self._index(codes)
        with exact_float32(self.device):
            return _array(self.model.decoder.quantizer.decode(index[None])[0].T)

    def decode_latent(self, latent: NDArray[np.float32], n_samples: int | None = None, state: Any = None) -> Waveform:  # noqa: ANN401
        """Decode a latent (frames, 512) to n_samples samples (all 1920 a frame when None).

        In one piece up to a minute; beyond that in pieces with layers x window frames of left context, as far as the
        decoder's transformer reaches, so that there is no seam.
        """
        array = np.asarray(latent)
        dim = self.model.decoder.config.codebook_dim
        fits = array.ndim == 2 and array.shape[1] == dim and len(array) > 0 and array.dtype.kind == "f"
        if not fits or not np.isfinite(array).all():
            raise InputError(f"latent must be finite floats of shape (frames, {dim}); got {array.dtype} {array.shape}")
        whole = len(array) * self.info.hop_samples
        if n_samples is not None and not 1 <= n_samples <= whole:
            raise InputError(f"n_samples must lie in 1 to {whole}, {len(array)} frames; got {n_samples}")
        config = self.model.decoder.config
        wave = self._decode_in_pieces(array, WHOLE_FRAMES, config.num_hidden_layers * config.sliding_window)
        return wave[:n_samples]

    def decode(self, codes: Codes) -> Waveform:
        """Decode one clip to its n_samples samples."""
        return self.decode_latent(self.latent(codes.values), codes.n_samples, codes.state)

    def _next_batch(self, waiting: Sequence[int], clips: Sequence[Waveform]) -> list[int]:
        if self.device.type == "cpu":
            return [waiting[0]]
        longest = self._n_frames(clips[waiting[0]]) * self.info.hop_samples
        return list(waiting[: max(1, self._batch_samples // longest)])

    def _encode_with_back_off(self, clips: Sequence[Waveform]) -> list[NDArray[np.int64]]:
        try:
            return self._encode_batch(clips)
        except torch.OutOfMemoryError:
            if len(clips) == 1:
                raise InputError(
                    f"a clip of {len(clips[0]) / self.info.sample_rate_hz:.0f} s does not fit into the memory of "
                    f"{self.device}: cut it, or use --device cpu"
                ) from None
        torch.cuda.empty_cache()
        half = len(clips) // 2
        self._batch_samples = half * self._n_frames(clips[0]) * self.info.hop_samples
        return self._encode_with_back_off(clips[:half]) + self._encode_with_back_off(clips[half:])

    def _encode_batch(self, clips: Sequence[Waveform]) -> list[NDArray[np.int64]]:
        """Encode clips through the released model in one call, each zero-padded to whole frames at least."""
        values, mask = self._padded(clips)
        with exact_float32(self.device):
            codes = self.model.encode(values, mask, return_dict=True).audio_codes
        return [row.cpu().numpy().astype(np.int64) for row in codes]

    def _latent_of(self, clip: Waveform) -> Tensor:
        """Return z (1, 512, frames) of one clip, on the device."""
        seen: list[Tensor] = []
        module = compat.encoder_downsample(self.model)
        hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            self._encode_batch([clip])
        finally:
            hook.remove()
        if len(seen) != 1:
            raise CertificateError(f"the encoder's downsample must run once in an encode; it ran {len(seen)} times")
        return seen[0]

    def _decode_in_pieces(self, latent: NDArray[np.float32], piece: int, left: int) -> Waveform:
        """Decode `piece` frames at a time, each with `left` frames before it (all there are at the start)."""
        decoder, hop = self.model.decoder, self.info.hop_samples
        z = torch.tensor(latent.T[None], dtype=torch.float32, device=self.device)
        waves = []
        with exact_float32(self.device):
            for start in range(0, z.shape[-1], piece):
                context = min(start, left)
                hidden = decoder.pre_conv(z[..., start - context : start + piece]).transpose(1, 2)
                hidden = decoder.pre_transformer(inputs_embeds=hidden).last_hidden_state.permute(0, 2, 1)
                for block in (*(block for blocks in decoder.upsample for block in blocks), *decoder.decoder):
                    hidden = block(hidden)
                waves.append(hidden.clamp(min=-1, max=1)[0, 0, context * hop :])
            return _array(torch.cat(waves))

    def _padded(self, clips: Sequence[Waveform]) -> tuple[Tensor, Tensor]:
        values = np.zeros((len(clips), max(map(self._n_frames, clips)) * self.info.hop_samples), np.float32)
        mask = np.zeros(values.shape, np.int32)
        for row, clip in enumerate(clips):
            values[row, : len(clip)] = clip
            mask[row, : len(clip)] = 1
        return torch.from_numpy(values).to(self.device), torch.from_numpy(mask).to(self.device)

    def _n_frames(self, clip: Waveform) -> int:
        return -(-len(clip) // self.info.hop_samples)

    def _index(self, codes: NDArray[np.int64]) -> Tensor:
        """Return checked codes as (layers, frames) on the device."""
        checked = check_codes(codes, self.info.codebook_sizes)
        return torch.tensor(checked.T, dtype=torch.long, device=self.device)

    def _layer(self, layer: int) -> int:
        if not 0 <= layer < self.info.n_layers:
            raise InputError(f"layer must lie in 0 to {self.info.n_layers - 1}; got {layer}")
        return layer

    @property
    def _input_projections(self) -> tuple[nn.Module | None, ...]:
        quantizer = self.model.encoder.quantizer
        return (
            quantizer.semantic_residual_vector_quantizer.input_proj,
            quantizer.acoustic_residual_vector_quantizer.input_proj,
        )

    def _encoder_table(self, layer: int) -> Any:  # noqa: ANN401
        quantizer = self.model.encoder.quantizer
        n_semantic = quantizer.num_semantic_quantizers
        if layer < n_semantic:
            return quantizer.semantic_residual_vector_quantizer.layers[layer].codebook
        return quantizer.acoustic_residual_vector_quantizer.layers[layer - n_semantic].codebook

    def _decoder_layer(self, layer: int) -> tuple[Any, Any]:
        """Return the group of a layer (which has the output projection) and the layer's own quantiser."""
        quantizer = self.model.decoder.quantizer
        n_semantic = quantizer.n_q_semantic
        group, i = (quantizer.rvq_first, layer) if layer < n_semantic else (quantizer.rvq_rest, layer - n_semantic)
        return group, group.vq.layers[i]


def _info(tokenizer: Any, source: str, weights_hash: str) -> CodecInfo:  # noqa: ANN401
    model = tokenizer.model
    encoder, decoder = model.encoder.config, model.decoder.config
    n_layers, hop = decoder.num_quantizers, int(model.decoder.total_upsample)
    n_semantic = model.decoder.quantizer.n_q_semantic
    rates = (int(tokenizer.feature_extractor.sampling_rate), model.input_sample_rate, model.output_sample_rate)
    must_agree = {
        "layers of encoder and decoder": (model.encoder_valid_num_quantizers, n_layers),
        "semantic layers of encoder and decoder": (model.encoder.quantizer.num_semantic_quantizers, n_semantic),
        "entries per layer of encoder and decoder": (encoder.codebook_size, decoder.codebook_size),
        "samples per frame of encoder and decoder": (model.encode_downsample_rate, model.decode_upsample_rate, hop),
        "sample rates of feature extractor, encoder and decoder": rates,
    }
    for what, values in must_agree.items():
        if len(set(values)) != 1:
            raise CertificateError(f"{source}: {what} must agree; got {', '.join(map(str, values))}")
    found = versions()
    return CodecInfo(
        name="qwen3-tts-12hz",
        sample_rate_hz=rates[0],
        hop_samples=hop,
        codebook_sizes=(encoder.codebook_size,) * n_layers,
        parallel_groups=(tuple(range(n_semantic)), tuple(range(n_semantic, n_layers))),
        causal=True,
        synthetic=False,
        weights_hash=weights_hash,
        source=source,
        versions={name: found[name] for name in ("qwen-tts", "transformers", "torch")},
    )


def _weights_hash(model: Any, folder: Path) -> str:  # noqa: ANN401
    """Return the hash of all tensors by their published names, and of the configuration that says what they mean."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parts: list[bytes | str] = [json.dumps(_without_volatile(config), sort_keys=True)]
    tensors = {compat.published_name(name): tensor for name, tensor in model.state_dict().items()}
    for name in sorted(tensors):
        array = _array(tensors[name])
        parts += [name, str(array.dtype), str(array.shape), array.tobytes()]
    return digest(*parts)


def _without_volatile(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _without_volatile(inner) for key, inner in value.items() if key not in _VOLATILE}
    return value


def _array(tensor: Tensor) -> NDArray[Any]:
    """Return a copy: what a caller does with it cannot reach the model."""
    return np.array(tensor.detach().cpu().numpy(), order="C")
