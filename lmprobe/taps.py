"""Taps: read the residual stream while the model runs, and let go of everything afterwards.

One hook per wanted layer. It takes the residual tensor (batch, time, features) out of whatever the block returned and
hands it to `write(slot, hidden)`, which copies what it wants; the tensor itself is never kept, because a kept slice
keeps the whole tensor alive. Hooks are always removed, also when the forward pass raises.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lmprobe.sites import Sites, rows_of, unwrap
from probecore.errors import CertificateError

Write = Callable[[int, Tensor], None]


class _Reached(BaseException):
    """Raised by the last wanted tap to end a forward pass; a BaseException passes through `except Exception`."""


@contextmanager
def tapped(sites: Sites, layers: Sequence[str], write: Write, *, stop: bool = False) -> Iterator[None]:
    """Call `write(slot, hidden)` whenever a wanted layer has been computed, slot = its place in `layers`.

    layers : names in the order of the forward pass (`Sites.select`).
    stop : end the forward pass inside this context after the last wanted layer. The context ends there too, so the
        call to the model is the last statement inside it.
    """
    handles = []
    try:
        for slot, layer in enumerate(layers):
            ends = stop and slot == len(layers) - 1
            if layer == "embed":
                hook = _before(slot, write, ends)
                handles.append(sites.blocks[0].register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module_of(sites, layer).register_forward_hook(_after(slot, write, ends)))
        yield
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()


def module_of(sites: Sites, layer: str) -> nn.Module:
    """Return the module whose output a layer is ("final" or "block i")."""
    if layer == "final":
        if sites.norm is None:
            raise CertificateError("this model has no final norm, so it has no layer 'final'")
        return sites.norm
    return sites.blocks[int(layer.removeprefix("block "))]


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the residual tensor a block was called with: first positional argument, or `hidden_states`."""
    return unwrap(args[0] if args else kwargs.get("hidden_states"))


def _before(slot: int, write: Write, ends: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        write(slot, rows_of(block_input(args, kwargs)))
        if ends:
            raise _Reached

    return hook


def _after(slot: int, write: Write, ends: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        write(slot, rows_of(unwrap(output)))
        if ends:
            raise _Reached

    return hook
