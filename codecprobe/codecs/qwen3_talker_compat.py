"""Load a whole Qwen3-TTS model (talker, code predictor, text tokenizer, codec) with qwen-tts 0.1.1 unmodified.

Conventions. A folder holds config.json, generation_config.json, *.safetensors, the text tokenizer's files and the codec
in `speech_tokenizer/`. What differs between transformers 4.57.3 and 5.15 to 5.23 is adapted here, inside qwen_tts's own
modules, and only there:

* 5.x has renamed what masks and RoPE are made with, no longer gives configurations their special ids, wants a mapping
  of tied weights, and `generate` no longer passes `cache_position`;
* 5.x leaves `inv_freq`, which is not in the file, as uninitialised memory: rebuilt from its formula after loading.

The codec inside is opened by `qwen3_compat.load_tokenizer`, so that it is the one the codec commands measure.
"""

import contextlib
import functools
import json
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codecprobe.codecs import qwen3_compat as compat
from probecore.errors import CertificateError, InputError, shorten


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a whole Qwen3-TTS model. Raises `InputError` for anything else."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: has no config.json: give the folder of a Qwen3-TTS model as released")
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder}: config.json is not valid JSON ({error}): download the model again") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != "qwen3_tts":
        raise InputError(
            f"{folder}: a Qwen3-TTS model is needed (model_type 'qwen3_tts'); got {found!r}: give the folder "
            "or hub name of Qwen3-TTS CustomVoice or VoiceDesign, 1.7B"
        )
    found_config: dict[str, Any] = config
    return found_config


def load_tts(folder: Path, device: torch.device) -> Any:  # noqa: ANN401
    """Return the real `Qwen3TTSModel.from_pretrained(folder)`: float32, eval, no gradients, repaired, on the device.

    Raises `MissingExtraError`, `InputError` (nothing to load) or `CertificateError` (versions or weights that do not
    fit).
    """
    read_config(folder)
    compat.import_qwen_tts()
    if compat._is_version_5():
        _adapt_talker()
    from qwen_tts import Qwen3TTSModel
    from safetensors import SafetensorError

    try:
        with silence(), _our_codec():
            tts = Qwen3TTSModel.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        if "already used by a Transformers" in str(error):
            raise CertificateError(
                f"transformers {version('transformers')} has taken the model type of qwen-tts "
                f"{compat.QWEN_TTS_VERSION}: install transformers 4.57.3, or 5.15 to 5.23"
            ) from error
        raise InputError(f"{folder}: cannot be loaded: {compat._first_line(error)}") from error
    tts.model.eval().requires_grad_(False)
    _check_weights(tts.model, folder)
    if compat._is_version_5():
        _rebuild_frequencies(tts.model)
    tts.model.to(device)
    tts.device = device
    tts.model.speech_tokenizer.model.to(device)
    tts.model.speech_tokenizer.device = device
    return tts


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Load or generate without bars or warnings, in float32 whatever the default dtype is."""
    import transformers

    logging = transformers.utils.logging
    verbosity, bars, dtype = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_default_dtype()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_default_dtype(torch.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 5.x about how qwen-tts writes its configurations
            warnings.filterwarnings("ignore", "Passing `repetition_penalty` with `inputs_embeds`", UserWarning)
            yield
    finally:
        torch.set_default_dtype(dtype)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class _Codec:
    """Stands where the talker's module looks for the tokenizer class while a model is loaded."""

    @staticmethod
    def from_pretrained(folder: str, *_args: object, **_settings: object) -> Any:  # noqa: ANN401
        return compat.load_tokenizer(Path(folder), torch.device("cpu"))


@contextlib.contextmanager
def _our_codec() -> Iterator[None]:
    import qwen_tts.core.models.modeling_qwen3_tts as talker

    original = talker.Qwen3TTSTokenizer
    talker.Qwen3TTSTokenizer = _Codec
    try:
        yield
    finally:
        talker.Qwen3TTSTokenizer = original


def _check_weights(model: nn.Module, folder: Path) -> None:
    """See that every tensor is the file's; transformers fills what it does not find with random numbers."""
    from safetensors import safe_open

    missing = dict(model.state_dict())
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():
                loaded = missing.get(name)
                if loaded is not None and torch.equal(stream.get_tensor(name).to(loaded.dtype), loaded):
                    del missing[name]
    if missing:
        raise CertificateError(
            f"{folder}: {len(missing)} tensors are not those of the file: {shorten(sorted(missing), most=3)}: "
            "give the folder of a Qwen3-TTS model as released"
        )


@torch.no_grad()
def _rebuild_frequencies(model: nn.Module) -> None:
    for module in model.modules():
        found: Any = module
        if hasattr(found, "inv_freq") and type(found).__name__.startswith("Qwen3TTS"):
            frequencies, found.attention_scaling = compat._default_rope(found.config, found.inv_freq.device)
            found.inv_freq.copy_(frequencies)
            found.original_inv_freq = found.inv_freq


@functools.cache
def _adapt_talker() -> None:
    """Put the names of 4.57 back where the talker's module looks them up; once."""
    import qwen_tts.core.models.configuration_qwen3_tts as configs
    import qwen_tts.core.models.modeling_qwen3_tts as talker
    from transformers import masking_utils, modeling_rope_utils

    talker.ROPE_INIT_FUNCTIONS = {**modeling_rope_utils.ROPE_INIT_FUNCTIONS, "default": compat._default_rope}
    talker.create_causal_mask = compat._with_names_of_4(masking_utils.create_causal_mask)
    talker.create_sliding_window_causal_mask = compat._with_names_of_4(masking_utils.create_sliding_window_causal_mask)
    for config in (configs.Qwen3TTSTalkerConfig, configs.Qwen3TTSTalkerCodePredictorConfig):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if not hasattr(config, name):
                setattr(config, name, None)
    outer = talker.Qwen3TTSTalkerForConditionalGeneration
    inner = talker.Qwen3TTSTalkerCodePredictorModelForConditionalGeneration
    outer._tied_weights_keys = inner._tied_weights_keys = None  # a list where 5.x wants a mapping; it names nothing
    original = outer.forward

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
        inputs = keywords.get("inputs_embeds")
        inputs = keywords.get("input_ids") if inputs is None else inputs
        if keywords.get("cache_position") is None and inputs is not None:
            cache = keywords.get("past_key_values")
            past = cache.get_seq_length() if cache is not None else 0
            keywords["cache_position"] = torch.arange(past, past + inputs.shape[1], device=inputs.device)
        return original(self, *args, **keywords)

    outer.forward = forward
