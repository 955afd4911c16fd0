"""Arms of a layer ablation: which change is made where, and the same change in a random direction.

Conventions. A part is "attention", "mlp" (what that sub-layer adds to the residual stream) or "block" (the residual
stream after the block). Kinds of change, at every token meant:

zero      the part is 0: a sub-layer adds nothing, a block leaves nothing
skip      the part is left out: a sub-layer adds nothing (as zero), a block's output is its input
mean      the part is its mean over the fit prompts; the first token, an attention sink, has a mean of its own
resample  the part is that of a random fit prompt, aligned at the prompts' ends, the first token with the first
project   the component along a direction is removed
add       a multiple of a direction is added

The control of an arm makes, at each token, a change of the same size along a random direction instead: at a token where
the arm moves the state by D, the control moves it by |D| u, or by the same signed amount where the arm moves it along
one direction. u is isotropic, or a random weighted sum of the centred fit states of that place ("covariance"), which
points where states vary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.interventions import Add, Intervention, Moment, ProjectOut, Replace, Skip
from lmprobe.models import LanguageModel
from lmprobe.token_positions import Positions, chooser
from lmprobe.vectors import Constant
from probecore.errors import InputError

Floats = NDArray[np.float64]
KINDS = ("zero", "skip", "mean", "resample", "project", "add")
PARTS = ("attention", "mlp", "block")
ALONG = ("project", "add")
CONTROLS = ("random", "covariance")
Flags = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Arm:
    """One change at one part of one block, or of every block at once (block None)."""

    kind: str
    part: str
    block: int | None

    def sites(self, n_blocks: int) -> tuple[str, ...]:
        """Return the sites at which it acts."""
        blocks = range(n_blocks) if self.block is None else (self.block,)
        return tuple(f"{self.part} {i}" for i in blocks)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What changes need to know, from prompts that are not measured.

    means : site -> (2, d), mean at first tokens and at all others. states : site -> one (tokens, d) per fit prompt,
        where the place of a prompt's end is the last row but `after`. spread : site -> (tokens, d) centred states.
    vectors : block -> raw direction (d,).
    """

    means: Mapping[str, Floats] = field(default_factory=dict, repr=False)
    states: Mapping[str, Sequence[NDArray[np.float32]]] = field(default_factory=dict, repr=False)
    ends: Sequence[int] = ()
    spread: Mapping[str, Floats] = field(default_factory=dict, repr=False)
    vectors: Mapping[int, Floats] = field(default_factory=dict, repr=False)

    def directions(self, control: str, site: str, weights: Floats) -> Floats:
        """Return unit directions (replicates, d) at a site from weights (replicates, n) of a control."""
        drawn = weights if control == "random" else weights[:, : len(self.spread[site])] @ self.spread[site]
        sizes = np.linalg.norm(drawn, axis=1, keepdims=True)
        return np.asarray(drawn / np.where(sizes > 0, sizes, 1.0))


@dataclass(eq=False)
class PutMeans:
    """Put the mean of a site in the place of what is there. means : (2, d), of first tokens and of others."""

    means: Floats
    at: str
    positions: Positions | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._means = Constant(torch.from_numpy(np.asarray(self.means, dtype=np.float64)))

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the site."""
        return Replace(self.means[1], self.at).sites(lm)

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the means; the further parts of a site become 0, so that the sum is the mean."""
        means, at = self._means.like(hidden), moment.positions().to(hidden.device)[..., None]
        if not moment.first:
            return torch.where(at >= 0, torch.zeros_like(hidden), hidden)
        return torch.where(at > 0, means[1], torch.where(at == 0, means[0], hidden))


