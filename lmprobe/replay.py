"""Suffix replay: run a model again from block k on, from states kept of an earlier run, bit for bit.

Conventions. `Recording.states[i]` is the residual stream after block i in the model's own layout, (batch, time, width)
or (copies, batch, time, width). Replaying from block k (0 <= k <= L) leaves blocks k .. L-1 real; each one before is
a stand-in that returns its recorded state in its own return shape. The true ids, mask and positions are given again,
because later blocks read things made from them (masks, rotary tables, per-layer embeddings). From 0 it is a full run,
from L the read-out of the last state.

Some models share keys and values between blocks. A block whose keys a later one reads cannot be stood in for; it is run
on its recorded input, and its recorded output is returned. Which blocks these are is found by trying
(`resume_points`): each block is left out in turn, and left out for good where the logits stay the same bit for bit. No
architecture is named.

A sweep of one change at each of L blocks costs L (L + 1) / 2 executions of a block in place of L^2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lmprobe.certificate import Check
from lmprobe.inputs import forward_arguments, pad
from lmprobe.models import LanguageModel
from lmprobe.probe_pass import probe_rows
from lmprobe.readout import StandIn, replaced_blocks
from lmprobe.sites import unwrap
from probecore.errors import CertificateError, InputError, shorten

FAILURES = (RuntimeError, IndexError, KeyError, AttributeError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class Recording:
    """One batch that was run, and the residual stream after each of its blocks.

    ids, mask : (batch, time), padded on either side. states : L tensors in the model's own layout, copies of their own.
    logits : (batch, kept, vocabulary) of the run that was recorded, in the model's dtype.
    """

    ids: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    states: tuple[Tensor, ...] = field(repr=False)
    logits: Tensor = field(repr=False)

    @property
    def n_blocks(self) -> int:
        """Number of blocks of the model."""
        return len(self.states)


@dataclass(frozen=True)
class ResumePoints:
    """From where a model can be replayed.

    legal : L + 1 flags; legal[k] says that a replay from block k gives the logits of a full run bit for bit.
    owners : blocks that are run again in every replay that starts after them, because later ones read their keys.
    check : the same as one check, as results carry it.
    """

    legal: tuple[bool, ...]
    owners: tuple[int, ...]
    check: Check


class _Rerun(StandIn):
    """A stand-in that also runs the real block, for the keys and values it leaves behind."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run the real block on what it is given, drop its output and return the recorded one."""
        object.__getattribute__(self, "_block")(*args, **kwargs)
        return super().forward()


def record(lm: LanguageModel, ids: Tensor, mask: Tensor, **more: Any) -> Recording:  # noqa: ANN401
    """Run a padded batch and keep the state after every block; `more` goes to the forward pass (`logits_to_keep`).

    Interventions that are installed are part of the run: a replay continues from the states they left.
    """
    kept: dict[int, Tensor] = {}

    def keep(i: int) -> Any:  # noqa: ANN401
        def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
            kept[i] = unwrap(output).clone()

        return hook

    handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(lm.sites.blocks)]
    try:
        with torch.no_grad():
            logits = lm.model(**_arguments(lm, ids, mask, more)).logits
    finally:
        for handle in handles:
            handle.remove()
    return Recording(ids, mask, tuple(kept[i] for i in range(len(lm.sites.blocks))), logits)


def replay(
    lm: LanguageModel,
    recording: Recording,
    start: int,
    state: Tensor | None = None,
    **more: Any,  # noqa: ANN401
) -> Tensor:
    """Return the logits (batch, kept, vocabulary) of running blocks `start` .. L-1 on a recorded state.

    start : 0 (everything) to L (the read-out alone). Interventions at block `start` or later act as in a full run.
    state : what block start - 1 shall have left, in the shape of `recording.states`; None takes what was recorded.
    more : arguments of the forward pass (`logits_to_keep`).
    Raises `InputError` for a start that does not exist, `CertificateError` for one from which this model cannot resume.
    """
    with replaying(lm, recording, start, state), torch.no_grad():
        logits: Tensor = lm.model(**_arguments(lm, recording.ids, recording.mask, more)).logits
    return logits


