"""Open a codec by name, by hub id or by folder.

A name is one of `CODECS`; a hub id holds one slash (`Qwen/Qwen3-TTS-Tokenizer-12Hz`); a folder is one that
`save_pretrained` wrote, told apart by `model_type` in its config.json. A folder that exists wins over a hub id. A
number after a colon keeps the first layers of a codec whose decoder takes fewer (`mimi:8`). Nothing heavy is imported
before a codec is opened.
"""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probecore.errors import InputError

if TYPE_CHECKING:
    from codecprobe.codecs.codec import Codec

QWEN3_TTS_12HZ = "Qwen/Qwen3-TTS-Tokenizer-12Hz"

CODECS = {
    "embedded": "residual vector quantiser inside the package, synthetic: layer 0 content, layers 1-2 voice",
    "embedded-flat": "the same quantiser without the planted structure",
    "qwen3-tts-12hz": f"Qwen3-TTS tokenizer, 12.5 Hz, 16 layers, 24 kHz ({QWEN3_TTS_12HZ})",
    "mimi": "Mimi, 12.5 Hz, 32 layers, 24 kHz (kyutai/mimi)",
    "encodec": "EnCodec, 75 Hz, 32 layers, 24 kHz (facebook/encodec_24khz)",
    "dac": "Descript audio codec, 50 Hz, 12 layers, 16 kHz (descript/dac_16khz)",
    "xcodec": "X-codec over HuBERT, 50 Hz, 8 layers, 16 kHz (hf-audio/xcodec-hubert-librispeech)",
}

_HUB_IDS = {
    "qwen3-tts-12hz": QWEN3_TTS_12HZ,
    "mimi": "kyutai/mimi",
    "encodec": "facebook/encodec_24khz",
    "dac": "descript/dac_16khz",
    "xcodec": "hf-audio/xcodec-hubert-librispeech",
}
_MODEL_TYPES = {
    "qwen3_tts_tokenizer_12hz": "codecprobe.codecs.qwen3_tts:open_qwen3_tts",
    "mimi": "codecprobe.codecs.mimi:open_mimi",
    "encodec": "codecprobe.codecs.encodec:open_encodec",
    "dac": "codecprobe.codecs.dac:open_dac",
    "xcodec": "codecprobe.codecs.xcodec:open_xcodec",
}
_CAN_BE_CUT = ("mimi", "encodec", "dac", "xcodec")  # their decoders take the first layers alone
_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_REFUSED = {
    "qwen3_tts": "is a whole Qwen3-TTS model, not a codec: give its subfolder speech_tokenizer",
    "qwen3_tts_tokenizer_25hz": "is the 25 Hz tokenizer, which has no residual layers: give the 12 Hz tokenizer",
    "xcodec2": "has one stream of finite scalar codes (FSQ), no layers and no table of entries: give an X-codec",
    "neucodec": "has one stream of finite scalar codes (FSQ), no layers and no table of entries: give another codec",
    "vibevoice_acoustic_tokenizer": "gives continuous latents and no codes: there are no layers to probe",
    "moshi": "is a language model around Mimi, not a codec: give kyutai/mimi",
}


def open_codec(name: str | Path, device: str = "auto") -> "Codec":
    """Open and certify a codec.

    Parameters
    ----------
    name : a name in `CODECS`, a folder as `save_pretrained` writes it, or a hub id; `:8` behind it keeps the first 8
        layers of Mimi, EnCodec, DAC or X-codec.
    device : auto, cpu, cuda or cuda:N; auto takes a GPU where there is one. The embedded codecs run on the CPU.

    Raises
    ------
    InputError : there is no such codec, or it can be had only with a network.
    MissingExtraError : the codec needs an optional dependency.
    CertificateError : the codec is not what it must be.
    """
    text, n_layers = _without_layers(str(name))
    if text in ("embedded", "embedded-flat"):
        from codecprobe.codecs.embedded import open_embedded

        _refuse_cut(text, n_layers)
        return open_embedded(text)
    text = _HUB_IDS.get(text, text)
    folder = _folder_of(text)
    if folder is not None:
        source = {} if Path(text).expanduser().is_dir() else {"source": f"{text}@{folder.name[:12]}"}
        return _open(folder, text, n_layers, device=device, **source)
    raise InputError(
        f"codec must be one of {', '.join(CODECS)}, a folder as save_pretrained writes it, or a hub id OWNER/NAME; "
        f"got {text!r}, which is none of them"
    )


