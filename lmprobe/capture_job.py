"""One capture: forward passes that end at the last wanted layer, and the states of the wanted tokens copied out.

Residual layers are read by taps, what sub-layers add ("attention i", "mlp i") by a reading intervention, so that both
are seen after whatever is installed at the model. Nothing of a batch is kept but the rows asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.inputs import forward_arguments, pad
from lmprobe.interventions import Read, intervened
from lmprobe.models import LanguageModel
from lmprobe.taps import tapped
from probecore.errors import CertificateError, InputError

SUBLAYER = re.compile(r"(attention|mlp|other) (\d+)")


def wanted_layers(lm: LanguageModel, layers: str | Sequence[str | int]) -> tuple[str, ...]:
    """Return layer names in the order of a forward pass.

    layers : what `Sites.select` takes, and "attention i", "mlp i": what that sub-layer adds to the residual stream;
        "attention" and "mlp" alone mean those of every block. Raises `InputError` for an unknown name, or none.
    """
    asked = [layers] if isinstance(layers, str) else list(layers)
    n = len(lm.sites.blocks)
    expanded: list[str | int] = []
    for name in asked:
        expanded += [f"{name} {i}" for i in range(n)] if name in ("attention", "mlp") else [name]
    inner = [name for name in expanded if isinstance(name, str) and SUBLAYER.fullmatch(name)]
    late = [name for name in inner if int(name.split()[1]) >= n]
    if late:
        raise InputError(f"sub-layers must be of blocks 0 to {n - 1}; got {late[0]!r}")
    outer = [name for name in expanded if name not in inner]
    residual = lm.sites.select("all" if outer == ["all"] else outer)
    found = tuple(sorted({*residual, *inner}, key=_place))
    if not found:
        raise InputError("layers must name at least 1 layer; got none")
    return found


def _place(layer: str) -> tuple[float, int]:
    if layer in ("embed", "final"):
        return (-1.0 if layer == "embed" else float("inf"), 0)
    kind, _, block = layer.partition(" ")
    return float(block), ("attention", "mlp", "other", "block").index(kind)


@dataclass
class CaptureJob:
    """The states of all items, filled batch by batch.

    picks : per prompt the positions to keep; with `mean`, the positions to average.
    kept : layer name -> (items, features) on the CPU, in the model's dtype (float32 or float64 for means).
    """

    lm: LanguageModel
    rows: list[list[int]]
    picks: list[NDArray[np.int64]]
    wanted: tuple[str, ...]
    mean: bool
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = [1 if self.mean else len(pick) for pick in self.picks]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.inner = tuple(layer for layer in self.wanted if SUBLAYER.fullmatch(layer))
        outer = [layer for layer in self.wanted if layer not in self.inner]
        if self.inner and (not outer or _place(outer[-1]) < _place(self.inner[-1])):
            outer.append(f"block {self.inner[-1].split()[1]}")  # where the forward pass ends
        self.tapped = tuple(outer)

    def run(self, batch: NDArray[np.int64]) -> None:
        """Forward one batch and copy the wanted states of its prompts."""
        ids, mask = pad([self.rows[i] for i in batch], self.lm.pad_id, "right")
        items = torch.from_numpy(np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in batch]))
        read = self._reader(batch)
        picked: dict[str, Tensor] = {}

        def tap(slot: int, hidden: Tensor) -> None:
            picked[self.tapped[slot]] = read(hidden)

        def look(site: str, hidden: Tensor) -> None:
            picked[site] = read(hidden)

        inside = intervened(self.lm, Read(look, at=self.inner)) if self.inner else nullcontext()
        with torch.no_grad(), inside, tapped(self.lm.sites, self.tapped, tap, stop=True):
            self.lm.model(**forward_arguments(self.lm.model, ids, mask, use_cache=self.lm.certificate.cached))
        for layer in self.wanted:
            if layer not in picked:
                raise CertificateError(f"{layer} was not reached in a forward pass: name the blocks with blocks=")
            buffer = self._buffer(layer, picked[layer])
            buffer[items] = picked[layer].to("cpu", buffer.dtype)

    def _reader(self, batch: NDArray[np.int64]) -> Callable[[Tensor], Tensor]:
        """Return what copies the wanted rows, or their means, out of states (batch, time, features)."""
        where = torch.from_numpy(np.repeat(np.arange(len(batch)), [len(self.picks[i]) for i in batch]))
        columns = torch.from_numpy(np.concatenate([self.picks[i] for i in batch]))

        def gather(hidden: Tensor) -> Tensor:
            return hidden[where.to(hidden.device), columns.to(hidden.device)]

        def average(hidden: Tensor) -> Tensor:
            states = gather(hidden)
            states = states.cpu().double() if states.device.type == "mps" else states.double()
            rows = where.to(states.device)
            total = torch.zeros(len(batch), states.shape[1], dtype=torch.float64, device=states.device)
            total.index_add_(0, rows, states)
            return total / torch.bincount(rows, minlength=len(batch))[:, None]

        return average if self.mean else gather

    def _buffer(self, layer: str, like: Tensor) -> Tensor:
        if layer not in self.kept:
            dtype = like.dtype
            if self.mean:
                dtype = torch.float64 if self.lm.dtype == torch.float64 else torch.float32
            self.kept[layer] = torch.empty(int(self.starts[-1]), like.shape[1], dtype=dtype)
        return self.kept[layer]
