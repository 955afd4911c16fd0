"""ECAPA-TDNN voices: the speaker encoder inside every Qwen3-TTS Base model, by hub name or folder.

Conventions. Qwen3-TTS Base clones a voice from one vector of this encoder (Desplanques et al. 2020), read from 128 log
mel bands at 24 kHz. Only its weights are loaded (`speaker_encoder.*`), into the released class of qwen-tts, in float32;
the mel spectrogram is the released one too. ECAPA models of SpeechBrain lie in files of another library and need it
with its own loader: they are refused by name.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codecprobe.talker_files import folder_of
from probecore.errors import InputError

PREFIX = "speaker_encoder."
RATE_HZ = 24_000
MEL = {"n_fft": 1024, "num_mels": 128, "sampling_rate": RATE_HZ, "hop_size": 256, "win_size": 1024, "fmin": 0}


def holds_ecapa(name: str) -> bool:
    """Return whether a speaker model by this name is a Qwen3-TTS model.

    Raises `InputError` for an ECAPA model of SpeechBrain, which cannot be read here.
    """
    folder = Path(name).expanduser()
    if name.startswith("speechbrain/") or (folder / "hyperparams.yaml").is_file():
        raise InputError(
            f"{name} is a model of SpeechBrain, whose files need that library: give ECAPA as the speaker encoder of "
            "Qwen/Qwen3-TTS-12Hz-1.7B-Base, or an x-vector model such as microsoft/wavlm-base-plus-sv"
        )
    if folder.is_dir():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False  # no model of transformers: said by who opens it
        return isinstance(config, dict) and config.get("model_type") == "qwen3_tts"
    return name.lower().startswith("qwen/qwen3-tts")


class EcapaEncoder:
    """The speaker encoder of one model; `name` as results call it, `state` its weights by name.

    Raises `InputError` for a model without one (CustomVoice, VoiceDesign), `MissingExtraError` without qwen-tts.
    """

    rate_hz = RATE_HZ

    def __init__(self, model: str, device: torch.device) -> None:
        from codecprobe.codecs.qwen3_compat import import_qwen_tts
        from codecprobe.codecs.qwen3_talker_compat import read_config

        folder, self.name = folder_of(model)
        config = read_config(folder)
        if config.get("tts_model_type") != "base":
            raise InputError(
                f"{self.name}: only a Base model of Qwen3-TTS has a speaker encoder; got "
                f"{config.get('tts_model_type')!r}: give for example Qwen/Qwen3-TTS-12Hz-1.7B-Base"
            )
        import_qwen_tts()
        from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSSpeakerEncoderConfig
        from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSSpeakerEncoder

        own = dict(config.get("speaker_encoder_config") or {})
        known = vars(Qwen3TTSSpeakerEncoderConfig())
        self.encoder: Any = Qwen3TTSSpeakerEncoder(
            Qwen3TTSSpeakerEncoderConfig(**{key: value for key, value in own.items() if key in known})
        )
        state = _weights(folder)
        try:
            self.encoder.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{self.name}: its speaker encoder cannot be loaded: {reason}") from error
        self.encoder.float().eval().requires_grad_(False).to(device)
        self._device = device

    def vector(self, wave: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the vector of a waveform (samples,) at 24 kHz of at least half a second, (dim,)."""
        from qwen_tts.core.models.modeling_qwen3_tts import mel_spectrogram

        samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))[None]
        # The released function prints a warning to stdout where a sample lies beyond 1.
        with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
            mel = mel_spectrogram(samples, **MEL, fmax=RATE_HZ // 2).transpose(1, 2)
            found: NDArray[np.float64] = self.encoder(mel.to(self._device))[0].double().cpu().numpy()
        return found


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for key in stream.keys():
                if key.startswith(PREFIX):
                    found[key.removeprefix(PREFIX)] = stream.get_tensor(key).float()
    return found
