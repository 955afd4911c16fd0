"""Read-out: the logits a residual state would give if it were the last block's output (the exact logit lens).

The model's own code does everything after the blocks: every block is swapped for a stand-in that returns the given
state, and the whole model runs on dummy ids. Final norm, projections, head, logit scale and softcap are whatever this
model does; nothing is re-implemented. Read out from the last block's own output this gives the model's logits bit for
bit, which the certificate checks. A shorter way, through norm and head alone, is taken where it gives the same bits.
(nostalgebraist, "interpreting GPT: the logit lens", 2020.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lmprobe.inputs import device_of, forward_arguments
from lmprobe.sites import Sites, residual_of
from probecore.errors import CertificateError, InputError

if TYPE_CHECKING:
    from lmprobe.models import LanguageModel


class StandIn(nn.Module):
    """Stands in for a block: returns a given residual in the block's own return shape.

    Attributes are read from the real block (transformers reads, e.g., `layer.attention_type`).
    """

    def __init__(self, block: nn.Module, value: Tensor, returns: int) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "_value", value)
        self.returns = returns

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return the given residual, bare (returns = 0) or first in a tuple of that length."""
        value = object.__getattribute__(self, "_value")
        return (value, *(None,) * (self.returns - 1)) if self.returns else value

    def __getattr__(self, key: str) -> Any:  # noqa: ANN401
        try:
            return super().__getattr__(key)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), key)


@contextmanager
def replaced_blocks(model: nn.Module, sites: Sites, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run the model with other modules in the place of its blocks; the real ones are always put back."""
    parent_path, _, key = sites.blocks_path.rpartition(".")
    parent = model.get_submodule(parent_path)
    real = getattr(parent, key)
    setattr(parent, key, nn.ModuleList(modules))
    try:
        yield
    finally:
        setattr(parent, key, real)


def tail_replay(
    model: nn.Module,
    sites: Sites,
    returns: Sequence[int],
    residual: Tensor,
    token: int,
    *,
    cached: bool = False,
    gradients: bool = False,
) -> Tensor:
    """Return the logits (batch, time, vocabulary) of a residual in the model's own layout.

    returns : length of the tuple each block returns, 0 for a bare tensor. token : any valid token id.
    gradients : the logits can be differentiated by the residual.
    """
    stands = [StandIn(block, residual, n) for block, n in zip(sites.blocks, returns, strict=True)]
    ids = torch.full(tuple(residual.shape[-3:-1]), token, dtype=torch.long)
    with torch.set_grad_enabled(gradients), replaced_blocks(model, sites, stands):
        logits: Tensor = model(**forward_arguments(model, ids, torch.ones_like(ids), use_cache=cached)).logits
    return logits


def head_stub(model: Any, sites: Sites, residual: Tensor, *, gradients: bool = False) -> Tensor:  # noqa: ANN401
    """Return the logits of a residual (batch, time, width) through norm and head only: nothing else of the model runs.

    The backbone's forward is replaced by the normed state; the wrapper applies its own head, scale and softcap. That is
    right where the norm is all there is between the last block and the head (`tail_of` checks it bit for bit).
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Given(BaseModelOutputWithPast):  # type: ignore[misc]
        """Answers every further field (router logits, cache) with None."""

        def __getattr__(self, key: str) -> Any:  # noqa: ANN401
            if key.startswith("__"):
                raise AttributeError(key)
            return None

    if sites.norm is None:
        raise CertificateError("this model has no final norm: read it out by tail replay")
    backbone = getattr(model, model.base_model_prefix)
    ids = torch.zeros(tuple(residual.shape[:2]), dtype=torch.long, device=device_of(model))
    with torch.set_grad_enabled(gradients):
        normed = sites.norm(residual)
        own = vars(backbone).get("forward")  # accelerate puts its own there
        backbone.forward = lambda *args, **kwargs: Given(last_hidden_state=normed)
        try:
            logits: Tensor = model(input_ids=ids, use_cache=False, return_dict=True).logits
        finally:
            del backbone.forward
            if own is not None:
                backbone.forward = own
    return logits


@dataclass(frozen=True, eq=False)
class Tail:
    """The read-out of one opened model, by the quicker of two ways that give the same bits; made by `tail_of`.

    way : "head stub" where it gave the same logits as tail replay bit for bit, else "tail replay".
    """

    lm: LanguageModel
    way: str

    def __call__(self, hidden: Tensor, *, gradients: bool = False) -> Tensor:
        """Return the logits (..., vocabulary) of states (rows, features) or (batch, time, features), all at once.

        In the layout (batch, time, features) of the pass that left them, states of the last block give that pass's
        logits bit for bit; as rows they do up to rounding.
        """
        rows = hidden[:, None] if hidden.ndim == 2 else hidden
        residual = residual_of(rows.to(self.lm.device, self.lm.dtype), self.lm.certificate.copies)
        logits = _read(self.lm, self.way, residual, gradients)
        return logits[:, -1] if hidden.ndim == 2 else logits


def tail_of(lm: LanguageModel) -> Tail:
    """Return the read-out of a model; the way is chosen once, by comparing both on random states.

    Raises `CertificateError` where the certificate could not confirm the read-out.
    """
    lm.certificate.require("read-out")
    if lm not in _TAILS:
        chance = torch.Generator().manual_seed(0)
        states = torch.randn(5, 1, lm.certificate.width, generator=chance).to(lm.device, lm.dtype)
        states[1:] *= torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=lm.dtype, device=lm.device)[:, None, None]
        residual = residual_of(states, lm.certificate.copies)
        try:
            same = lm.certificate.copies == 1 and torch.equal(
                _read(lm, "head stub", residual, False), _read(lm, "tail replay", residual, False)
            )
        except (CertificateError, RuntimeError, IndexError, KeyError, AttributeError, TypeError, ValueError):
            same = False
        _TAILS[lm] = "head stub" if same else "tail replay"
    return Tail(lm, _TAILS[lm])


_TAILS: WeakKeyDictionary[LanguageModel, str] = WeakKeyDictionary()


def _read(lm: LanguageModel, way: str, residual: Tensor, gradients: bool) -> Tensor:
    if way == "head stub":
        return head_stub(lm.model, lm.sites, residual, gradients=gradients)
    returns, cached = lm.certificate.returns, lm.certificate.cached
    return tail_replay(lm.model, lm.sites, returns, residual, lm.pad_id, cached=cached, gradients=gradients)


def read_out(lm: LanguageModel, hidden: Tensor, *, rows: int = 256) -> Tensor:
    """Return the logits (items, vocabulary) of residual states (items, features), in the model's dtype.

    rows : states read out at once, which bounds the memory of the logits.
    Raises `CertificateError` where the certificate could not confirm the read-out, `InputError` for another width.
    """
    tail = tail_of(lm)
    if hidden.ndim != 2 or hidden.shape[1] != lm.certificate.width:
        raise InputError(f"states must have shape (items, {lm.certificate.width}); got {tuple(hidden.shape)}")
    parts = [tail(part) for part in hidden.split(rows)]
    return torch.cat(parts) if parts else hidden.new_empty((0, 0))
