"""Installing interventions: the hooks behind `lmprobe.interventions`, one for each place of a model.

Conventions. A place is a module, before or after it; its one hook runs what is installed there in the order in which it
was given and is removed with the last of it. A block site is the block's input or output. A sub-layer site is the
outputs of the modules whose sum the sub-layer adds (`lmprobe.sublayers`), each with its factor. States are handed over
as (batch, time, width), in float32 or float64 and in the size that is added to the stream, and put back in the layout,
dtype and factor in which they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lmprobe.models import LanguageModel
from lmprobe.sites import residual_of, rows_of, unwrap
from lmprobe.sublayers import KINDS, Kind, Part, Sublayers, find_sublayers, first_tensor, with_first
from lmprobe.taps import block_input
from lmprobe.token_positions import Positions, TokenCounter, chooser
from probecore.errors import CertificateError, InputError, shorten


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

    @property
    def positions(self) -> Positions | None:
        """Positions among a text's real tokens at which to act, None for all."""

    def sites(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the sites at which to act; raises `InputError` for sites or vectors that do not fit the model."""

    def change(self, hidden: Tensor, moment: Moment) -> Tensor:
        """Return the changed states as a new tensor; `hidden` is float32 or float64."""


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
    kind, i = parse_site(site)
    block = lm.sites.blocks[i]
    if kind not in KINDS:
        act = _act(site, intervention, counter, at_block=kind == "block")
        yield block, kind == "input", act
        return
    parts = sublayers_of(lm).of(i, kind)
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


def sites_named(lm: LanguageModel, at: str | Iterable[str]) -> tuple[str, ...]:
    """Return site names that this model has; raises `InputError` for those that do not exist."""
    names = (at,) if isinstance(at, str) else tuple(at)
    n = len(lm.sites.blocks)
    unknown = [name for name in names if not _exists(name, n)]
    if unknown or not names:
        raise InputError(
            f"no site {shorten(unknown) or 'given'}; there are embed and input, block, {', '.join(KINDS)} with a block "
            f"number from 0 to {n - 1}: for example 'block {n - 1}'"
        )
    for name in names:
        kind, i = parse_site(name)
        if kind in KINDS and not sublayers_of(lm).of(i, kind):
            raise InputError(f"{name!r} must be something block {i} adds; it has no such part: take another site")
    return names


def _exists(name: object, n_blocks: int) -> bool:
    if name == "embed":
        return True
    kind, _, number = str(name).partition(" ")
    return kind in ("input", "block", *KINDS) and number.isdecimal() and int(number) < n_blocks


def parse_site(site: str) -> tuple[Kind | Literal["input", "block"], int]:
    """Return the kind and the block of a site that exists."""
    if site == "embed":
        return "input", 0
    kind, number = site.split(" ")
    return kind, int(number)  # type: ignore[return-value]  # its words were checked


def require_width(lm: LanguageModel, width: int) -> None:
    """Raise `InputError` for a vector of another width than the residual stream's."""
    if width != lm.certificate.width:
        raise InputError(
            f"a vector must have the {lm.certificate.width} features of the residual stream of {lm.name}; "
            f"got {width}: take it from this model"
        )
