"""Inputs: prompts of different lengths as padded batches, and the arguments of a forward pass.

Conventions. Token ids are int64 (batch, time), the mask is 1 on real tokens. Position ids are counted from the mask
(0 at the first real token) and given whenever the forward pass takes them. Single forward passes pad on the right (a
causal model's real tokens cannot see the pads), generation pads on the left.

>>> [batch.tolist() for batch in length_batches([3, 9, 4, 9], budget=18)]
[[1, 3], [2, 0]]
>>> [batch.tolist() for batch in length_batches([3, 9, 4, 9], budget=18, padded=False)]
[[1, 3], [2], [0]]
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmprobe.encoders import is_encoder
from probecore.errors import InputError

Progress = Callable[[int, int], None]


def length_batches(lengths: Sequence[int], budget: int, *, padded: bool = True) -> list[NDArray[np.int64]]:
    """Return batches of row numbers, longest rows first, each of at most `budget` padded tokens (at least one row).

    padded : False puts only rows of one length into a batch, so that nothing is padded.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches: list[list[int]] = []
    longest = 0
    for row in order.tolist():
        fits = bool(batches) and (len(batches[-1]) + 1) * longest <= budget
        if fits and (padded or lengths[row] == longest):
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = lengths[row]
    return [np.asarray(batch) for batch in batches]


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Return ids and mask (batch, time) of rows of token ids, padded on one side."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


def positions_of(mask: Tensor) -> Tensor:
    """Return position ids (batch, time) counted from the mask; pads before the first real token get 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def forward_arguments(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    *,
    use_cache: bool = False,
    **more: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Return the arguments of one forward pass over whole texts, on the model's device.

    Mask and position ids are left out where the forward pass does not take them; an encoder counts positions itself
    and has no cache. `more` is passed on.
    """
    device = device_of(model)
    encoder = is_encoder(model)
    arguments: dict[str, Any] = {"input_ids": ids.to(device), "return_dict": True, **more}
    if not encoder:
        arguments["use_cache"] = use_cache
    if accepts(model, "attention_mask"):
        arguments["attention_mask"] = mask.to(device)
    if accepts(model, "position_ids") and not encoder:
        arguments["position_ids"] = positions_of(mask).to(device)
    if getattr(model.config, "output_hidden_states", False):
        arguments.setdefault("output_hidden_states", False)  # an early stop must not meet transformers' own capture
    return arguments


def accepts(model: nn.Module, argument: str, *, passed_on: bool = False) -> bool:
    """Tell whether the forward pass of a model takes an argument by name (or, with `passed_on`, among its **kwargs)."""
    parameters = inspect.signature(model.forward).parameters
    return argument in parameters or (passed_on and any(p.kind is p.VAR_KEYWORD for p in parameters.values()))


def device_of(model: Any) -> torch.device:  # noqa: ANN401
    """Return the device on which token ids must lie: that of the input embedding."""
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def run_batches(
    batches: Sequence[NDArray[np.int64]],
    run: Callable[[NDArray[np.int64]], None],
    total: int,
    progress: Progress | None = None,
) -> None:
    """Run every batch; halve a batch when the device's memory runs out.

    progress : called with (rows done, rows in all) after each batch.
    Raises `InputError` when a single row does not fit.
    """
    waiting = list(batches)[::-1]
    done = 0
    while waiting:
        batch = waiting.pop()
        try:
            run(batch)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if len(batch) == 1:
                raise InputError(
                    f"prompt {batch[0]} does not fit into memory by itself: shorten it, take fewer layers, a smaller "
                    "dtype, or another device"
                ) from error
            half = len(batch) // 2
            waiting += [batch[half:], batch[:half]]
        else:
            done += len(batch)
            if progress is not None:
                progress(done, total)
            continue
        if torch.cuda.is_available():  # outside `except`, where the traceback still holds the batch's tensors
            torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in text
        or ("not enough memory" in text)
    )