@contextmanager
def replaying(lm: LanguageModel, recording: Recording, start: int, state: Tensor | None = None) -> Iterator[None]:
    """Let every forward pass of the recorded batch inside this context start at block `start`; see `replay`."""
    n = len(lm.sites.blocks)
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start <= n:
        raise InputError(f"a replay starts at a block from 0 to {n} ({n} is the read-out alone); got {start!r}")
    if state is not None and (start == 0 or state.shape != recording.states[start - 1].shape):
        shape = tuple(recording.states[0].shape)
        raise InputError(
            f"a state to resume from must have shape {shape} and a start above 0; got {tuple(state.shape)} at {start}"
        )
    points = resume_points(lm)
    if not points.legal[start]:
        raise CertificateError(
            f"a replay from block {start} must give the logits of a full run; it does not ({points.check.note}): "
            f"start at {shorten([k for k, legal in enumerate(points.legal) if legal])}"
        )
    with _stand_ins(lm, recording.states, start, points.owners, state):
        yield


def resume_points(lm: LanguageModel) -> ResumePoints:
    """Return from where this model can be replayed; measured once for an opened model, then remembered."""
    if lm not in _KNOWN:
        _KNOWN[lm] = _find(lm)
    return _KNOWN[lm]


_KNOWN: WeakKeyDictionary[LanguageModel, ResumePoints] = WeakKeyDictionary()


def _find(lm: LanguageModel) -> ResumePoints:
    n = len(lm.sites.blocks)
    ids, mask = pad(probe_rows(lm.model), lm.pad_id, "left")
    recording = record(lm, ids, mask)
    real = mask.bool().to(recording.logits.device)

    def holds(start: int, owners: Sequence[int]) -> str:
        """Return why a replay is not the full run, nothing where it is."""
        try:
            with _stand_ins(lm, recording.states, start, owners), torch.no_grad():
                logits = lm.model(**_arguments(lm, ids, mask, {})).logits
        except FAILURES as error:
            return f"{type(error).__name__}: {str(error)[:80]}"
        if torch.equal(logits[real], recording.logits[real]):
            return ""
        return f"logits differ by {float((logits - recording.logits)[real].abs().max()):.1e}"

    owners: tuple[int, ...] = ()
    if any(holds(k, ()) for k in range(1, n)):
        owners = tuple(range(n))
        for block in range(n):
            fewer = tuple(other for other in owners if other != block)
            if not holds(block + 1, fewer):  # every block that could read its keys is real in this replay
                owners = fewer
    reasons = [holds(k, owners) for k in range(n + 1)]
    legal = tuple(not reason for reason in reasons)
    note = next((f"from block {k}: {reason}" for k, reason in enumerate(reasons) if reason), "")
    if owners and all(legal):
        note = f"blocks {shorten(owners)} share their keys and values and are run again"
    return ResumePoints(legal, owners, Check("suffix replay", all(legal), 0.0 if all(legal) else None, note))


@contextmanager
def _stand_ins(
    lm: LanguageModel, states: Sequence[Tensor], start: int, owners: Sequence[int], state: Tensor | None = None
) -> Iterator[None]:
    values = [*states[: start - 1], states[start - 1] if state is None else state] if start else []
    modules: list[nn.Module] = list(lm.sites.blocks)
    for i, value in enumerate(values):
        kind = _Rerun if i in owners else StandIn
        modules[i] = kind(lm.sites.blocks[i], value, lm.certificate.returns[i])
    with replaced_blocks(lm.model, lm.sites, modules):
        yield


def _arguments(lm: LanguageModel, ids: Tensor, mask: Tensor, more: Mapping[str, Any]) -> dict[str, Any]:
    return forward_arguments(lm.model, ids, mask, use_cache=lm.certificate.cached, **more)
