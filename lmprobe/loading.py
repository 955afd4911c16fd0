"""Loading: a hub name or a local folder becomes a `LanguageModel`, or one line that says what to do.

Nothing is printed on standard output. A local folder never touches the network. A hub name is resolved to one commit
first, so that configuration, tokenizer and weights belong together and the revision is known; without a network the
cache answers. A checkpoint whose weights do not fill the model is refused: transformers would fill the rest with random
numbers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lmprobe.arithmetic_model import register
from lmprobe.encoders import is_encoder_config, load_encoder
from lmprobe.models import LanguageModel, wrap_model
from lmprobe.organisms.packed import organism_folder
from probecore.devices import device_of
from probecore.errors import InputError, shorten

_NOT_THERE = ("RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError")


def open_model(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    quiet: bool = False,
    attention: str | None = None,
    trust_remote_code: bool = False,
    blocks: str | None = None,
    final_norm: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    load_options: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Open any Hugging Face causal language model, or encoder of the BERT family, with its tokenizer and certify it.

    name_or_path : a hub name ("gpt2"), a folder as `save_pretrained` writes it, or the name of a packaged organism
        ("refusal-1"; `lmprobe.organisms.organism_names`), where no folder of that name is there.
    device : auto (a GPU where there is one), cpu, cuda, cuda:N or mps. dtype : "float32", "bfloat16", ... or None for
        the dtype of the checkpoint. attention : attention implementation (eager, sdpa, ...), None for the default.
    quiet : no progress bars and no warnings of transformers on standard error.
    trust_remote_code : run code that comes with the checkpoint. blocks, final_norm : see `wrap_model`.
    device_map : spread the weights over devices ("auto", or module -> device; needs accelerate); then `device` is not
        used. Weights that are offloaded out of memory are refused. load_options : further arguments of
        `from_pretrained`, such as quantization_config. Quantised checkpoints open as they are.
    Raises `InputError` when there is no such folder or model, no network, no tokenizer, or no causal language model;
    `CertificateError` when the model cannot be certified.
    """
    target = device_of(device, mps=True)
    name = os.fspath(name_or_path)
    folder = _folder(name)
    source = str(folder) if folder is not None else name
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    if folder is None:
        commit = _commit(name, revision)
        options |= {"revision": commit or revision, "local_files_only": commit is None}
        revision = commit or revision
    with quietly(quiet):
        config = _load("the configuration", name, folder, _config, source, options)
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(
                f"{_shown(name, folder)} must be a causal language model; it is an encoder-decoder "
                f"({config.model_type}): open a decoder-only model"
            )
        tokenizer = _load("the tokenizer", name, folder, _tokenizer, source, options)
        more = {} if attention is None else {"attn_implementation": attention}
        load = load_encoder if is_encoder_config(config) else _weights
        more |= dict(load_options or {})
        if device_map is None and (getattr(config, "quantization_config", None) or "quantization_config" in more):
            device_map = {"": str(target)}  # a quantised model stays where it was loaded
        placed = {} if device_map is None else {"device_map": device_map}
        every = {**options, "dtype": _dtype(dtype), **more, **placed}
        model = _load("the weights", name, folder, load, source, every)
        return wrap_model(
            model if placed else model.to(target), tokenizer, name=_shown(name, folder), revision=revision,
            blocks=blocks, final_norm=final_norm,
        )  # fmt: skip


