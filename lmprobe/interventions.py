"""Interventions: change the residual stream of a model while it runs, and leave no trace afterwards.

Sites, for a model of L blocks
* "embed" and "input i": the residual stream at the input of block i ("embed" is "input 0");
* "block i": the residual stream after block i;
* "attention i", "mlp i": what that sub-layer of block i ADDS to the residual stream, after any norm that stands behind
  it and with the block's own factor; "attention" is whatever mixes positions (attention, state space, convolution),
  "mlp" is MLP or experts. Which modules these are is measured (`lmprobe.sublayers`).

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

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from lmprobe.models import LanguageModel
from lmprobe.sites import residual_of, rows_of, unwrap
from lmprobe.sublayers import Part, Sublayers, find_sublayers, first_tensor, with_first
from lmprobe.taps import block_input
from lmprobe.token_positions import Positions, TokenCounter, chooser
from probecore.errors import CertificateError, InputError, shorten

Vectors = Any  # what numpy or torch can make an array of
DEPENDENT = 1e-6  # unit columns whose smallest singular value is below this are one direction too many


@dataclass(frozen=True)
class Moment:
    """What an intervention is told when it acts.

    first : the first part of this site in a pass; a sub-layer of several parts is changed as their sum. entry : the
        block's input, at "block" sites only. positions : (batch, time) real-token positions, -1 for pads; asked for
        only by what needs them.
    """

    site: str
    first: bool
    last: bool
    entry: Tensor | None
    positions: Callable[[], Tensor]


class Intervention(Protocol):
    """Something `intervened` can install: it names its sites and changes states (batch, time, width) there."""

    positions: Positions | None

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites at which to act; raises `InputError` for sites or vectors that do not fit the model."""

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the changed states as a new tensor; `hidden` is float32 or float64."""


@dataclass(frozen=True, eq=False)
class ProjectOut:
    """Remove a subspace: x -> x - Q Q^T x, or with `center` x -> x - Q Q^T (x - center).

    basis : (d,) one direction or (d, k) columns, orthonormalised in float64; only their span matters.
    at : "writes" removes it from everything that is written into the residual stream, embedding included, so that no
        block ever sees it (directional ablation, Arditi et al. 2024, arXiv 2406.11717); or one site or several.
    center : (d,). At "writes" the stream then carries the centre's component from the embedding to the end (affine
        concept editing, arXiv 2411.09003): the embedding gets it, all other writes are projected.
    """

    basis: Vectors = field(repr=False)
    at: str | Iterable[str] = "writes"
    positions: Positions | None = None
    center: Vectors | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_frame", _Constant(orthonormal(self.basis)))
        centre = None if self.center is None else _vector(self.center, "center")
        if centre is not None and centre.shape != self._frame.value.shape[:1]:
            raise InputError(
                f"a centre must have the {len(self._frame.value)} features of the basis; got {tuple(centre.shape)}"
            )
        component = None if centre is None else _Constant(self._frame.value @ (self._frame.value.T @ centre))
        object.__setattr__(self, "_component", component)

    _frame: _Constant = field(init=False, repr=False)
    _component: _Constant | None = field(init=False, repr=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return "embed" and every write of every block, or the sites asked for."""
        _fits(lm, self._frame.value.shape[0])
        if self.at != "writes":
            return _named(lm, self.at)
        known = sublayers_of(lm)
        known.require_all()
        if self._component is not None and any(a != 1.0 for a in known.carried):
            raise CertificateError(
                "a centre at 'writes' needs blocks that carry their input unchanged; this model scales it: "
                "give the sites"
            )
        return ("embed", *(f"{part.kind} {i}" for i, parts in enumerate(known.parts) for part in _once(parts)))

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return states without the subspace."""
        q = self._frame.like(hidden)
        out = hidden - (hidden @ q) @ q.T
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
        object.__setattr__(self, "_added", _Constant(_vector(self.vector, "vector") * float(self.scale)))

    _added: _Constant = field(init=False, repr=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites asked for."""
        _fits(lm, len(self._added.value))
        return _named(lm, self.at)

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
        values = torch.as_tensor(np.asarray(_plain(self.values)), dtype=torch.float64)
        if values.ndim not in (0, 1, 3) or not bool(torch.isfinite(values).all()):
            raise InputError(
                f"values must be finite, a number, (features,) or (texts, time, features); got {tuple(values.shape)}"
            )
        object.__setattr__(self, "_put", _Constant(values))

    _put: _Constant = field(init=False, repr=False)

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites asked for."""
        if self._put.value.ndim:
            _fits(lm, self._put.value.shape[-1])
        return _named(lm, self.at)

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
        names = _named(lm, self.at)
        kind, i = _parse(names[0])
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
        return _named(lm, self.at)

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Hand on the sum of a site's parts when the last of them has run."""
        whole = hidden if moment.first else self._sums.pop(moment.site) + hidden
        if moment.last:
            self.write(moment.site, whole)
        else:
            self._sums[moment.site] = whole
        return hidden


