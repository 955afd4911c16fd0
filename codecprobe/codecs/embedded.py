"""The embedded codec: a small residual vector quantiser with planted, known structure, inside the package.

Conventions: 16 kHz, 12.5 frames a second, 8 layers; the latent is that of `vocoder.py`, and a layer's table lies in
it. `embedded` has content in layer 0, the voice in layers 1-2, detail in 3-7; `embedded-flat` has content in layer 0
and in all others only what follows from it. `embedded_recipe.py` says how the weights came about. Both encode any
speech, but they were made for synthetic voices: they are positive and negative controls for an analysis.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.codec import CodecInfo, Codes, Waveform, check_codes, check_waveform
from codecprobe.codecs.embedded_features import Weights, content_codes, context, nearest, voice_features
from codecprobe.codecs.vocoder import HOP, LATENT, RATE_HZ, Analysis, analyse, latent, synthesise
from probecore.errors import CertificateError, InputError
from probecore.validation import one_of

N_LAYERS = 8
NAMES = ("embedded", "embedded-flat")


class EmbeddedCodec:
    """An embedded codec; `open_embedded` makes one.

    info, certificate : as the `Codec` protocol says.
    weights : arrays by name, as the recipe gives them.
    """

    def __init__(self, name: str, weights: Weights, weights_hash: str) -> None:
        self._weights = weights
        self._planted = one_of(name, NAMES, "an embedded codec") == "embedded"
        prefix = "layer" if self._planted else "flat layer"
        self._tables = [weights["layer 0"], *(weights[f"{prefix} {k}"] for k in range(1, N_LAYERS))]
        self.info = CodecInfo(
            name=name,
            sample_rate_hz=RATE_HZ,
            hop_samples=HOP,
            codebook_sizes=tuple(len(table) for table in self._tables),
            parallel_groups=(tuple(range(N_LAYERS)),),
            causal=False,
            synthetic=True,
            weights_hash=weights_hash,
            source="codecprobe/codecs/data/embedded.safetensors",
        )

    @cached_property
    def certificate(self) -> Mapping[str, Any]:
        """What was checked when the codec was opened; raises `CertificateError` where a check fails."""
        return _certify(self)

    def encode(self, waveforms: Sequence[Waveform]) -> list[Codes]:
        """Encode clips (samples,) at 16 kHz one by one; the last frame is filled with silence."""
        clips = [check_waveform(waveform, f"clip {i}") for i, waveform in enumerate(waveforms)]
        return [Codes(self._encode(analyse(clip)), len(clip)) for clip in clips]

    def codebook(self, layer: int) -> NDArray[np.float32]:
        """Return the table of one layer, (codebook size, 101): its terms of the latent."""
        if not 0 <= layer < N_LAYERS:
            raise InputError(f"layer must lie in [0, {N_LAYERS}); got {layer}")
        return self._tables[layer].copy()

    def layer_embeddings(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return each layer's term of the latent, (8, frames, 101)."""
        checked = check_codes(codes, self.info.codebook_sizes)
        return np.stack([table[checked[:, k]] for k, table in enumerate(self._tables)])

    def decode_latent(self, latent: NDArray[np.float32], n_samples: int | None = None, state: Any = None) -> Waveform:  # noqa: ANN401
        """Decode a latent (frames, 101); n_samples None gives all frames."""
        if latent.ndim != 2 or latent.shape[1] != LATENT or len(latent) == 0 or not np.isfinite(latent).all():
            raise InputError(f"a latent must be finite with shape (frames, {LATENT}); got {latent.shape}")
        return synthesise(latent, len(latent) * HOP if n_samples is None else n_samples)

    def decode(self, codes: Codes) -> Waveform:
        """Decode one clip to the length it had."""
        return self.decode_latent(self.layer_embeddings(codes.values).sum(axis=0), codes.n_samples, codes.state)

    def _encode(self, clip: Analysis) -> NDArray[np.int64]:
        content = content_codes(clip, self._weights)
        chosen = [content]
        if self._planted:
            rest = latent(clip) - self._tables[0][content]
            voice = voice_features(rest, clip) @ self._weights["voice.project"]
            for layer in (1, 2):
                table = self._weights[f"voice.{layer}"]
                chosen.append(nearest(voice, table))
                voice = voice - table[chosen[-1]]
                rest = rest - self._tables[layer][chosen[-1]]
        else:
            around = context(content, self.info.codebook_sizes[0])
            rest = around @ self._weights["flat.context"].astype(np.float64) - self._tables[0][content]
        for table in self._tables[len(chosen) :]:
            chosen.append(nearest(rest, table))
            rest = rest - table[chosen[-1]]
        return np.stack(chosen, axis=1)


def open_embedded(name: str = "embedded") -> EmbeddedCodec:
    """Open `embedded` or `embedded-flat` from the weights in the package and certify it.

    Raises `InputError` for another name and `CertificateError` when a check fails.
    """
    import safetensors.numpy

    from codecprobe.audio import file_hash
    from codecprobe.codecs.embedded_recipe import WEIGHTS

    codec = EmbeddedCodec(name, safetensors.numpy.load_file(WEIGHTS), file_hash(WEIGHTS))
    _ = codec.certificate
    return codec


def _certify(codec: EmbeddedCodec) -> dict[str, Any]:
    """Check on half a second of fixed noise what every analysis relies on."""
    time = np.arange(8_000) / RATE_HZ
    clip = (0.1 * np.sin(2 * np.pi * 140 * time) * np.sin(2 * np.pi * 3 * time) ** 2).astype(np.float32)
    (alone,), (again,) = codec.encode([clip]), codec.encode([clip])
    _, in_batch, _ = codec.encode([clip[:3_000], clip, np.zeros(40, np.float32)])
    terms = codec.layer_embeddings(alone.values)
    gap = np.abs(codec.decode_latent(terms.sum(axis=0), alone.n_samples) - codec.decode(alone)).max()
    checks = {
        "encoding is deterministic": np.array_equal(alone.values, again.values),
        "codes do not depend on the batch": np.array_equal(alone.values, in_batch.values),
        "codes lie in their codebooks": bool((alone.values < codec.info.codebook_sizes).all()),
        "embeddings of layers add up to the decoder's input": bool(gap == 0),
        "decoded length is the clip's": len(codec.decode(alone)) == len(clip),
    }
    failed = [name for name, passed in checks.items() if not passed]
    if failed:
        raise CertificateError(f"{codec.info.name}: {', '.join(failed)}: not so; reinstall the package")
    return {"device": "cpu", **checks}
