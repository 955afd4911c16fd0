"""Open a model of transformers so that its numbers are those of the file: float32, eval mode, every tensor checked.

Conventions. A folder holds config.json and one model.safetensors. Tensors have the names they have in published files,
whatever a version of transformers calls them inside the model; `published` translates. Nothing is printed.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probecore.errors import CertificateError, InputError, shorten
from probecore.provenance import digest

_VOLATILE = frozenset({"transformers_version", "architectures", "torch_dtype", "dtype", "_name_or_path"})
# Weight normalisation: torch's present names, and those of files written before 2023.
_NORMS = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}


def load_model(class_name: str, folder: Path, published: Callable[[str], str] = str) -> Any:  # noqa: ANN401
    """Return the real `transformers.<class_name>.from_pretrained(folder)` on the CPU, float32, eval, without gradients.

    published : the name in a published file of a name inside the model.

    Raises `InputError` when nothing can be loaded, `CertificateError` when a tensor is not the file's (transformers
    fills what it does not find with random numbers).
    """
    import transformers
    from safetensors import SafetensorError

    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{folder}: holds no model.safetensors: give a folder as save_pretrained writes it")
    try:
        with _silence():
            cls = getattr(transformers, class_name)
            model = cls.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InputError(f"{folder}: cannot be loaded as {class_name}: {first}") from error
    model.eval().requires_grad_(False)
    _check_tensors(model, path, published)
    return model


def weights_hash(model: nn.Module, folder: Path, published: Callable[[str], str] = str) -> str:
    """Return the hash of all tensors by their published names, and of the configuration that says what they mean."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parts: list[bytes | str] = [json.dumps(_without_volatile(config), sort_keys=True)]
    tensors = {_old(published(name)): tensor for name, tensor in model.state_dict().items()}
    for name in sorted(tensors):
        values = array_of(tensors[name])
        parts += [name, str(values.dtype), str(values.shape), values.tobytes()]
    return digest(*parts)


def array_of(tensor: Tensor) -> NDArray[Any]:
    """Return a copy: what a caller does with it cannot reach the model."""
    return np.array(tensor.detach().cpu().numpy(), order="C")


def _check_tensors(model: nn.Module, path: Path, published: Callable[[str], str]) -> None:
    from safetensors import safe_open

    missing = {_old(published(name)): tensor for name, tensor in model.state_dict().items()}
    with safe_open(path, framework="pt") as stream:
        for name in stream.keys():
            loaded = missing.get(_old(published(name)))
            if loaded is not None and torch.equal(stream.get_tensor(name).to(loaded.dtype), loaded):
                del missing[_old(published(name))]
    if missing:
        raise CertificateError(
            f"{path.parent.name}: {len(missing)} tensors are not those of the file: "
            f"{shorten(sorted(missing), most=3)}: give a folder whose weights fit its config.json"
        )


def _old(name: str) -> str:
    for new, old in _NORMS.items():
        name = name.replace(new, old)
    return name


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Load without bars or warnings, in float32 whatever the default dtype is."""
    import transformers

    logging = transformers.utils.logging
    verbosity, bars, dtype = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_default_dtype()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _without_volatile(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _without_volatile(inner) for key, inner in value.items() if key not in _VOLATILE}
    return value
