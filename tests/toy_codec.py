"""A codec of a few lines that keeps the whole contract: residual quantisation of raw frames, in numpy, at 8 kHz."""

from typing import Any

import numpy as np

from codecprobe.codecs.codec import CodecInfo, Codes, check_codes, check_waveform
from codecprobe.corpora.corpus import Audio, Clip, Corpus
from probecore.provenance import digest

HOP = 80
SIZES = (16, 32, 16)


class ToyCodec:
    """Layer 0 quantises the frame, layers 1 and 2 what is left; the decoder writes the sum of the entries."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.tables = [
            (0.2 / 2**k * rng.standard_normal((size, HOP))).astype(np.float32) for k, size in enumerate(SIZES)
        ]
        self.info = CodecInfo(
            name="toy",
            sample_rate_hz=8000,
            hop_samples=HOP,
            codebook_sizes=SIZES,
            parallel_groups=((0, 1, 2),),
            causal=True,
            synthetic=True,
            weights_hash=digest(*(table.tobytes() for table in self.tables)),
        )
        self.certificate: dict[str, Any] = {"device": "cpu"}
        self.encoded: list[int] = []

    def encode(self, waveforms):
        clips = [check_waveform(waveform, f"clip {i}") for i, waveform in enumerate(waveforms)]
        self.encoded += [len(clip) for clip in clips]
        return [Codes(self._codes(clip), len(clip)) for clip in clips]

    def _codes(self, clip):
        residual = self.group_inputs(clip)[0]
        codes = []
        for table in self.tables:
            codes.append(((residual[:, None] - table[None]) ** 2).sum(axis=-1).argmin(axis=1))
            residual = residual - table[codes[-1]]
        return np.stack(codes, axis=1)

    def group_inputs(self, clip):
        return (np.pad(clip, (0, -len(clip) % HOP)).reshape(-1, HOP),)

    def codebook(self, layer):
        return self.tables[layer]

    def layer_embeddings(self, codes):
        codes = check_codes(codes, SIZES)
        return np.stack([table[codes[:, k]] for k, table in enumerate(self.tables)])

    def decode_latent(self, latent, n_samples=None, state=None):
        return latent.reshape(-1)[:n_samples].astype(np.float32)

    def decode(self, codes):
        return self.decode_latent(self.layer_embeddings(codes.values).sum(axis=0), codes.n_samples)


def toy_clip(number: int, seconds: float = 0.5, rate_hz: int = 16_000, **fields: Any) -> Clip:
    """Speech of nobody: noise that depends on the number alone."""

    def read() -> Audio:
        noise = 0.1 * np.random.default_rng(number).standard_normal(round(seconds * rate_hz))
        return Audio(noise.astype(np.float32), rate_hz)

    def content_hash() -> str:
        return digest("toy", str(number), str(seconds), str(rate_hz))

    given = {"clip_id": f"clip {number}", "speaker": f"s{number % 3}", "session": f"s{number % 3}-{number % 2}"}
    return Clip(**{"read": read, "content_hash": content_hash, **given, **fields})


def toy_corpus(n: int = 8) -> Corpus:
    """Return clips of 0.5 to about 1 s at three sample rates."""
    rates = (16_000, 8_000, 44_100)
    clips = tuple(toy_clip(i, seconds=0.5 + 0.07 * i, rate_hz=rates[i % 3]) for i in range(n))
    return Corpus("toy voices", clips)
