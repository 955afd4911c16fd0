"""Where a whole Qwen3-TTS model lies, and whether it listens to instructions.

A model is a folder, or a hub name OWNER/NAME: what the hub's local cache holds, else downloaded now. What is cached is
used as it is, so that nothing needs a network twice; the folder, never the name, is what gets loaded, because
transformers 4.57 asks the hub about a name even when told to stay offline.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probecore.errors import InputError

_NEEDED = ("config.json", "generation_config.json", "speech_tokenizer/config.json")
_FILES = ("*.json", "*.txt", "*.safetensors", "speech_tokenizer/*")


def folder_of(model: str | Path) -> tuple[Path, str]:
    """Return the folder of a model and what results call it. Raises `InputError` when it cannot be had."""
    text = str(model)
    folder = Path(text).expanduser()  # a folder of that name wins over the hub
    if text and folder.is_dir():
        folder = folder.resolve()
        absent = [name for name in _NEEDED if not (folder / name).is_file()]
        if absent and (folder / "config.json").is_file() and "config.json" not in absent:
            from codecprobe.codecs.qwen3_talker_compat import read_config

            read_config(folder)  # says what it is, where it is something else
        if absent:
            raise InputError(f"{folder.name}: no Qwen3-TTS model, it lacks {absent[0]}: give the folder as released")
        return folder, folder.name
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        snapshot = _snapshot(text)
        return snapshot, f"{text}@{snapshot.name[:12]}"
    raise InputError(
        f"--model must be a folder or a hub name OWNER/NAME of a Qwen3-TTS model; got {text!r}, which is neither: "
        "give for example Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign"
    )


def why_deaf(config: Mapping[str, Any]) -> str:
    """Return why an instruction cannot reach a model of this configuration; empty where it can.

    The released code drops the instruction of a CustomVoice model of 0.6B without a word (`tts_model_size in "0b6"`).
    """
    kind, size = config.get("tts_model_type"), str(config.get("tts_model_size"))
    if kind not in ("custom_voice", "voice_design"):
        return f"a {kind} model of Qwen3-TTS takes no instruction (it clones a recording)"
    if kind == "custom_voice" and size in "0b6":
        return "the released code drops the instruction of a 0.6B CustomVoice model silently, so no style can reach it"
    return ""


def _snapshot(repository: str) -> Path:
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        if all((folder / name).is_file() for name in _NEEDED) and any(folder.glob("*.safetensors")):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise InputError(f"{repository} is no hub name ({_first_line(error)}): give OWNER/NAME") from error
    try:
        model_info(repository, timeout=10)
    except HfHubHTTPError as error:
        raise InputError(f"{repository}: the hub does not give it ({_first_line(error)}): check the name") from error
    except Exception as error:  # whatever the version's HTTP library raises when there is no network
        raise InputError(
            f"{repository} is not in the local hub cache and the hub cannot be reached: "
            "give a folder as released, or run once with a network"
        ) from error
    try:
        return Path(snapshot_download(repository, allow_patterns=list(_FILES)))
    except OSError as error:
        raise InputError(f"{repository}: download failed ({_first_line(error)}): run again, it resumes") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
