"""Read-out: the logits a residual state would give if it were the last block's output (the exact logit lens).

The model's own code does everything after the blocks: every block is swapped for a stand-in that returns the given
state, and the whole model runs on dummy ids. Final norm, projections, head, logit scale and softcap are whatever this
model does; nothing is re-implemented. Read out from the last block's own output this gives the model's logits bit for
bit, which the certificate checks. (nostalgebraist, "interpreting GPT: the logit lens", 2020.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmprobe.inputs import forward_arguments
from lmprobe.sites import Sites, residual_of
from probecore.errors import InputError

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
    model: nn.Module, sites: Sites, returns: Sequence[int], residual: Tensor, token: int, *, cached: bool = False
) -> Tensor:
    """Return the logits (batch, time, vocabulary) of a residual in the model's own layout.

    returns : length of the tuple each block returns, 0 for a bare tensor. token : any valid token id.
    """
    stands = [StandIn(block, residual, n) for block, n in zip(sites.blocks, returns, strict=True)]
    ids = torch.full(tuple(residual.shape[-3:-1]), token, dtype=torch.long)
    with torch.no_grad(), replaced_blocks(model, sites, stands):
        logits: Tensor = model(**forward_arguments(model, ids, torch.ones_like(ids), use_cache=cached)).logits
    return logits


def read_out(lm: LanguageModel, hidden: Tensor, *, rows: int = 256) -> Tensor:
    """Return the logits (items, vocabulary) of residual states (items, features), in the model's dtype.

    rows : states read out at once, which bounds the memory of the logits.
    Raises `CertificateError` where the certificate could not confirm the read-out, `InputError` for another width.
    """
    lm.certificate.require("read-out")
    if hidden.ndim != 2 or hidden.shape[1] != lm.certificate.width:
        raise InputError(f"states must have shape (items, {lm.certificate.width}); got {tuple(hidden.shape)}")
    parts = [
        tail_replay(
            lm.model,
            lm.sites,
            lm.certificate.returns,
            residual_of(part[:, None].to(lm.device, lm.dtype), lm.certificate.copies),
            lm.pad_id,
            cached=lm.certificate.cached,
        )[:, -1]
        for part in hidden.split(rows)
    ]
    return torch.cat(parts) if parts else hidden.new_empty((0, 0))
