"""Fingerprints: hashes that say which weights, which tokenizer and which chat template made a number.

The weight hash is over names, shapes, dtypes and bytes of the tensors in memory, so it does not depend on how a
checkpoint was cut into files, nor on the device.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from probecore.errors import InputError
from probecore.provenance import digest, digest_of_record


def weights_hash(model: nn.Module) -> str:
    """Return the hash of a model's saved tensors; a tensor shared by several names counts under the first of them.

    Raises `InputError` for a model whose weights are not in memory.
    """
    tensors: dict[tuple[int, tuple[int, ...]], tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if getattr(tensor, "is_meta", False):
            raise InputError(f"weights must be in memory; {name} is not: load the model without offloading")
        if isinstance(tensor, Tensor):  # a quantised model also saves settings
            tensors.setdefault((tensor.data_ptr(), tuple(tensor.shape)), (name, tensor))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        hashes = list(pool.map(lambda item: _tensor_hash(*item), tensors.values()))
    return digest(*sorted(hashes))


def tokenizer_hash(tokenizer: Any) -> str:  # noqa: ANN401
    """Return the hash of what turns text into ids: the whole fast tokenizer, or the vocabulary of a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = backend.to_str() if backend is not None else digest_of_record(tokenizer.get_vocab())
    return digest(body, str(sorted(map(str, tokenizer.all_special_tokens))))


def template_hash(tokenizer: Any) -> str | None:  # noqa: ANN401
    """Return the hash of the chat template, None without one."""
    template = getattr(tokenizer, "chat_template", None)
    return None if not template else digest(str(template))


def _tensor_hash(name: str, tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    whole = hashlib.blake2b(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode(), digest_size=8)
    whole.update(flat.view(torch.uint8).numpy().data)
    return whole.hexdigest()
