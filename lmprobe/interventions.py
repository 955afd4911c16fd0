"""Interventions: change the residual stream of a model while it runs, and leave no trace afterwards.

Sites, for a model of L blocks
* "embed" and "input i": the residual stream at the input of block i ("embed" is "input 0");
* "block i": the residual stream after block i;
* "attention i", "mlp i", "other i": what that sub-layer of block i ADDS to the residual stream, after any norm that
  stands behind it and with the block's own factor; "attention" is whatever mixes positions (attention, state space,
  convolution), "mlp" is MLP or experts, "other" what is neither (Gemma 4's input of each layer). Which modules these
  are is measured (`lmprobe.sublayers`).

`intervened(lm, *interventions)` installs them for everything that runs inside: `capture`, `generate`, `score`, plain
calls of the model. They act in the order in which they are given, those of an outer context first. Taps see the state
AFTER them, whichever was installed first; a tap on "block i" stands before "input i+1" and does not see what is done
there.

A block that a stand-in replaces does not run, and so nothing at its sites acts: a stored state is taken as it is. With
suffix replay from block k the sites "input k" and later act; what belongs to "block k-1" or earlier must be in the
state that is handed in, which it is when that state was recorded under the same interventions. `read_out` reads a given
state: no site acts there.

Arithmetic is out of place, in float32 (float64 for a float64 model), cast back to the model's dtype. A token that an
intervention does not mean keeps its state bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lmprobe.installation import (
    Intervention,
    Moment,
    active_interventions,
    intervened,
    parse_site,
    require_width,
    sites_named,
    sublayers_of,
)
from lmprobe.models import LanguageModel
from lmprobe.token_positions import Positions, chooser
from lmprobe.vectors import Constant, Vectors, orthonormal, plain, vector
from probecore.errors import CertificateError, InputError

__all__ = [
    "Add",
    "Intervention",
    "Moment",
    "ProjectOut",
    "Read",
    "Replace",
    "Skip",
    "Vectors",
    "active_interventions",
    "intervened",
    "orthonormal",
    "sublayers_of",
]


@dataclass(frozen=True, eq=False)
class ProjectOut:
    """Remove a subspace: x -> x - s Q Q^T x, or with `center` x -> x - s Q Q^T (x - center), s = `strength`.

    basis : (d,) one direction or (d, k) columns, orthonormalised in float64; only their span matters.
    at : "writes" removes it from everything that is written into the residual stream, embedding included, so that no
        block ever sees it (directional ablation, Arditi et al. 2024, arXiv 2406.11717); or one site or several.
    center : (d,). At "writes" the stream then carries the centre's component from the embedding to the end (affine
        concept editing, arXiv 2411.09003): the embedding gets it, all other writes are projected.
    strength : 1 removes; less leaves a part, more turns it round (2 is a reflection).
    """

    basis: Vectors = field(repr=False)
    at: str | Iterable[str] = "writes"
    positions: Positions | None = None
    center: Vectors | None = field(default=None, repr=False)
    strength: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_frame", Constant(orthonormal(self.basis)))
        centre = None if self.center is None else vector(self.center, "center")
        if centre is not None and centre.shape != self._frame.value.shape[:1]:
            raise InputError(
                f"a centre must have the {len(self._frame.value)} features of the basis; got {tuple(centre.shape)}"
            )
        if not np.isfinite(self.strength):
            raise InputError(f"strength must be a finite number; got {self.strength}")
        component = (
            None if centre is None else Constant(self.strength * (self._frame.value @ (self._frame.value.T @ centre)))
        )
        object.__setattr__(self, "_component", component)

    _frame: Constant = field(init=False, repr=False)
    _component: Constant | None = field(init=False, repr=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return "embed" and every write of every block, or the sites asked for."""
        require_width(lm, self._frame.value.shape[0])
        if self.at != "writes":
            return sites_named(lm, self.at)
        known = sublayers_of(lm)
        known.require_all()
        if self._component is not None and any(a != 1.0 for a in known.carried):
            raise CertificateError(
                "a centre at 'writes' needs blocks that carry their input unchanged; this model scales it: "
                "give the sites"
            )
        return known.writes

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return states without the subspace."""
        q = self._frame.like(hidden)
        removed = (hidden @ q) @ q.T
        out = hidden - (removed if self.strength == 1.0 else self.strength * removed)
        if self._component is not None and moment.first and (self.at != "writes" or moment.site == "embed"):
            out = out + self._component.like(hidden)
        return out


@dataclass(frozen=True, eq=False)
class Add:
    """Add `scale` times a vector (d,) at one site or several (activation addition)."""

    vector: Vectors = field(repr=False)
    at: str | Iterable[str]
    scale: float = 1.0
    positions: Positions | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_added", Constant(vector(self.vector, "vector") * float(self.scale)))

    _added: Constant = field(init=False, repr=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites asked for."""
        require_width(lm, len(self._added.value))
        return sites_named(lm, self.at)

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return states with the vector added."""
        return hidden + self._added.like(hidden) if moment.first else hidden


@dataclass(frozen=True, eq=False)
class Replace:
    """Put other values in the place of what is there: zeros, a mean, another run's states.

    values : 0 or (d,) for every token, or (texts, time, d): the value of each row of the batch at each real token's
        position, whatever the padding; every position that is replaced must be there.
    """

    values: Vectors = field(repr=False)
    at: str | Iterable[str]
    positions: Positions | None = None

    def __post_init__(self) -> None:
        values = torch.as_tensor(np.asarray(plain(self.values)), dtype=torch.float64)
        if values.ndim not in (0, 1, 3) or not bool(torch.isfinite(values).all()):
            raise InputError(
                f"values must be finite, a number, (features,) or (texts, time, features); got {tuple(values.shape)}"
            )
        object.__setattr__(self, "_put", Constant(values))

    _put: Constant = field(init=False, repr=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites asked for."""
        if self._put.value.ndim:
            require_width(lm, self._put.value.shape[-1])
        return sites_named(lm, self.at)

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the values; the further parts of a site become 0, so that the sum is the values."""
        if not moment.first:
            return torch.zeros_like(hidden)
        values = self._put.like(hidden)
        if values.ndim < 3:
            return torch.zeros_like(hidden) + values
        at = moment.positions()
        chosen = chooser(self.positions)
        used = at[(at >= 0) if chosen is None else chosen(at)]
        if len(values) != len(hidden) or (used.numel() and int(used.max()) >= values.shape[1]):
            raise InputError(
                f"values must have one row per text and an entry for every position that is replaced; got "
                f"{tuple(values.shape[:2])} for {len(hidden)} texts of up to {int(at.max()) + 1} tokens"
            )
        index = at.clamp(0, values.shape[1] - 1)
        return torch.where((at >= 0)[..., None], values.gather(1, index[..., None].expand_as(hidden)), hidden)


@dataclass(frozen=True)
class Skip:
    """Leave out a block ("block i": its output is its input) or a sub-layer ("attention i", "mlp i": it adds nothing).

    What is left out still runs, so that a cache fills as it always does.
    """

    at: str

    positions: Positions | None = field(default=None, init=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the site asked for."""
        names = sites_named(lm, self.at)
        kind, i = parse_site(names[0])
        if kind == "input":
            raise InputError(f"what can be skipped is a block, an attention or an mlp; got {self.at!r}")
        if kind == "block" and i in sublayers_of(lm).mutates:
            raise CertificateError(
                f"block {i} changes its input in place, so it cannot be skipped: skip its sub-layers"
            )
        return names

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the block's input, or nothing added."""
        return torch.zeros_like(hidden) if moment.entry is None else moment.entry.to(hidden)


@dataclass(frozen=True, eq=False)
class Read:
    """Hand the states (batch, time, d) at sites to `write(site, states)`, after what was installed before it.

    It reads what taps cannot: what a sub-layer adds. `write` copies what it wants to keep and changes nothing.
    """

    write: Callable[[str, Tensor], None] = field(repr=False)
    at: str | Iterable[str]
    positions: Positions | None = field(default=None, init=False)
    _sums: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites asked for."""
        return sites_named(lm, self.at)

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Hand on the sum of a site's parts when the last of them has run."""
        whole = hidden if moment.first else self._sums.pop(moment.site) + hidden
        if moment.last:
            self.write(moment.site, whole)
        else:
            self._sums[moment.site] = whole
        return hidden