def folder_of_codec(name: str) -> Path | None:
    """Return the folder that holds the files of a codec, a hub id's being downloaded when it is not cached.

    None for what has no folder: an embedded codec, or a name that means nothing. Raises `InputError` as `open_codec`.
    """
    text = _without_layers(name)[0]
    return _folder_of(_HUB_IDS.get(text, text))


def _folder_of(text: str) -> Path | None:
    folder = Path(text).expanduser()  # a folder of that name wins over the hub
    if text and folder.is_dir():
        return folder
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return _snapshot(text)
    return None


def _without_layers(name: str) -> tuple[str, int | None]:
    """Split NAME:8 into name and number of layers; a folder of that very name is a folder."""
    text, colon, number = name.rpartition(":")
    if not colon or not number.isdecimal() or Path(name).expanduser().is_dir():
        return name, None
    return text, int(number)


def _open(folder: Path, name: str, n_layers: int | None, **settings: str) -> "Codec":
    model_type = _model_type_of_folder(folder)
    adapter = _adapter(model_type, name)
    if n_layers is None:
        return adapter(folder, **settings)
    if model_type not in _CAN_BE_CUT:
        _refuse_cut(name, n_layers)
    return adapter(folder, n_layers=n_layers, **settings)


def _refuse_cut(name: str, n_layers: int | None) -> None:
    if n_layers is not None:
        raise InputError(f"{name}:{n_layers}: this codec decodes all of its layers or none: give {name} alone")


def _adapter(model_type: str, name: str) -> "Callable[..., Codec]":
    if model_type not in _MODEL_TYPES:
        reason = _REFUSED.get(model_type, f"is no codec known here (known: {', '.join(_MODEL_TYPES)})")
        raise InputError(f"{name}: model_type {model_type!r} {reason}")
    module, _, function = _MODEL_TYPES[model_type].partition(":")
    adapter: Callable[..., Codec] = getattr(import_module(module), function)
    return adapter


def _model_type_of_folder(folder: Path) -> str:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: not a codec folder, it has no config.json: give one as save_pretrained writes it")
    return _model_type(path, str(folder))


def _snapshot(repository: str) -> Path:
    """Return the folder of a hub repository: what the hub's local cache holds, else downloaded now.

    What is cached is used as it is, so nothing needs a network twice. A download starts with one request that does not
    retry and with the configuration, so that a missing network or another kind of model shows at once.
    """
    from huggingface_hub import hf_hub_download, model_info, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        if all((folder / name).is_file() for name in _FILES):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise InputError(f"{repository} is no hub id ({_first_line(error)}): give OWNER/NAME") from error
    try:
        model_info(repository, timeout=10)
    except HfHubHTTPError as error:
        raise InputError(f"{repository}: the hub does not give it ({_first_line(error)}): check the name") from error
    except Exception as error:  # whatever the version's HTTP library raises when there is no network
        raise InputError(
            f"{repository} is not in the local hub cache and the hub cannot be reached: "
            "give a folder as save_pretrained writes it, or run once with a network"
        ) from error
    try:
        _adapter(_model_type(Path(hf_hub_download(repository, "config.json")), repository), repository)
        return Path(snapshot_download(repository, allow_patterns=list(_FILES)))
    except OSError as error:
        raise InputError(f"{repository}: download failed ({_first_line(error)}): run again, it resumes") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _model_type(path: Path, name: str) -> str:
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{name}: config.json is not valid JSON ({error}): save the codec again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise InputError(f"{name}: config.json names no model_type: give a folder as save_pretrained writes it")
    return model_type