@dataclass(eq=False)
class Where:
    """Let an intervention act at the tokens that `flags` chooses from positions (batch, time)."""

    inner: Intervention
    flags: Flags
    positions: Positions | None = field(default=None, init=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites of the intervention."""
        return self.inner.sites(lm)

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the changed states where they are meant, the others bit for bit."""
        mask = self.flags(moment.positions()).to(hidden.device)[..., None]
        return torch.where(mask, self.inner.change(hidden, moment), hidden)


@dataclass(eq=False)
class EqualChange:
    """Change each token by as much as an intervention would, along a direction of its row instead.

    directions : (rows, d) unit. along : (d,) unit, where the intervention moves along it: the amount then has a sign.
    """

    inner: Intervention
    directions: Tensor
    along: Tensor | None = None
    positions: Positions | None = field(default=None, init=False)
    _so_far: Tensor | None = field(default=None, init=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites of the intervention."""
        return self.inner.sites(lm)

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the states moved; a site of several parts is moved at the last of them by the size of their sum."""
        moved = self.inner.change(hidden, moment) - hidden
        moved = moved if moment.first or self._so_far is None else self._so_far + moved
        if not moment.last:
            self._so_far = moved
            return hidden
        self._so_far = None
        amount = moved.norm(dim=-1) if self.along is None else moved @ self.along.to(hidden)
        return hidden + amount[..., None] * self.directions.to(hidden)[:, None]


def interventions(
    arm: Arm, fitted: Fitted, n_blocks: int, *, donors: Sequence[int], lengths: Sequence[int], ends: Sequence[int],
    scale: float, flags: Flags | None,
) -> list[Intervention]:  # fmt: skip
    """Return the interventions of an arm on a batch.

    donors : fit prompt of each row ("resample"). lengths, ends : real tokens of each row, place of its prompt's end.
    scale : factor of "add". flags : tokens meant, None for all.
    """
    made: list[Intervention] = []
    for site in arm.sites(n_blocks):
        block = int(site.split(" ")[1])
        if arm.kind == "zero":
            one: Intervention = Replace(0.0, site)
        elif arm.kind == "skip":
            one = Skip(site)
        elif arm.kind == "mean":
            one = PutMeans(fitted.means[site], site)
        elif arm.kind == "resample":
            one = Replace(donated(fitted, site, donors, lengths, ends), site)
        elif arm.kind == "project":
            one = ProjectOut(fitted.vectors[block], at=site)
        else:
            one = Add(fitted.vectors[block], at=site, scale=scale)
        made.append(one if flags is None else Where(one, flags))
    return made


def controls(
    arm: Arm, made: Sequence[Intervention], fitted: Fitted, n_blocks: int, control: str, weights: Floats, n_rows: int
) -> list[Intervention]:
    """Return the controls of an arm's interventions for replicates (weights, one row each) of a batch of n_rows."""
    out: list[Intervention] = []
    for site, inner in zip(arm.sites(n_blocks), made, strict=True):
        directions = torch.from_numpy(fitted.directions(control, site, weights)).repeat_interleave(n_rows, dim=0)
        along = None
        if arm.kind in ALONG:
            vector = fitted.vectors[int(site.split(" ")[1])]
            along = torch.from_numpy(vector / np.linalg.norm(vector))
        out.append(EqualChange(inner, directions, along))
    return out


def donated(
    fitted: Fitted, site: str, donors: Sequence[int], lengths: Sequence[int], ends: Sequence[int]
) -> NDArray[np.float32]:
    """Return (rows, time, d): the states of a donor for each row, prompt ends aligned, first token with first token."""
    longest = max(lengths)
    width = fitted.states[site][0].shape[1]
    values = np.zeros((len(donors), longest, width), dtype=np.float32)
    for row, (donor, length, end) in enumerate(zip(donors, lengths, ends, strict=True)):
        own = fitted.states[site][donor]
        place = np.arange(length) - end + fitted.ends[donor]
        place = np.clip(place, min(1, len(own) - 1), len(own) - 1)
        place[0] = 0
        values[row, :length] = own[place]
    return values


def flags_of(positions: str, ends: Sequence[int]) -> Flags | None:
    """Return which tokens a text means, None for all.

    positions : "all"; "last" (the last token of each prompt); or numbers counted from 0 at a text's first real token:
        "0", "3,5", "2:" (from 2 on), ":4" (before 4), "2:6". ends : place of each row's last prompt token.
    Raises `InputError` for another text.
    """
    if positions == "all":
        return None
    if positions == "last":
        last = torch.tensor(list(ends))
        return lambda at: at == last.to(at.device).repeat(len(at) // len(last))[:, None]
    try:
        if ":" in positions:
            start, stop = positions.split(":")
            return chooser(slice(int(start) if start else None, int(stop) if stop else None))
        return chooser([int(number) for number in positions.split(",")])
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"positions must be all, last, or numbers from 0 as '0', '3,5', '2:' or '2:6'; got {positions!r}"
        ) from error
