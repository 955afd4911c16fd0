"""Sites: where the residual stream of a causal language model can be read, found from the module tree alone.

Conventions. A model has L blocks; `block i` is the residual stream AFTER block i, i = 0..L-1; `embed` is the INPUT of
block 0 (it includes learned positions and embedding scales); `final` is the final norm of block L-1 and is never part
of "all". A residual tensor is (batch, time, width); a model that carries several copies of it (copies, batch, time,
width) is read as (batch, time, copies * width).

No architecture is named here: the block list is the ModuleList as long as the configured number of blocks, the final
norm the norm that stands beside it. What is found is verified when the model is opened (`lmprobe.certificate`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from probecore.errors import CertificateError, InputError, shorten


@dataclass(frozen=True)
class Sites:
    """The blocks and the final norm of one model, by dotted path and as modules.

    norm, norm_path : None where the model has no final norm (the OPT-350m layout).
    """

    blocks_path: str
    blocks: tuple[nn.Module, ...]
    norm_path: str | None
    norm: nn.Module | None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that "all" means: embed, block 0 .. block L-1."""
        return ("embed", *(f"block {i}" for i in range(len(self.blocks))))

    def select(self, layers: str | Sequence[str | int]) -> tuple[str, ...]:
        """Return layer names in the order in which a forward pass reaches them.

        layers : "all", one name, or a sequence of names and block numbers (3 means "block 3").
        Raises `InputError` for an unknown name, and for "final" on a model without a final norm.
        """
        if layers == "all":
            return self.layers
        asked = [layers] if isinstance(layers, str) else list(layers)
        names = [f"block {name}" if isinstance(name, int) and not isinstance(name, bool) else name for name in asked]
        known = self.layers if self.norm is None else (*self.layers, "final")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(
                f"no layer {shorten(unknown)}; this model has embed, block 0 to block {len(self.blocks) - 1}"
                + (" and final" if self.norm is not None else " and no final norm")
            )
        return tuple(name for name in known if name in names)


def find_sites(model: nn.Module, blocks: str | None = None, final_norm: str | None = None) -> Sites:
    """Return the sites of a model; dotted paths override the search.

    Raises `CertificateError` when no block list is found, `InputError` when an override names no such module.
    """
    path = _block_list(model) if blocks is None else blocks
    found = _submodule(model, path, "blocks")
    if not isinstance(found, nn.ModuleList) or not len(found):
        raise InputError(f"blocks must name a ModuleList of blocks; {path!r} is a {type(found).__name__}")
    norm_path = _norm_beside(model, path) if final_norm is None else final_norm
    norm = None if norm_path is None else _submodule(model, norm_path, "final_norm")
    return Sites(path, tuple(found), norm_path, norm)


def unwrap(output: Any) -> Tensor:  # noqa: ANN401
    """Return the residual tensor of a block's output: blocks return it bare or first in a tuple."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(hidden, Tensor):
        raise CertificateError(
            f"a block must return its residual tensor bare or first in a tuple; got {type(hidden).__name__}: "
            "name the right block list with blocks="
        )
    return hidden


def rows_of(hidden: Tensor) -> Tensor:
    """Return a residual tensor as (batch, time, features), copies side by side in the features."""
    if hidden.ndim == 3:
        return hidden
    if hidden.ndim == 4:
        return hidden.movedim(0, 2).flatten(2)
    raise CertificateError(f"a residual stream must have 3 or 4 axes; got shape {tuple(hidden.shape)}")


def residual_of(rows: Tensor, copies: int) -> Tensor:
    """Return (batch, time, features) in the model's own layout; undoes `rows_of`."""
    return rows if copies == 1 else rows.unflatten(2, (copies, -1)).movedim(2, 0)


def _block_list(model: Any) -> str:  # noqa: ANN401
    n_blocks = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists: dict[str, nn.ModuleList] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and n_blocks is not None and len(module) == n_blocks
    }
    if not lists:
        sizes = [f"{n} ({len(m)})" for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
        raise CertificateError(
            f"the block list must be a ModuleList of {n_blocks} blocks; this {type(model).__name__} has "
            f"{shorten(sizes) or 'none'}: name it with blocks="
        )
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    inside = {id(module) for module in decoder.modules()} if isinstance(decoder, nn.Module) else set()
    # text stack before others (vision towers), then the shallowest, then the one that holds the most weights
    return min(lists, key=lambda name: (id(lists[name]) not in inside, name.count("."), -_n_weights(lists[name])))


def _norm_beside(model: nn.Module, blocks_path: str) -> str | None:
    parent_path, _, key = blocks_path.rpartition(".")
    names = [name for name, _ in model.get_submodule(parent_path).named_children()]
    at = names.index(key)
    for name in names[at + 1 :] + names[:at][::-1]:  # first after the blocks, else the last before them (OPT)
        path = f"{parent_path}.{name}" if parent_path else name
        if "norm" in type(model.get_submodule(path)).__name__.lower():
            return path
    return None


def _n_weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _submodule(model: nn.Module, path: str, name: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        children = [child for child, _ in model.named_modules() if child.count(".") <= 1 and child]
        raise InputError(f"{name} must name a module; {path!r} does not exist: there are {shorten(children)}") from None
