"""Sub-layers: what each block adds to the residual stream, and which module's output that is.

Conventions. A block turns its input x into y = a x + c_1 w_1 + c_2 w_2 + ..., where w_j is the output of one module
inside it and a, c_j are numbers (1 in most models; Granite's residual multiplier, Gemma 4's layer scalar). A module
whose output enters the sum is a *part*; its *write* is c_j w_j, after any norm that stands behind the sub-layer. A part
belongs to the "attention" (attention, state-space, convolution: whatever mixes positions), to the "mlp" (MLP or
experts) or is "other". One sub-layer may have several parts: routed and shared experts that are summed in the block.

No architecture is named. The sum is fitted to a probe of random tokens and then has to hold element by element within
the rounding of the model's dtype; it has to hold again while every write is replaced by other numbers, which shows that
replacing the part's output is replacing the write. A block for which no such sum exists (a norm on the stream itself,
several streams that are mixed) gets a reason instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lmprobe.probe_pass import probe_forward
from lmprobe.sites import Sites, unwrap
from lmprobe.taps import block_input
from lmprobe.write_sums import Output, fitted_sum, scalars_of, sum_holds
from probecore.errors import CertificateError

Kind = Literal["attention", "mlp", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MLP = re.compile(r"mlp|moe|feed_?forward|ffn|expert|fc\d|4h|channel", re.IGNORECASE)
MIXER = re.compile(r"att|mamba|conv|temporal|recurrent|ssm|delta", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A module whose output, times `factor`, is added to the residual stream.

    path : dotted path inside the block. norm : the module is a norm (it stands behind the sub-layer).
    """

    path: str
    module: nn.Module = field(repr=False)
    factor: float
    kind: Kind
    norm: bool


@dataclass(frozen=True)
class Sublayers:
    """The parts of every block, or the reason why a block has none.

    carried : per block the factor a of its input in its output. mutates : blocks that change their input in place.
    reasons : block -> why its output is not a sum. between : why the stream is not carried unchanged from block to
        block, None where it is.
    """

    parts: tuple[tuple[Part, ...], ...]
    carried: tuple[float, ...]
    mutates: tuple[int, ...]
    reasons: dict[int, str]
    between: str | None

    def of(self, block: int, kind: Kind) -> tuple[Part, ...]:
        """Return the parts of one sub-layer, in the order in which they run.

        Raises `CertificateError` when the block's output is no sum of its input and its parts.
        """
        if block in self.reasons:
            raise CertificateError(
                f"what the sub-layers of block {block} add to the residual stream must be known; "
                f"{self.reasons[block]}: intervene at 'input' or 'block' sites"
            )
        return tuple(part for part in self.parts[block] if part.kind == kind)

    @property
    def writes(self) -> tuple[str, ...]:
        """Names of the sites at which something is written into the stream, in the order of the forward pass."""
        kinds = (dict.fromkeys(part.kind for part in parts) for parts in self.parts)
        return ("embed", *(f"{kind} {i}" for i, of_block in enumerate(kinds) for kind in of_block))

    def require_all(self) -> None:
        """Raise `CertificateError` unless every write to the stream is known."""
        for block in self.reasons:
            self.of(block, "other")
        if self.between is not None:
            raise CertificateError(f"{self.between}: intervene at 'input' or 'block' sites")


def find_sublayers(model: nn.Module, sites: Sites, *, cached: bool = False) -> Sublayers:
    """Return what the blocks of a model add to its residual stream; two forward passes of a short probe.

    Raises `CertificateError` when a block does not run.
    """
    seen: list[_Block] = [_Block(i, block) for i, block in enumerate(sites.blocks)]
    with _watched(seen):
        probe_forward(model, cached=cached)
    if late := [block.index for block in seen if not block.done]:
        raise CertificateError(
            f"every block must run in a forward pass; block {late[0]} did not: name the right blocks"
        )
    with _confirmed(seen):
        probe_forward(model, cached=cached)
    return Sublayers(
        parts=tuple(tuple(block.parts) for block in seen),
        carried=tuple(block.carried for block in seen),
        mutates=tuple(block.index for block in seen if block.mutates),
        reasons={block.index: block.reason for block in seen if block.reason},
        between=_between(seen),
    )


def first_tensor(output: Any) -> Tensor | None:  # noqa: ANN401
    """Return a module's output, or the first entry of its tuple, where that is a tensor."""
    hidden = output[0] if isinstance(output, (tuple, list)) and len(output) else output
    return hidden if isinstance(hidden, Tensor) else None


def with_first(output: Any, hidden: Tensor) -> Any:  # noqa: ANN401
    """Return a module's output with another first tensor."""
    return type(output)((hidden, *output[1:])) if isinstance(output, (tuple, list)) else hidden


