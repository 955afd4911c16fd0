"""Run the unmodified qwen-tts 0.1.1 on transformers 4.57.3 and on 5.15 to 5.23. Every test of a version is in here.

Nothing in site-packages is edited, transformers is not left patched, nothing is printed.

* sox and onnxruntime serve only the 25 Hz tokenizer, and `import sox` starts a process: placeholders stand in for them
  while qwen_tts is imported, and are gone afterwards. torchaudio, einops, librosa and soundfile get one only where they
  do not import; a call that really needs such a module then raises an ImportError that names it.
* 4.57.x needs nothing else. On 5.x the functions that were renamed are adapted inside qwen_tts's own module, and after
  loading two silent faults are repaired: `inv_freq` is not in the checkpoint and stays uninitialised memory, and Mimi
  attends over 250 frames (10 s) instead of all. With these, codes and audio equal those of 4.57.3.
"""

import contextlib
import functools
import importlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from probecore.errors import CertificateError, InputError, MissingExtraError, shorten

QWEN_TTS_VERSION = "0.1.1"
WHOLE_CLIP = 1_000_000  # attention window of the encoder, in steps of 40 ms: no clip is longer than 11 hours

_ALWAYS = ("sox", "onnxruntime")
_IF_MISSING = (
    *("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"),
    *("einops", "soundfile", "librosa", "librosa.filters"),
)
# What qwen_tts takes from transformers: loaded before placeholders exist, so that transformers binds the real modules.
_PRELOAD = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoFeatureExtractor", "EncodecFeatureExtractor", "MimiModel")
# Published names of the encoder's tensors, and where they belong from 5.21 on (Mimi's encoder is a module of its own).
_MOVED = {
    "encoder.encoder.layers.": "encoder.encoder.encoder_seanet.layers.",
    "encoder.encoder_transformer.": "encoder.encoder.encoder_transformer.",
    "encoder.downsample.": "encoder.encoder.downsample.",
}
_RENAMED = {"encoder.encoder.encoder.layers.": "encoder.encoder.layers."}  # what 5.21 on writes into a file