def opened(
    model: str | os.PathLike[str] | LanguageModel,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> LanguageModel:
    """Return an opened model as it is, and open a name or folder; options and errors are those of `open_model`."""
    if isinstance(model, LanguageModel):
        return model
    return open_model(model, revision=revision, device=device, dtype=dtype, device_map=device_map, quiet=quiet)


def open_tokenizer(name_or_path: str | os.PathLike[str], *, revision: str | None = None, quiet: bool = False) -> Any:  # noqa: ANN401
    """Return the tokenizer of a model without its weights; raises `InputError` as `open_model` does."""
    name = os.fspath(name_or_path)
    folder = _folder(name)
    options: dict[str, Any] = {"local_files_only": True}
    if folder is None:
        commit = _commit(name, revision)
        options = {"revision": commit or revision, "local_files_only": commit is None}
    with quietly(quiet):
        return _load("the tokenizer", name, folder, _tokenizer, name if folder is None else str(folder), options)


def _commit(name: str, revision: str | None) -> str | None:
    """Return the commit of the hub that a name and revision stand for, None where the hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(name, revision=revision, timeout=10).sha
    except Exception as error:  # which one depends on the hub client: requests or httpx, offline mode, a time-out
        if type(error).__name__ in (*_NOT_THERE, "GatedRepoError"):
            raise InputError(_explain("the model", name, None, error)) from error
        return None  # the cache may still have it


def _config(source: str, options: dict[str, Any]) -> Any:  # noqa: ANN401
    from transformers import AutoConfig

    register()
    return AutoConfig.from_pretrained(source, **options)


def _tokenizer(source: str, options: dict[str, Any]) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, **options)


def _weights(source: str, options: dict[str, Any]) -> Any:  # noqa: ANN401
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    absent = sorted({*report.get("missing_keys", ()), *(str(k) for k in report.get("mismatched_keys", ()))})
    if absent:
        raise InputError(
            f"a checkpoint must fill the whole {type(model).__name__}; {len(absent)} weights are missing or of another "
            f"shape ({shorten(absent, most=3)}) and would be random: open a causal language model's own checkpoint"
        )
    return model


def _load(what: str, name: str, folder: Path | None, load: Any, source: str, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """Call a loader and turn what transformers raises into one line with the next step."""
    try:
        return load(source, options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(_explain(what, _shown(name, folder), folder, error)) from error


def _explain(what: str, shown: str, folder: Path | None, error: Exception) -> str:
    text = " ".join(str(error).split())
    chain = {type(e).__name__ for e in _causes(error)} | {type(error).__name__}
    if chain & {"GatedRepoError"} or "gated repo" in text:
        return f"{shown} is gated on the hub: accept its licence there and log in (hf auth login)"
    if "trust_remote_code" in text:
        return f"{shown} brings its own code: read it, then pass trust_remote_code=True"
    if chain & set(_NOT_THERE) or "not a valid model identifier" in text:
        return f"the hub must have {shown}; it has no such model or revision: check the name, or give a folder"
    if "Unrecognized configuration class" in text:
        return f"{shown} must be a causal language model; transformers knows no such head for it: open another model"
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return f"transformers must know the architecture of {shown}; it does not: install a newer transformers"
    offline = chain & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectTimeout"}
    if folder is None and (offline or "connect" in text or "offline" in text):
        return (
            f"{what} of {shown} must be in the cache or on the network; neither answers: unset HF_HUB_OFFLINE, "
            "download it once, or give a folder"
        )
    if "accelerate" in text.lower() and ("requires" in text or "install" in text):
        return f"spreading {shown} over devices, or opening it quantised, needs accelerate: pip install accelerate"
    if what == "the tokenizer":
        return f"{shown} must come with a tokenizer; it could not be loaded ({text[:160]}): save one beside the weights"
    return f"{what} of {shown} could not be loaded: {type(error).__name__}: {text[:240]}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _folder(name: str) -> Path | None:
    """Return the local folder a name stands for, that of a packaged organism included, None for a hub name."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"a model folder must hold config.json; {name} does not: give a folder as save_pretrained writes it"
            )
        return path
    packaged = organism_folder(name)
    if packaged is not None:
        return packaged
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()
    if looks_local or not name:
        raise InputError(f"a model must be a hub name or a folder; there is no folder {name!r}: check the path")
    return None


def _shown(name: str, folder: Path | None) -> str:
    """Return the name results show: the hub name, or the folder's own name without its place on this machine."""
    return name if folder is None else folder.resolve().name


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or "auto"
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"dtype must be float32, float16, bfloat16 or float64; got {dtype!r}")
    return found if isinstance(found, torch.dtype) else "auto"


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Silence transformers' bars and warnings where asked, and put its settings back."""
    if not quiet:
        yield
        return
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