@contextmanager
def intervened(lm: LanguageModel, *interventions: Intervention) -> Iterator[None]:
    """Run everything inside this context under the interventions; their hooks are removed however it ends.

    Raises `InputError` for unknown sites and vectors of another width, `CertificateError` where a site's writes are not
    known for this model.
    """
    planned = [(intervention, intervention.sites(lm)) for intervention in interventions]  # all checks come first
    with ExitStack() as stack:
        counter = TokenCounter()
        stack.callback(counter.watch(lm.model))
        for intervention, sites in planned:
            for site in sites:
                for place in _places(lm, site, intervention, counter):
                    stack.callback(_installed(*place))
            stack.callback(_listed(lm, intervention))
        yield


def active_interventions(lm: LanguageModel) -> tuple[str, ...]:
    """Return what is installed at a model right now, as results state it."""
    return tuple(repr(intervention) for intervention in _ACTIVE.get(lm, ()))


def sublayers_of(lm: LanguageModel) -> Sublayers:
    """Return what the blocks of a model add to its residual stream; measured once, with no intervention acting."""
    if lm not in _SUBLAYERS:
        with _paused():
            _SUBLAYERS[lm] = find_sublayers(lm.model, lm.sites, cached=lm.certificate.cached)
    return _SUBLAYERS[lm]