def load_tokenizer(folder: Path, device: torch.device) -> Any:  # noqa: ANN401
    """Return the real `Qwen3TTSTokenizer.from_pretrained(folder)`, in float32, in eval mode, repaired, on the device.

    Raises `MissingExtraError`, `InputError` (nothing to load) or `CertificateError` (a version that is not supported,
    weights that do not fit).
    """
    import_qwen_tts()
    from qwen_tts import Qwen3TTSTokenizer
    from safetensors import SafetensorError

    settings: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    if _mimi_is_split():
        stored = _MOVED | {name: _MOVED[published] for name, published in _RENAMED.items()}
        settings["key_mapping"] = {f"^{re.escape(name)}": inside for name, inside in stored.items()}
    try:
        tokenizer = _from_pretrained(Qwen3TTSTokenizer, folder, settings)
    except ValueError as error:
        if "already used by a Transformers" not in str(error):
            raise InputError(f"{folder}: cannot be loaded: {_first_line(error)}") from error
        raise CertificateError(
            f"transformers {version('transformers')} has taken the model type of qwen-tts {QWEN_TTS_VERSION}: "
            "install transformers 4.57.3, or 5.15 to 5.23"
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be loaded: {_first_line(error)}") from error
    tokenizer.model.eval().requires_grad_(False)
    if _is_version_5():
        _repair(tokenizer.model)
    tokenizer.model.to(device)
    tokenizer.device = device
    return tokenizer


@functools.cache
def import_qwen_tts() -> ModuleType:
    """Import and return qwen_tts; the second call costs nothing.

    Raises `MissingExtraError` when it is not installed, `CertificateError` for versions that are not supported.
    """
    _check_versions()
    import transformers

    for name in _PRELOAD:
        with contextlib.suppress(Exception):  # on 5.x some fail beside a torchaudio that does not load
            getattr(transformers, name)
    with _check_model_inputs_of_4(), _placeholders(), contextlib.redirect_stdout(io.StringIO()):
        module = importlib.import_module("qwen_tts")
    if _is_version_5():
        _adapt_modules()
    return module


def encoder_downsample(model: Any) -> nn.Module:  # noqa: ANN401
    """Return the stride-2 convolution whose output is the latent before quantisation, (batch, dim, frames)."""
    encoder = model.encoder
    module: nn.Module = encoder.encoder.downsample if _mimi_is_split() else encoder.downsample
    return module


def encoder_transformer(model: Any) -> nn.Module:  # noqa: ANN401
    """Return the encoder's transformer, (batch, steps of 40 ms, dim) in and out."""
    encoder = model.encoder
    module: nn.Module = encoder.encoder.encoder_transformer if _mimi_is_split() else encoder.encoder_transformer
    return module


def encoder_window(model: Any) -> int | None:  # noqa: ANN401
    """Return over how many steps of 40 ms the encoder attends; None: over all, this transformers applies no window."""
    if not _is_version_5():
        return None
    transformer: Any = encoder_transformer(model)
    windows = [transformer.config.sliding_window, *(layer.self_attn.sliding_window for layer in transformer.layers)]
    return int(min(windows))


def rope_frequencies(config: Any, n: int) -> Tensor:  # noqa: ANN401
    """Return the n frequencies of plain rotary embedding, theta^(-2i / 2n), float32.

    Raises `CertificateError` when the configuration asks for another kind of RoPE.
    """
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default":
        raise CertificateError(
            f"RoPE must be the plain one; the configuration asks for {kind!r}, which is unknown here"
        )
    theta = given.get("rope_theta") or config.rope_theta
    frequencies: Tensor = 1.0 / (theta ** (torch.arange(0, 2 * n, 2, dtype=torch.int64).float() / (2 * n)))
    return frequencies


def published_name(name: str) -> str:
    """Return the name of a tensor in the published checkpoint, the same on every transformers."""
    for other, published in ({inside: published for published, inside in _MOVED.items()} | _RENAMED).items():
        if name.startswith(other):
            return published + name.removeprefix(other)
    return name


def _from_pretrained(cls: Any, folder: Path, settings: dict[str, Any]) -> Any:  # noqa: ANN401
    """Load without bars or warnings on stderr, whatever the default dtype is; then see that no weight is missing."""
    import transformers

    logging = transformers.utils.logging
    verbosity, bars, dtype = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_default_dtype()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_default_dtype(torch.float32)
    try:
        tokenizer = cls.from_pretrained(str(folder), **settings)
    finally:
        torch.set_default_dtype(dtype)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    _check_weights(tokenizer.model, folder)
    return tokenizer


def _check_weights(model: nn.Module, folder: Path) -> None:
    """See that every tensor is the checkpoint's; transformers fills what it does not find with random numbers."""
    from safetensors import safe_open

    missing = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    with safe_open(folder / "model.safetensors", framework="pt") as stream:
        for name in stream.keys():
            loaded = missing.get(published_name(name))
            if loaded is not None and torch.equal(stream.get_tensor(name).to(loaded.dtype), loaded):
                del missing[published_name(name)]
    if missing:
        raise CertificateError(
            f"{folder}: {len(missing)} tensors are not those of the checkpoint: {shorten(sorted(missing), most=3)}: "
            "give the folder of a Qwen3-TTS 12 Hz tokenizer as released"
        )


@functools.cache
def _check_versions() -> None:
    if _installed("qwen-tts-hf"):
        raise CertificateError(
            "qwen-tts-hf is installed, a fork with the same import name that gives other results: "
            f"pip uninstall qwen-tts-hf qwen-tts, then pip install --no-deps qwen-tts=={QWEN_TTS_VERSION}"
        )
    found = _installed("qwen-tts")
    beside = f" (beside transformers 5: pip install --no-deps qwen-tts=={QWEN_TTS_VERSION})" if _is_version_5() else ""
    if found is None:
        raise MissingExtraError(f"the Qwen3-TTS codec{beside}", "qwen")
    if found != QWEN_TTS_VERSION:
        raise CertificateError(
            f"qwen-tts must be {QWEN_TTS_VERSION}, the version that was checked; got {found}: "
            f"pip install --no-deps qwen-tts=={QWEN_TTS_VERSION}"
        )
    if not ((4, 57, 3) <= _transformers() < (4, 58) or (5, 15) <= _transformers() < (5, 24)):
        raise CertificateError(
            f"transformers must be 4.57.3 or 5.15 to 5.23 for this codec; got {version('transformers')}: "
            "pip install transformers==4.57.3"
        )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _transformers() -> tuple[int, ...]:
    from packaging.version import Version

    return Version(version("transformers")).release


def _is_version_5() -> bool:
    return _transformers() >= (5,)


def _mimi_is_split() -> bool:
    return _transformers() >= (5, 21)


class _Placeholder(ModuleType):
    """Stands in for a module that is not installed: importing from it works, calling what was imported does not."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_args: object, **_kwargs: object) -> None:
            raise ImportError(f"{self.__name__}.{name}() was called but {self.__name__} is not installed")

        return missing


@contextlib.contextmanager
def _placeholders() -> Iterator[None]:
    roots = dict.fromkeys(name.partition(".")[0] for name in _IF_MISSING)
    absent = {root for root in roots if not _imports(root)}
    names = [name for name in _ALWAYS if name not in sys.modules]
    names += [name for name in _IF_MISSING if name.partition(".")[0] in absent]
    try:
        for name in names:
            module = _Placeholder(name)
            module.__path__ = []
            module.__spec__ = ModuleSpec(name, None, is_package=True)
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # a torchaudio built for another torch raises OSError, not ImportError
        return False
    return True


@contextlib.contextmanager
def _check_model_inputs_of_4() -> Iterator[None]:
    """Offer the decorator factory of 4.57 while qwen_tts is imported; 5.x has a plain decorator or none."""
    if not _is_version_5():
        yield
        return
    from transformers.utils import generic

    absent = object()
    original = getattr(generic, "check_model_inputs", absent)

    def check_model_inputs(function: Any = None) -> Any:  # noqa: ANN401
        return (lambda f: f) if function is None else function

    generic.check_model_inputs = check_model_inputs
    try:
        yield
    finally:
        if original is absent:
            del generic.check_model_inputs
        else:
            generic.check_model_inputs = original


def _adapt_modules() -> None:
    """Put the 4.57 names back where qwen_tts looks them up, in its own codec module only."""
    import qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 as codec
    from transformers import MimiModel, masking_utils, modeling_rope_utils

    codec.ROPE_INIT_FUNCTIONS = {**modeling_rope_utils.ROPE_INIT_FUNCTIONS, "default": _default_rope}
    codec.create_causal_mask = _with_names_of_4(masking_utils.create_causal_mask)
    codec.create_sliding_window_causal_mask = _with_names_of_4(masking_utils.create_sliding_window_causal_mask)
    if _mimi_is_split():

        def init(self: Any, config: object) -> None:  # noqa: ANN401
            MimiModel.__init__(self, config)
            self.decoder = None

        codec.Qwen3TTSTokenizerV2Encoder.__init__ = init


def _default_rope(config: Any, device: torch.device | None = None, **_: object) -> tuple[Tensor, float]:  # noqa: ANN401
    """Give what ROPE_INIT_FUNCTIONS["default"] gave: frequencies, and the scale of attention."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return rope_frequencies(config, head // 2).to(device), 1.0


def _with_names_of_4(function: Callable[..., Any]) -> Callable[..., Any]:
    """Accept the keywords of 4.57 (input_embeds=, cache_position=); drop those that no longer exist."""
    names = set(signature(function).parameters)

    @functools.wraps(function)
    def mask(**keywords: object) -> Any:  # noqa: ANN401
        if "inputs_embeds" in names and "input_embeds" in keywords:
            keywords["inputs_embeds"] = keywords.pop("input_embeds")
        return function(**{name: value for name, value in keywords.items() if name in names})

    return mask


@torch.no_grad()
def _repair(model: Any) -> None:  # noqa: ANN401
    """Rebuild the decoder's uninitialised inv_freq, and give the encoder the full causal attention of 4.57."""
    for module in model.decoder.modules():
        if hasattr(module, "inv_freq"):
            frequencies, module.attention_scaling = _default_rope(module.config, module.inv_freq.device)
            module.inv_freq.copy_(frequencies)
            module.original_inv_freq = module.inv_freq
    transformer: Any = encoder_transformer(model)
    transformer.config.sliding_window = WHOLE_CLIP
    for layer in transformer.layers:
        layer.self_attn.sliding_window = WHOLE_CLIP


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
