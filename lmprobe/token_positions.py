"""Token positions: which token of its text each column of a forward pass holds, counted here and not by the model.

Conventions. Positions count REAL tokens from 0: pads have position -1. During generation with a key/value cache the
model is given the prompt, or a chunk of it, and then one token at a time, so a column's number is not its position.
The mask over the whole text says how many real tokens stand before; a model that is given no such mask (state-space
models) is counted along its cache, which is recognised as an object. Positions are therefore the same with and without
cache, with any padding, and for any size of prefill chunks. What the model itself
thinks its position is (`cache_position`) is not used.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from probecore.errors import InputError

Positions = int | slice | Iterable[int]
Chosen = Callable[[Tensor], Tensor]


def chooser(positions: Positions | None) -> Chosen | None:
    """Return what turns positions (batch, time) into flags, None where every token is meant.

    positions : one position, several, or a slice with a start and stop of at least 0 (`slice(5, None)`: from 5 on).
    Raises `InputError` for negative positions, which a text that is being written does not have.

    >>> chooser(slice(2, None))(torch.tensor([[-1, 0, 1, 2, 3]])).tolist()
    [[False, False, False, True, True]]
    >>> chooser([0, 3])(torch.tensor([[-1, 0, 1, 2, 3]])).tolist()
    [[False, True, False, False, True]]
    """
    if positions is None:
        return None
    if isinstance(positions, slice):
        start, stop = positions.start or 0, positions.stop
        if start < 0 or (stop is not None and stop < 0) or positions.step not in (None, 1):
            raise InputError(f"a slice of positions must start and stop at 0 or later in steps of 1; got {positions}")
        return lambda at: (at >= start) & ((at < stop) if stop is not None else (at >= 0))
    listed = sorted({int(p) for p in ([positions] if isinstance(positions, int) else positions)})
    if not listed or listed[0] < 0:
        raise InputError(
            f"positions must be at least one number of 0 or more, counted from the text's first real token; got "
            f"{listed[:3] or 'none'}"
        )
    return lambda at: torch.isin(at, torch.tensor(listed, device=at.device))


class TokenCounter:
    """Knows the positions of the tokens in the forward pass that is running.

    `watch(model)` installs two hooks on the whole model and returns what removes them.
    """

    def __init__(self) -> None:
        self.now: Tensor | None = None
        self._cache: Any = None  # weak reference to the cache that was last seen
        self._counts: tuple[int, Tensor] | None = None  # columns and real tokens per row that went into it
        self._names: tuple[str, ...] = ()

    def watch(self, model: nn.Module) -> Callable[[], None]:
        """Count along every forward pass of a model until the returned function is called."""
        self._names = tuple(inspect.signature(model.forward).parameters)
        before = model.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        after = model.register_forward_hook(self._after, with_kwargs=True, always_call=True)

        def stop() -> None:
            before.remove()
            after.remove()

        return stop

    def at(self, batch: int, time: int) -> Tensor:
        """Return the positions (batch, time) of the running pass; raises `InputError` where they are not known."""
        if self.now is None or tuple(self.now.shape) != (batch, time):
            raise InputError(
                f"positions of {batch} x {time} tokens must be counted from a call of the whole model; "
                f"it was called with {None if self.now is None else tuple(self.now.shape)}: call lm.model itself"
            )
        return self.now

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids = given.get("input_ids")
        ids = given.get("inputs_embeds") if ids is None else ids
        if ids is None:
            raise InputError("positions must be counted from input_ids or inputs_embeds; the model was given neither")
        batch, time = ids.shape[:2]
        mask = given.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise InputError("positions must be counted from a mask (batch, time); this pass has another kind of mask")
        columns, before = self._so_far(given, batch, ids.device)
        if mask is None:
            mask = torch.ones(batch, time, dtype=torch.long, device=ids.device)
        if mask.shape[1] > time:  # a mask over the whole text
            columns, before = mask.shape[1] - time, mask[:, : mask.shape[1] - time].bool().sum(dim=1)
            mask = mask[:, -time:]
        elif columns is None:
            raise InputError(
                "positions must be counted from the start of a text; this pass goes on with a cache that was begun "
                "elsewhere: begin the text inside intervened(...)"
            )
        real = mask.bool()
        counted = before[:, None] + real.cumsum(dim=1)
        self._counts = (columns + time, counted[:, -1])
        self.now = torch.where(real, counted - 1, -1)

    def _so_far(self, given: dict[str, Any], batch: int, device: torch.device) -> tuple[int | None, Tensor]:
        """Return the columns and real tokens that are in a pass's cache; None columns where that is not known."""
        cache, none = _cache_of(given), torch.zeros(batch, dtype=torch.long, device=device)
        if cache is None:
            return 0, none
        if self._cache is not None and self._cache() is cache and self._counts is not None:
            columns, counts = self._counts
            return (columns, counts.to(device)) if len(counts) == batch else (None, none)
        length, stated = getattr(cache, "get_seq_length", None), given.get("cache_position")
        used = 0 if stated is None else int(stated.flatten()[0])
        try:
            used = used if length is None else int(length())
        except ValueError:  # a cache without attention layers has states and no length
            pass
        return (None if used else 0), none

    def _after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:  # noqa: ANN401
        self.now = None
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        cache = _cache_of({name: getattr(output, name, None) for name in ("past_key_values", "cache_params")})
        cache = _cache_of(given) if cache is None else cache
        try:
            self._cache = None if cache is None else weakref.ref(cache)
        except TypeError:  # tuples of tensors, from before transformers had caches: the mask over the text counts
            self._cache = None


def _cache_of(given: dict[str, Any]) -> Any:  # noqa: ANN401
    found = given.get("past_key_values")
    return given.get("cache_params") if found is None else found
