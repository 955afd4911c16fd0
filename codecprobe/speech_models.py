"""Outside listeners, by name: a speaker model and a speech recogniser out of transformers.

Conventions. A name is a hub id or a folder as `save_pretrained` writes it. Waveforms (samples,) float are resampled
to the model's own rate. A speaker model is one with an x-vector head (`AutoModelForAudioXVector`, such as
microsoft/wavlm-base-plus-sv), or a Qwen3-TTS Base model, whose speaker encoder is an ECAPA-TDNN (`ecapa`). A recogniser
is any model of the pipeline "automatic-speech-recognition". All run in float32.

>>> word_error_rate("the cat sat down", "The cat sat, town!")
0.25
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codecprobe.audio import resample
from probecore.devices import device_of
from probecore.errors import InputError
from probecore.provenance import digest


class SpeakerModel:
    """An x-vector or ECAPA model; `identity` says which weights it has."""

    def __init__(self, name: str, device: str = "auto") -> None:
        from codecprobe.ecapa import EcapaEncoder, holds_ecapa

        self._ecapa = EcapaEncoder(name, device_of(device)) if holds_ecapa(name) else None
        if self._ecapa:
            self.identity = f"{self._ecapa.name} ECAPA {_weights_hash(self._ecapa.encoder)}"
            self.rate_hz = self._ecapa.rate_hz
            return
        from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

        with _loading(name, "a speaker model with an x-vector head"):
            self._extractor: Any = AutoFeatureExtractor.from_pretrained(name)
            self._model: Any = AutoModelForAudioXVector.from_pretrained(name).float().eval().to(device_of(device))
        self.identity = f"{_short(name)} {_weights_hash(self._model)}"
        self.rate_hz = int(self._extractor.sampling_rate)

    def vectors(self, waves: Sequence[NDArray[np.floating]], rate_hz: int) -> NDArray[np.float64]:
        """Return one vector of unit length per waveform, (clips, dim), each computed alone: no padding enters."""
        import torch

        found = []
        for wave in waves:
            samples = _at_least(resample(wave, rate_hz, self.rate_hz), self.rate_hz // 2)
            if self._ecapa:
                vector = self._ecapa.vector(samples)
            else:
                inputs = self._extractor(samples, sampling_rate=self.rate_hz, return_tensors="pt")
                with torch.inference_mode():
                    vector = self._model(**inputs.to(self._model.device)).embeddings[0].double().cpu().numpy()
            found.append(vector / max(float(np.linalg.norm(vector)), 1e-12))
        return np.stack(found)


class Transcriber:
    """A speech recogniser; `identity` says which weights it has."""

    def __init__(self, name: str, device: str = "auto") -> None:
        from transformers import pipeline

        with _loading(name, "a speech recogniser"):
            self._pipeline: Any = pipeline("automatic-speech-recognition", model=name, device=device_of(device))
        self._pipeline.model.float()  # transformers 5 opens a model in the type it was saved in
        self.identity = f"{_short(name)} {_weights_hash(self._pipeline.model)}"
        self.rate_hz = int(self._pipeline.feature_extractor.sampling_rate)

    def transcribe(self, waves: Sequence[NDArray[np.floating]], rate_hz: int) -> list[str]:
        """Return the words of each waveform, each recognised alone."""
        texts = []
        for wave in waves:
            samples = _at_least(resample(wave, rate_hz, self.rate_hz), self.rate_hz // 2)
            found = self._pipeline({"raw": samples, "sampling_rate": self.rate_hz})
            texts.append(str(found["text"]))
        return texts


def word_error_rate(reference: str, heard: str) -> float:
    """Return substitutions, deletions and insertions per word of the reference; NaN where it has no words.

    Upper case, punctuation and spaces do not count; it can exceed 1.
    """
    wanted, found = _words(reference), _words(heard)
    if not wanted:
        return float("nan")
    row = np.arange(len(found) + 1)
    for i, word in enumerate(wanted, 1):
        before, row = row, np.empty_like(row)
        row[0] = i
        for j, other in enumerate(found, 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (word != other))
    return float(row[-1] / len(wanted))


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w\s']|_", " ", text.casefold()).split()


def _at_least(samples: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Return the samples, with zeros behind them up to n: the models need some frames."""
    return samples if len(samples) >= n else np.pad(samples, (0, n - len(samples)))


def _short(name: str) -> str:
    return Path(name).resolve().name if Path(name).is_dir() else name


def _weights_hash(model: Any) -> str:  # noqa: ANN401
    parts: list[bytes | str] = []
    for key, tensor in sorted(model.state_dict().items()):
        parts += [key, tensor.detach().cpu().numpy().tobytes()]
    return digest(*parts)


@contextlib.contextmanager
def _loading(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} cannot be opened as {what}: {reason}: give a hub id or a folder") from error