@dataclass
class _Block:
    """One block on the way: what was seen of it and what was concluded."""

    index: int
    module: nn.Module
    entry: Tensor | None = None
    entered: Tensor | None = None
    first: Tensor | None = None  # the first token's input and output, to compare neighbouring blocks
    last: Tensor | None = None
    outputs: dict[str, Output] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    carried: float = 1.0
    mutates: bool = False
    reason: str = ""
    done: bool = False

    def enter(self, hidden: Tensor) -> None:
        self.entered, self.entry = hidden, hidden.detach().clone()
        self.first = self.entry[..., :1, :].clone()

    def leave(self, hidden: Tensor) -> None:
        assert self.entry is not None and self.entered is not None
        self.mutates = not torch.equal(self.entered, self.entry)
        self.last = hidden.detach()[..., :1, :].clone()
        self.reason = self._explain(hidden.detach())
        self.outputs, self.entered, self.entry, self.done = {}, None, None, True

    def _explain(self, hidden: Tensor) -> str:
        """Find the sum; return why there is none."""
        assert self.entry is not None
        if hidden.ndim != 3:
            return f"it carries {hidden.shape[0]} residual streams that are mixed"
        entry, out = _flat(self.entry), _flat(hidden)
        children = {path: output for path, output in self.outputs.items() if "." not in path}
        whole = [output for output in children.values() if self._usable(output, out)]
        inner = {path.partition(".")[0] for path in self.outputs if "." in path}
        deeper = [
            output
            for path, output in self.outputs.items()
            if ("." in path or path not in inner) and self._usable(output, out)
        ]
        for candidates, scalars in product((whole, deeper), ([1.0], scalars_of(self.module))):
            found = fitted_sum(entry, out, candidates, scalars)
            if found is not None:
                self.carried, chosen = found
                chosen.sort(key=lambda pair: pair[0].order)
                self.parts = [Part(o.path, o.module, factor, self._kind(o), _is_norm(o.module)) for o, factor in chosen]
                return ""
        return "its output is no sum of its input and of what modules inside it return (a norm stands on the stream)"

    def _usable(self, output: Output, out: Tensor) -> bool:
        value = output.value
        return output.runs == 1 and value is not None and bool(value.any()) and not torch.equal(value, out)

    def _kind(self, output: Output) -> Kind:
        """Tell attention from MLP by the name, the class, or what a norm was given."""
        for text in (output.path, type(output.module).__name__):
            kind = _kind_of(text)
            if kind != "other":
                return kind
        sources = (o for o in self.outputs.values() if o is not output and o.value is not None)
        for source in sources:
            if output.source is not None and source.value is not None and torch.equal(source.value, output.source):
                return self._kind(source)
        return "other"


def _kind_of(text: str) -> Kind:
    if MLP.search(text):
        return "mlp"
    return "attention" if MIXER.search(text) else "other"


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _flat(hidden: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])


def _between(seen: Sequence[_Block]) -> str | None:
    for before, after in pairwise(seen):
        assert before.last is not None and after.first is not None
        if before.last.shape != after.first.shape or not torch.equal(before.last.cpu(), after.first.cpu()):
            return f"every block must be given what the one before it returned; block {after.index} is not"
    return None


@contextmanager
def _watched(seen: Sequence[_Block]) -> Iterator[None]:
    """Watch the inputs, outputs and inner modules (two levels) of every block."""
    with ExitStack() as stack:
        for block in seen:
            stack.callback(block.module.register_forward_pre_hook(_entering(block), with_kwargs=True).remove)
            for path, module in block.module.named_modules():
                if path and path.count(".") <= 1 and not isinstance(module, nn.ModuleList):
                    block.outputs[path] = output = Output(path, module)
                    stack.callback(module.register_forward_hook(_returning(block, output)).remove)
            stack.callback(block.module.register_forward_hook(_leaving(block)).remove)
        yield


def _entering(block: _Block) -> Any:  # noqa: ANN401
    return lambda module, args, kwargs: block.enter(block_input(args, kwargs))


def _returning(block: _Block, output: Output) -> Any:  # noqa: ANN401
    def hook(module: nn.Module, args: Any, result: Any) -> None:  # noqa: ANN401
        hidden, source = first_tensor(result), first_tensor(args)
        output.runs += 1
        output.order = sum(other.runs for other in block.outputs.values())
        if block.entry is not None and hidden is not None and hidden.numel() == block.entry.numel():
            width = block.entry.shape[-1]
            output.value = hidden.detach().reshape(-1, width).clone()  # a copy: some blocks add in place
            if source is not None and source.numel() == block.entry.numel():
                output.source = source.detach().reshape(-1, width).clone()

    return hook


def _leaving(block: _Block) -> Any:  # noqa: ANN401
    return lambda module, args, output: block.leave(unwrap(output))


@contextmanager
def _confirmed(seen: Sequence[_Block]) -> Iterator[None]:
    """Replace every write by other numbers and check that each block still returns the sum."""
    chance = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        for block in seen:
            if block.reason:
                continue
            given: dict[str, Tensor] = {}
            entry: list[Tensor] = []
            for part in block.parts:
                stack.callback(part.module.register_forward_hook(_replacing(part, given, chance)).remove)
            stack.callback(block.module.register_forward_pre_hook(_remembering(entry), with_kwargs=True).remove)
            stack.callback(block.module.register_forward_hook(_checking(block, entry, given)).remove)
        yield


def _replacing(part: Part, given: dict[str, Tensor], chance: torch.Generator) -> Any:  # noqa: ANN401
    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ANN401
        hidden = first_tensor(output)
        assert hidden is not None
        noise = torch.randn(hidden.shape, generator=chance, dtype=torch.float32).to(hidden)
        other = noise * hidden.float().square().mean().sqrt().to(hidden)
        given[part.path] = other.reshape(-1, other.shape[-1]).clone()
        return with_first(output, other)

    return hook


def _remembering(entry: list[Tensor]) -> Any:  # noqa: ANN401
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        entry[:] = [block_input(args, kwargs).detach().clone()]

    return hook


def _checking(block: _Block, entry: list[Tensor], given: dict[str, Tensor]) -> Any:  # noqa: ANN401
    def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        out = unwrap(output)
        columns = [t.cpu().double().flatten() for t in (entry[0], *(given[part.path] for part in block.parts))]
        factors = [block.carried, *(part.factor for part in block.parts)]
        if not sum_holds(out.detach().cpu().double().flatten(), columns, factors, out.dtype):
            block.reason = "replacing what a module inside it returns does not replace what is added"

    return hook
