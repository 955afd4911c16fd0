"""Lens readings: what every layer of a model would say at every position of one text.

Conventions. The text is run alone and without padding, and its states are read out in the layout of that pass, so that
the read-out of the last block is the model's logits bit for bit (`Reading.gap` is their largest difference). Layer 0 is
the input of block 0 ("embed"), layer i + 1 the residual stream after block i. A translator, where one is given, changes
the states of every layer but the last before they are read (`lmprobe.tuned_lens`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.inputs import forward_arguments, pad
from lmprobe.models import LanguageModel
from lmprobe.readout import tail_of
from lmprobe.taps import tapped
from probecore.errors import InputError
from probecore.lens import Lens, lens_divergence, logit_lens

Floats = NDArray[np.float64]
Translate = Callable[[int, Tensor], Tensor]
LOGITS_AT_ONCE = 2**24  # read out in one piece; beyond it pieces, whose last bits may differ from the pass's own


@dataclass(frozen=True, eq=False)
class Reading:
    """The lens of one text of T tokens on L + 1 layers.

    lens : the lens by layer and position; `noise` : (L + 1,) KL between the lens alone and in a padded batch at the
        last position, nats: a smaller KL means nothing. gap : largest absolute difference between the read-out of the
        last layer and the model's logits.
    """

    ids: tuple[int, ...]
    layers: tuple[str, ...]
    lens: Lens = field(repr=False)
    noise: Floats = field(repr=False)
    gap: float


def read_text(
    lm: LanguageModel,
    ids: Sequence[int],
    *,
    translate: Translate | None = None,
    targets: Sequence[int] = (),
    top: int = 5,
) -> Reading:
    """Return the lens of a text's token ids.

    targets : ids whose rank and log-probability are wanted besides the model's own choice. top : most probable ids.
    Raises `CertificateError` where taps or read-out are not certified, `InputError` for a text that does not fit.
    """
    lm.certificate.require("taps", "causal", "read-out")
    if lm.context is not None and len(ids) > lm.context:
        raise InputError(f"a text must fit into the {lm.context} tokens of {lm.name}; got {len(ids)}: shorten it")
    states, logits = run_text(lm, ids)
    read = reader(lm, translate)
    rows = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    lens = logit_lens(states, read, rows=rows, targets=targets, top=top)
    gap = max(
        float((read(len(states) - 1, states[-1][piece]) - logits[piece]).abs().max())
        for piece in (slice(k, k + rows) for k in range(0, len(ids), rows))
    )
    last = [state[-1:] for state in states]
    moved = lens_divergence([last, _in_a_batch(lm, ids)], read)
    return Reading(tuple(map(int, ids)), lm.layers, lens, moved[:, 0, 1, 0], gap)


def run_text(lm: LanguageModel, ids: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Return the states (time, features) of every layer and the logits (time, vocabulary) of one text, run alone."""
    states, logits = _run(lm, [list(ids)])
    return [state[0] for state in states], logits[0]


def reader(lm: LanguageModel, translate: Translate | None = None) -> Callable[[int, Tensor], Tensor]:
    """Return the read-out `logit_lens` takes: (layer, states (rows, features)) to logits, rows as one text."""
    tail = tail_of(lm)

    def read(layer: int, states: Tensor) -> Tensor:
        given = states if translate is None else translate(layer, states)
        return tail(given[None])[0]

    return read


def _run(lm: LanguageModel, rows: list[list[int]]) -> tuple[list[Tensor], Tensor]:
    ids, mask = pad(rows, lm.pad_id, "right")
    kept: dict[int, Tensor] = {}

    def keep(slot: int, hidden: Tensor) -> None:
        kept[slot] = hidden.clone()

    with torch.no_grad(), tapped(lm.sites, lm.layers, keep):
        logits = lm.model(**forward_arguments(lm.model, ids, mask, use_cache=lm.certificate.cached)).logits
    return [kept[slot] for slot in range(len(lm.layers))], logits


def _in_a_batch(lm: LanguageModel, ids: Sequence[int]) -> list[Tensor]:
    """Return the last states (1, features) of a text beside a longer one, beside itself where it cannot be padded."""
    longer = [*ids, ids[-1]] if lm.certificate.holds("right padding") else list(ids)
    states, _ = _run(lm, [longer, list(ids)])
    return [state[1, len(ids) - 1][None] for state in states]
