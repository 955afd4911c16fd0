"""Capture: prompts and a model become `Activations`, in single forward passes that end at the last wanted block.

Conventions. Layers are named "embed" (the input of block 0), "block 0" .. "block L-1" (the residual stream after that
block) and, only when asked for by name, "final" (after the final norm). Positions are selectors over a prompt's real
tokens, never indices into padding. Values are float32 (float64 for a float64 model), read from the dtype of the model
without loss; means are accumulated in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lmprobe.capture_job import CaptureJob, wanted_layers
from lmprobe.inputs import Progress, length_batches, run_batches
from lmprobe.interventions import active_interventions
from lmprobe.models import LanguageModel, Prompt, Template
from lmprobe.selectors import Chooser, Selector, positions, selector
from probecore.activations import Activations, Label
from probecore.errors import InputError
from probecore.validation import at_least


def capture(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    layers: str | Sequence[str | int] = "all",
    at: str | Selector | Chooser = "last",
    groups: ArrayLike | None = None,
    labels: Mapping[str, Label | ArrayLike] | None = None,
    names: Sequence[str] | None = None,
    system: str | None = None,
    template: Template = "auto",
    max_new_tokens: int = 30,
    batch_tokens: int = 4096,
    deterministic: bool = False,
    progress: Progress | None = None,
) -> Activations:
    """Return the residual states of prompts, or of what the model writes after them.

    layers : "all" (embed and every block), a name, or names and block numbers; also "attention i" and "mlp i", what
        that sub-layer adds to the stream ("attention", "mlp": of every block).
    at : a selector (`lmprobe.selectors`): "last", "first", "mean", "mean without first" or "all" real tokens of the
        prompt; the same of "generated", "role:NAME" or "regex:PATTERN"; or a function from a prompt's token ids to
        positions among them. "all" and a function give one item per token, labelled as units of their prompt.
    groups : (prompts,) the family of each prompt, None makes every prompt its own. labels : (prompts,) by name.
    max_new_tokens : of a greedy continuation, for "generated" (`generate` has more choices).
    batch_tokens : padded tokens in a batch. deterministic : one prompt at a time without padding, so that a state does
        not depend, not even in its last bit, on the other prompts.
    Raises `CertificateError` where the taps could not be certified, `InputError` for prompts, layers or positions
    that cannot be used.
    """
    lm.certificate.require("taps", *(() if lm.is_encoder else ("causal",)))
    wanted = wanted_layers(lm, layers)
    place = selector(at) if isinstance(at, str) else at
    at_least(batch_tokens, 1, "batch_tokens")
    if isinstance(place, Selector) and place.scope == "generated":
        from lmprobe.generate import generate

        written = generate(
            lm, prompts, max_new_tokens=max_new_tokens, layers=(), step_layers=wanted, system=system,
            template=template, batch_tokens=batch_tokens, deterministic=deterministic, progress=progress,
        )  # fmt: skip
        return written.step_activations(place, groups=groups, labels=labels, names=names)
    rows = lm.format_all(prompts, system, template)
    shown = [f"prompt {i}" for i in range(len(rows))] if names is None else list(names)
    picks = [
        positions(lm, prompt, row, place, name, system=system, template=template)
        for prompt, row, name in zip(prompts, rows, _one_each(shown, len(rows), "names"), strict=True)
    ]
    padded = lm.certificate.holds("right padding")
    mean = isinstance(place, Selector) and place.which.startswith("mean")
    job = CaptureJob(lm, rows, picks, wanted, mean=mean)
    lengths = [len(row) for row in rows]
    batches = length_batches(lengths, 1 if deterministic else batch_tokens, padded=padded)
    run_batches(batches, job.run, len(rows), progress)
    note = "" if padded or deterministic else "batches hold prompts of one length: padding changes this model's states"
    info = {
        **model_record(lm),
        "representation": f"residual stream at {_shown(place)}",
        "template": template,
        "deterministic": deterministic,
        "note": note,
    }
    values = {layer: to_numpy(job.kept[layer]) for layer in wanted}
    per_token = not isinstance(place, Selector) or place.per_token
    numbers = [np.asarray(pick) for pick in picks] if per_token else None
    return activations_of(values, len(rows), numbers, groups, labels, shown, info)


def model_record(lm: LanguageModel) -> dict[str, Any]:
    """Return what every result of a model carries: its info, its certificate and what was installed at it."""
    installed = [text for text in active_interventions(lm) if not text.startswith("Read(")]  # reading changes nothing
    record = {"model": dict(lm.info), "certificate": lm.certificate.to_json()}
    return record | ({"interventions": installed} if installed else {})


def to_numpy(values: Tensor) -> NDArray[Any]:
    """Return values as float64 if they are float64, else as float32, without loss."""
    return values.numpy() if values.dtype in (torch.float32, torch.float64) else values.float().numpy()


def activations_of(
    values: Mapping[str, ArrayLike],
    n_prompts: int,
    numbers: Sequence[NDArray[np.int64]] | None,
    groups: ArrayLike | None,
    labels: Mapping[str, Label | ArrayLike] | None,
    names: Sequence[str] | None,
    info: Mapping[str, Any],
) -> Activations:
    """Return values (items, features) by layer as `Activations`, groups and labels (prompts,) spread over the items.

    numbers : per prompt the number of each of its tokens where every token is an item, None for one item per prompt.
    """
    shown = [f"prompt {i}" for i in range(n_prompts)] if names is None else list(names)
    family = np.asarray(shown if groups is None else groups)
    _one_each(shown, n_prompts, "names")
    _one_each(family, n_prompts, "groups")
    owner = np.repeat(np.arange(n_prompts), 1 if numbers is None else [len(each) for each in numbers])
    items = shown if numbers is None else [f"{shown[i]} token {k}" for i, each in enumerate(numbers) for k in each]
    return Activations.from_arrays(
        values,
        groups=family[owner],
        labels={name: _label(name, label, owner, numbers is not None) for name, label in (labels or {}).items()},
        items=items,
        info=info,
    )


def _one_each(values: Any, n: int, what: str) -> Any:  # noqa: ANN401
    if len(values) != n:
        raise InputError(f"{what} must have one entry per prompt, {n}; got {len(values)}")
    return values


def _shown(place: Selector | Chooser) -> str:
    return str(place) if isinstance(place, Selector) else getattr(place, "__name__", "positions")


def _label(name: str, label: Label | ArrayLike, owner: NDArray[np.int64], per_token: bool) -> Label:
    whole = label if isinstance(label, Label) else Label(label)
    if len(whole.values) != owner[-1] + 1:
        raise InputError(f"label {name!r} must have one value per prompt, {owner[-1] + 1}; got {len(whole.values)}")
    if not per_token:
        return whole
    units = owner if whole.units is None else whole.units[owner]  # a label belongs to the prompt, not to its tokens
    return Label(whole.values[owner], units, None if whole.blocks is None else whole.blocks[owner], whole.kind)