def orthonormal(basis: Vectors) -> Tensor:
    """Return orthonormal columns (d, k) in float64 that span the columns of a basis, (d,) or (d, k).

    Raises `InputError` for columns that are not finite, zero, or not linearly independent: QR would fill up the span
    with a direction nobody asked for.
    """
    columns = torch.as_tensor(np.asarray(_plain(basis)), dtype=torch.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or not bool(torch.isfinite(columns).all()) or columns.shape[1] > columns.shape[0]:
        raise InputError(
            f"a basis must be finite, (features,) or (features, directions) with no more directions than features; "
            f"got shape {tuple(columns.shape)}"
        )
    norms = columns.norm(dim=0)
    if bool((norms == 0).any()):
        raise InputError("the directions of a basis must not be zero; at least one is: leave it out")
    unit = columns / norms
    if unit.shape[1] and float(torch.linalg.svdvals(unit)[-1]) < DEPENDENT:
        rank = int((torch.linalg.svdvals(unit) >= DEPENDENT).sum())
        raise InputError(
            f"the directions of a basis must be linearly independent; {unit.shape[1]} span {rank} dimensions: "
            "leave out the repeated ones"
        )
    frame: Tensor = torch.linalg.qr(unit)[0]
    return frame


class _Constant:
    """A float64 tensor and its copies in the dtypes and on the devices where it was wanted."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, hidden: Tensor) -> Tensor:
        key = (hidden.dtype, hidden.device)
        if key not in self._copies:
            self._copies[key] = self.value.to(hidden.dtype).to(hidden.device)
        return self._copies[key]


Act = Callable[[Any, Tensor | None], Any]  # (a module's input or output, the block's input) -> the same, changed


class _Dispatcher:
    """The one hook of a place (a module, before or after it): it runs what is installed there, in order."""

    def __init__(self, module: nn.Module, before: bool) -> None:
        self.acts: list[Act] = []
        if before:
            self.handle = module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        else:
            self.handle = module.register_forward_hook(self._after, with_kwargs=True, prepend=True)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        if _PAUSED:
            return None
        hidden = block_input(args, kwargs)
        for act in self.acts:
            hidden = act(hidden, None)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: ANN401
        if _PAUSED:
            return None
        entry = args[0] if args else kwargs.get("hidden_states")
        hidden = first_tensor(output)
        if hidden is None:
            raise CertificateError(
                f"{type(module).__name__} must return a tensor, or one first in a tuple; it does not"
            )
        for act in self.acts:
            hidden = act(hidden, entry if isinstance(entry, Tensor) else None)
        return with_first(output, hidden)


_DISPATCHERS: WeakKeyDictionary[nn.Module, dict[bool, _Dispatcher]] = WeakKeyDictionary()
_SUBLAYERS: WeakKeyDictionary[LanguageModel, Sublayers] = WeakKeyDictionary()
_ACTIVE: WeakKeyDictionary[LanguageModel, list[Intervention]] = WeakKeyDictionary()
_PAUSED: list[bool] = []


@contextmanager
def _paused() -> Iterator[None]:
    _PAUSED.append(True)
    try:
        yield
    finally:
        _PAUSED.pop()


def _installed(module: nn.Module, before: bool, act: Act) -> Callable[[], None]:
    """Append to a place's hook, which is made when it is first needed, and return what takes it out again."""
    places = _DISPATCHERS.setdefault(module, {})
    if before not in places:
        places[before] = _Dispatcher(module, before)
    places[before].acts.append(act)

    def remove() -> None:
        place = places[before]
        place.acts.remove(act)
        if not place.acts:
            place.handle.remove()
            del places[before]

    return remove


def _listed(lm: LanguageModel, intervention: Intervention) -> Callable[[], None]:
    listed = _ACTIVE.setdefault(lm, [])
    listed.append(intervention)
    return lambda: listed.remove(intervention)


def _places(
    lm: LanguageModel, site: str, intervention: Intervention, counter: TokenCounter
) -> Iterator[tuple[nn.Module, bool, Act]]:
    """Yield the modules at which an intervention acts for one site, before or after them, and how."""
    kind, i = _parse(site)
    block = lm.sites.blocks[i]
    if kind in ("input", "block"):
        act = _act(site, intervention, counter, at_block=kind == "block")
        yield block, kind == "input", act
        return
    parts = list(sublayers_of(lm).of(i, kind))  # type: ignore[arg-type]
    for j, part in enumerate(parts):
        act = _act(site, intervention, counter, part=part, first=j == 0, last=j == len(parts) - 1)
        yield part.module, False, act


def _act(
    site: str,
    intervention: Intervention,
    counter: TokenCounter,
    *,
    at_block: bool = False,
    part: Part | None = None,
    first: bool = True,
    last: bool = True,
) -> Act:
    chosen = chooser(intervention.positions)
    factor = 1.0 if part is None else part.factor

    def act(given: Any, entry: Tensor | None) -> Any:  # noqa: ANN401
        hidden = unwrap(given)
        rows, back = _as_rows(hidden, counter, part)
        states = rows if rows.dtype == torch.float64 else rows.float()
        states = states if factor == 1.0 else states * factor
        before = _as_rows(entry, counter, None)[0] if at_block and entry is not None else None
        moment = Moment(site, first, last, before, lambda: counter.at(*rows.shape[:2]))
        changed = intervention.change(states, moment)
        if changed is states:
            return given
        changed = (changed if factor == 1.0 else changed / factor).to(rows.dtype)
        if chosen is not None:
            changed = torch.where(chosen(moment.positions()).to(rows.device)[..., None], changed, rows)
        return back(changed)

    return act


def _as_rows(hidden: Tensor, counter: TokenCounter, part: Part | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return states as (batch, time, width) and what puts them back into the layout they came in."""
    if hidden.ndim == 4 and part is None:
        copies = hidden.shape[0]
        return rows_of(hidden), lambda rows: residual_of(rows, copies)
    if hidden.ndim == 3:
        return hidden, lambda rows: rows
    if hidden.ndim == 2 and counter.now is not None:  # some MLPs are given their tokens in one row
        shape = tuple(counter.now.shape)
        return hidden.unflatten(0, shape), lambda rows: rows.flatten(0, 1)
    raise CertificateError(f"states must have the axes batch, time, width; got shape {tuple(hidden.shape)}")


def _once(parts: Iterable[Part]) -> list[Part]:
    """Return one part of each kind."""
    kinds: dict[str, Part] = {}
    for part in parts:
        kinds.setdefault(part.kind, part)
    return list(kinds.values())


def _named(lm: LanguageModel, at: str | Iterable[str]) -> tuple[str, ...]:
    """Return checked site names; raises `InputError` for those that do not exist."""
    names = (at,) if isinstance(at, str) else tuple(at)
    n = len(lm.sites.blocks)
    unknown = [name for name in names if not _exists(name, n)]
    if unknown or not names:
        raise InputError(
            f"no site {shorten(unknown) or 'given'}; there are embed and input, block, attention, mlp with a block "
            f"number from 0 to {n - 1}: for example 'block {n - 1}'"
        )
    for name in names:
        kind, i = _parse(name)
        if kind in ("attention", "mlp") and not sublayers_of(lm).of(i, kind):  # type: ignore[arg-type]
            raise InputError(f"block {i} must have an {kind}; it has none: take another block or site")
    return names


def _exists(name: object, n_blocks: int) -> bool:
    if name == "embed":
        return True
    kind, _, number = str(name).partition(" ")
    return kind in ("input", "block", "attention", "mlp") and number.isdecimal() and int(number) < n_blocks


def _parse(site: str) -> tuple[str, int]:
    if site == "embed":
        return "input", 0
    kind, number = site.split(" ")
    return kind, int(number)


def _fits(lm: LanguageModel, width: int) -> None:
    if width != lm.certificate.width:
        raise InputError(
            f"a vector must have the {lm.certificate.width} features of the residual stream of {lm.name}; "
            f"got {width}: take it from this model"
        )


def _vector(values: Vectors, name: str) -> Tensor:
    vector = torch.as_tensor(np.asarray(_plain(values)), dtype=torch.float64)
    if vector.ndim != 1 or not bool(torch.isfinite(vector).all()):
        raise InputError(f"{name} must be finite with shape (features,); got shape {tuple(vector.shape)}")
    return vector


def _plain(values: Vectors) -> Any:  # noqa: ANN401
    return values.detach().double().cpu().numpy() if isinstance(values, Tensor) else values
