"""Logit lens: what a stack of layers would say if it stopped here, and how far two runs differ in what they say.

Conventions. `states` holds one tensor per layer, the residual stream (rows, ..., width); a row is a position (token,
frame), further axes between are kept (code layers, heads). `read_out(layer, states)` gives logits (rows, ...,
vocabulary); it must treat rows independently. `allowed` (vocabulary,) or (rows, ..., vocabulary) is true for ids that
can be said: the others have probability 0, as where generation suppresses them. Logits become float64 before the
softmax; entropies and divergences are in nats. Rows are read out in pieces, which bounds memory and changes no
definition. The last layer of `states` is the final one.

    entropy(l)      = -sum_v p_l(v) log p_l(v)
    kl_to_final(l)  = KL(p_final || p_l)                      (the loss of Belrose et al. 2023)
    rank(l)         = 1 + #{v: p_l(v) > p_l(w)},  w = argmax p_final
    log_prob(l)     = log p_l(w); the same two of any target w
    divergence(l)   = KL(p_l under a || p_l under b), at the same row, for every ordered pair of runs (a, b)

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020); Belrose et al., "Eliciting latent predictions from
transformers with the tuned lens" (2023).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError
from probecore.validation import at_least

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
ReadOut: TypeAlias = "Callable[[int, Tensor], Tensor]"
States: TypeAlias = "Sequence[Tensor]"


@dataclass(frozen=True)
class Lens:
    """The lens of one run: entropy, kl_to_final, log_prob in nats, rank from 1, each (layers, rows, ...) float64.

    rank, log_prob : of the final layer's first choice, `final_id` (rows, ...).
    target_rank, target_log_prob : (layers, rows, ..., targets), of ids that were asked for.
    top_id, top_prob : (layers, rows, ..., top), the most probable ids of each layer, most probable first.
    """

    entropy: Floats
    kl_to_final: Floats
    rank: Floats
    log_prob: Floats
    final_id: NDArray[np.int64]
    target_rank: Floats
    target_log_prob: Floats
    top_id: NDArray[np.int64]
    top_prob: Floats


def logit_lens(
    states: States,
    read_out: ReadOut,
    *,
    allowed: "Tensor | None" = None,
    rows: int = 256,
    targets: Sequence[int] = (),
    top: int = 0,
) -> Lens:
    """Return what every layer would say: entropy, distance to the final distribution, ranks, most probable ids.

    rows : rows read out at once. targets : ids whose rank and log-probability are wanted. top : how many of the most
    probable ids are kept. Raises `InputError` when layers differ in shape, a logit that is allowed is not finite, or a
    target lies outside the vocabulary.
    """
    import torch

    _check([states], rows)
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, len(states[0]), rows):
        piece = slice(start, start + rows)
        here = _piece(allowed, piece, states[0].ndim)
        final, can = _log_probabilities(read_out(len(states) - 1, states[-1][piece]), here)
        first = final.masked_fill(~can, -torch.inf).argmax(dim=-1, keepdim=True)
        wanted = torch.cat([first, _targets(targets, final).expand(*first.shape[:-1], len(targets))], dim=-1)
        layers = [
            _measure(said, final, can, wanted, top)
            for said in (_log_probabilities(read_out(layer, s[piece]), here)[0] for layer, s in enumerate(states))
        ]
        arrays = [_array([layer[i] for layer in layers]) for i in range(6)]
        parts.append([*arrays, first[None, ..., 0].cpu().numpy()])
    entropy, kl, rank, log_prob, top_id, top_prob, final_id = (
        np.concatenate([part[i] for part in parts], axis=1) for i in range(7)
    )
    return Lens(
        entropy, kl, rank[..., 0], log_prob[..., 0], final_id[0], rank[..., 1:], log_prob[..., 1:], top_id, top_prob
    )


def _measure(said: "Tensor", final: "Tensor", can: "Tensor", wanted: "Tensor", top: int) -> "tuple[Tensor, ...]":
    """Return entropy, KL, rank and log p of the wanted ids, and the most probable ids with their p, of one layer."""
    import torch

    entropy = -(_probabilities(said, can) * said).sum(dim=-1)
    kl = (_probabilities(final, can) * (final - said)).sum(dim=-1).clamp(min=0)
    open_ids = said.masked_fill(~can, -torch.inf)
    log_p = open_ids.gather(-1, wanted)
    rank = torch.stack([1 + (open_ids > log_p[..., i, None]).sum(dim=-1) for i in range(wanted.shape[-1])], dim=-1)
    best = open_ids.topk(min(top, said.shape[-1]), dim=-1)
    return entropy, kl, rank.double(), log_p, best.indices, best.values.exp()


def _targets(targets: Sequence[int], like: "Tensor") -> "Tensor":
    import torch

    outside = [i for i in targets if not 0 <= i < like.shape[-1]]
    if outside:
        raise InputError(
            f"targets must be ids in [0, {like.shape[-1]}); got {outside[:3]}: give ids of this vocabulary"
        )
    return torch.tensor(list(targets), dtype=torch.long, device=like.device)


def lens_divergence(
    runs: Sequence[States], read_out: ReadOut, *, allowed: "Tensor | None" = None, rows: int = 256
) -> Floats:
    """Return KL(run a || run b) of the lenses, (layers, runs a, runs b, rows, ...), nats.

    Runs hold the same rows: the same positions, reached with other contexts. Two runs with equal states have exactly 0.

    Raises `InputError` when runs differ in shape or fewer than two are given.
    """
    import torch

    if len(runs) < 2:
        raise InputError(f"a divergence needs at least 2 runs; got {len(runs)}: give both sides of the contrast")
    _check(runs, rows)
    parts = []
    for start in range(0, len(runs[0][0]), rows):
        piece = slice(start, start + rows)
        here = _piece(allowed, piece, runs[0][0].ndim)
        layers = []
        for layer in range(len(runs[0])):
            # Each run is read out by itself, in products of one shape: equal states then give equal bits.
            said, cans = zip(
                *(_log_probabilities(read_out(layer, run[layer][piece]), here) for run in runs), strict=True
            )
            first, can = said[0], cans[0]
            relative = torch.stack([one - first for one in said], dim=-2)  # (rows, ..., runs, vocabulary)
            p = torch.stack([_probabilities(one, can) for one in said], dim=-2)
            own = (p * relative).sum(dim=-1)[..., :, None]
            kl = (own - p @ relative.transpose(-1, -2)).clamp(min=0)
            kl.diagonal(dim1=-2, dim2=-1).zero_()
            layers.append(kl.movedim((-2, -1), (0, 1)))
        parts.append(_array(layers))
    return np.concatenate(parts, axis=3)


def _log_probabilities(logits: "Tensor", allowed: "Tensor | None") -> "tuple[Tensor, Tensor]":
    """Return log p, 0 in place of the -inf of ids that are not allowed, and which are allowed."""
    import torch

    can = torch.ones_like(logits, dtype=torch.bool) if allowed is None else allowed.expand(logits.shape)
    if not bool(can.any(dim=-1).all()):
        raise InputError("a lens needs at least one allowed id in every row: check the mask")
    values = logits.double().masked_fill(~can, -torch.inf)
    if not bool(torch.isfinite(values[can]).all()):
        raise InputError("logits of allowed ids must be finite; got NaN or infinity: load the model in float32")
    return torch.log_softmax(values, dim=-1).masked_fill(~can, 0.0), can


def _probabilities(log_p: "Tensor", can: "Tensor") -> "Tensor":
    return log_p.exp().masked_fill(~can, 0.0)


def _piece(allowed: "Tensor | None", piece: slice, ndim: int) -> "Tensor | None":
    """Return the mask of a piece: one for all rows as it is, one by row cut like the rows."""
    if allowed is None or allowed.ndim == 1:
        return allowed
    if allowed.ndim != ndim:
        raise InputError(
            f"allowed must have shape (vocabulary,) or as many axes as the states, {ndim}; got {tuple(allowed.shape)}"
        )
    return allowed[piece]


def _check(runs: Sequence[States], rows: int) -> None:
    at_least(rows, 1, "rows")
    if not len(runs[0]) or runs[0][0].ndim < 2 or not len(runs[0][0]):
        raise InputError("states must be one tensor (rows, ..., width) per layer, with at least one layer and one row")
    shapes = {tuple(state.shape) for run in runs for state in run}
    if len(shapes) > 1 or len({len(run) for run in runs}) > 1:
        raise InputError(f"layers and runs must have equal shapes (rows, ..., width); got {sorted(shapes)[:4]}")


def _array(layers: "Sequence[Tensor]") -> NDArray[Any]:
    return np.stack([layer.cpu().numpy() for layer in layers])
