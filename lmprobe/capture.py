"""Capture: prompts and a model become `Activations`, in single forward passes that end at the last wanted block.

Conventions. Layers are named "embed" (the input of block 0), "block 0" .. "block L-1" (the residual stream after that
block) and, only when asked for by name, "final" (after the final norm). Positions are selectors over a prompt's real
tokens, never indices into padding. Values are float32 (float64 for a float64 model), read from the dtype of the model
without loss; means are accumulated in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lmprobe.inputs import Progress, forward_arguments, length_batches, pad, run_batches
from lmprobe.models import LanguageModel, Prompt, Template
from lmprobe.taps import tapped
from probecore.activations import Activations, Label
from probecore.errors import CertificateError, InputError, shorten
from probecore.validation import at_least, one_of

Selector = Callable[[Sequence[int]], Sequence[int]]
SELECTORS = ("last", "first", "mean", "mean without first", "all")


def capture(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    layers: str | Sequence[str | int] = "all",
    at: str | Selector = "last",
    groups: ArrayLike | None = None,
    labels: Mapping[str, Label | ArrayLike] | None = None,
    names: Sequence[str] | None = None,
    system: str | None = None,
    template: Template = "auto",
    batch_tokens: int = 4096,
    deterministic: bool = False,
    progress: Progress | None = None,
) -> Activations:
    """Return the residual states of prompts.

    layers : "all" (embed and every block), a name, or names and block numbers.
    at : "last" or "first" real token; "mean" of all real tokens or "mean without first" (the first token is an
        attention sink that dominates a mean); "all" real tokens; or a function from a prompt's token ids to positions
        among them. "all" and a function give one item per token, labelled as units of their prompt.
    groups : (prompts,) the family of each prompt, None makes every prompt its own. labels : (prompts,) by name.
    batch_tokens : padded tokens in a batch. deterministic : one prompt at a time without padding, so that a state does
        not depend, not even in its last bit, on the other prompts.
    Raises `CertificateError` where the taps could not be certified, `InputError` for prompts, layers or positions
    that cannot be used.
    """
    lm.certificate.require("taps", *(() if lm.is_encoder else ("causal",)))
    wanted = lm.sites.select(layers)
    if not wanted:
        raise InputError("layers must name at least 1 layer; got none")
    if isinstance(at, str):
        one_of(at, SELECTORS, "at")
    at_least(batch_tokens, 1, "batch_tokens")
    rows = lm.format_all(prompts, system, template)
    picks = [_picks(at, row, i) for i, row in enumerate(rows)]
    padded = lm.certificate.holds("right padding")
    job = _Job(lm, rows, picks, wanted, mean=isinstance(at, str) and at.startswith("mean"))
    lengths = [len(row) for row in rows]
    batches = length_batches(lengths, 1 if deterministic else batch_tokens, padded=padded)
    run_batches(batches, job.run, len(rows), progress)
    note = "" if padded or deterministic else "batches hold prompts of one length: padding changes this model's states"
    info = {
        **model_record(lm),
        "representation": f"residual stream at {at if isinstance(at, str) else getattr(at, '__name__', 'positions')}",
        "template": template,
        "deterministic": deterministic,
        "note": note,
    }
    return _activations(job, groups, labels, names, per_token=not isinstance(at, str) or at == "all", info=info)


def model_record(lm: LanguageModel) -> dict[str, Any]:
    """Return what every result of a model carries: its info and its certificate."""
    return {"model": dict(lm.info), "certificate": lm.certificate.to_json()}


def to_numpy(values: Tensor) -> NDArray[Any]:
    """Return values as float64 if they are float64, else as float32, without loss."""
    return values.numpy() if values.dtype in (torch.float32, torch.float64) else values.float().numpy()


@dataclass
class _Job:
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

    def run(self, batch: NDArray[np.int64]) -> None:
        """Forward one batch and copy the wanted states of its prompts."""
        ids, mask = pad([self.rows[i] for i in batch], self.lm.pad_id, "right")
        items = torch.from_numpy(np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in batch]))
        where = torch.from_numpy(np.repeat(np.arange(len(batch)), [len(self.picks[i]) for i in batch]))
        columns = torch.from_numpy(np.concatenate([self.picks[i] for i in batch]))
        picked: dict[int, Tensor] = {}

        def gather(slot: int, hidden: Tensor) -> None:
            picked[slot] = hidden[where.to(hidden.device), columns.to(hidden.device)]

        def average(slot: int, hidden: Tensor) -> None:
            states = hidden[where.to(hidden.device), columns.to(hidden.device)]
            states = states.cpu().double() if states.device.type == "mps" else states.double()
            rows = where.to(states.device)
            total = torch.zeros(len(batch), states.shape[1], dtype=torch.float64, device=states.device)
            total.index_add_(0, rows, states)
            picked[slot] = total / torch.bincount(rows, minlength=len(batch))[:, None]

        with torch.no_grad(), tapped(self.lm.sites, self.wanted, average if self.mean else gather, stop=True):
            self.lm.model(**forward_arguments(self.lm.model, ids, mask, use_cache=self.lm.certificate.cached))
        for slot, layer in enumerate(self.wanted):
            if slot not in picked:
                raise CertificateError(f"{layer} was not reached in a forward pass: name the blocks with blocks=")
            buffer = self._buffer(layer, picked[slot])
            buffer[items] = picked[slot].to("cpu", buffer.dtype)

    def _buffer(self, layer: str, like: Tensor) -> Tensor:
        if layer not in self.kept:
            dtype = like.dtype
            if self.mean:
                dtype = torch.float64 if self.lm.dtype == torch.float64 else torch.float32
            self.kept[layer] = torch.empty(int(self.starts[-1]), like.shape[1], dtype=dtype)
        return self.kept[layer]


def _picks(at: str | Selector, row: Sequence[int], prompt: int) -> NDArray[np.int64]:
    n = len(row)
    if not isinstance(at, str):
        picks = np.asarray(list(at(row)), dtype=np.int64)
        if not len(picks) or picks.min() < 0 or picks.max() >= n:
            raise InputError(
                f"a selector must return at least 1 position in [0, {n}) of prompt {prompt}; got "
                f"{shorten(picks.tolist(), most=5) or 'none'}"
            )
        return picks
    if at == "mean without first" and n < 2:
        raise InputError(f"'mean without first' needs at least 2 tokens; prompt {prompt} has {n}: take 'mean'")
    ranges = {"last": (n - 1, n), "first": (0, 1), "mean without first": (1, n)}
    return np.arange(*ranges.get(at, (0, n)))


def _activations(
    job: _Job,
    groups: ArrayLike | None,
    labels: Mapping[str, Label | ArrayLike] | None,
    names: Sequence[str] | None,
    *,
    per_token: bool,
    info: Mapping[str, Any],
) -> Activations:
    n = len(job.rows)
    owner = np.repeat(np.arange(n), np.diff(job.starts))
    prompt_names = [f"prompt {i}" for i in range(n)] if names is None else list(names)
    family = np.asarray(prompt_names if groups is None else groups)
    for what, values in (("names", prompt_names), ("groups", family)):
        if len(values) != n:
            raise InputError(f"{what} must have one entry per prompt, {n}; got {len(values)}")
    items = [prompt_names[i] for i in owner]
    if per_token:
        items = [f"{prompt_names[i]} token {k}" for i in range(n) for k in job.picks[i].tolist()]
    return Activations.from_arrays(
        {layer: to_numpy(values) for layer, values in job.kept.items()},
        groups=family[owner],
        labels={name: _label(name, label, owner, per_token) for name, label in (labels or {}).items()},
        items=items,
        info=info,
    )


def _label(name: str, label: Label | ArrayLike, owner: NDArray[np.int64], per_token: bool) -> Label:
    whole = label if isinstance(label, Label) else Label(label)
    if len(whole.values) != owner[-1] + 1:
        raise InputError(f"label {name!r} must have one value per prompt, {owner[-1] + 1}; got {len(whole.values)}")
    if not per_token:
        return whole
    units = owner if whole.units is None else whole.units[owner]  # a label belongs to the prompt, not to its tokens
    return Label(whole.values[owner], units, None if whole.blocks is None else whole.blocks[owner], whole.kind)
