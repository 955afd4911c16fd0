"""Output projections: the tensors inside a sub-layer whose vectors it adds to the residual stream.

Conventions. The output projection of a sub-layer is the linear layer inside it whose output points where the
sub-layer's output points, token by token (a scale or a gate may stand between); in a mixture of experts it is that of
every expert, the same place in experts of one class, and the fused tensor of all experts. The axis of the stream's
width is decided by the class of the module and what it says of itself, never by a shape: square matrices look alike
both ways. What was seen in one pass of a probe is a `Trace`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from lmprobe.models import LanguageModel
from lmprobe.probe_pass import probe_forward
from lmprobe.sites import rows_of
from lmprobe.sublayers import first_tensor
from lmprobe.taps import block_input

IN_OUT = ("GptOssExperts", "Llama4TextExperts", "Qwen3VLMoeTextExperts", "DbrxExpertGLU", "AriaGroupedExpertsGemm")
"""Classes that hold experts as [.., in, out] and do not say so themselves; all others hold [.., out, in]."""
SAYS_SO = ("is_transposed", "experts_are_transposed")
FUSED = (("down_proj", "down_proj_bias"), ("weight", "bias"), ("w2", None))
"""Names under which one parameter holds the output projections of all experts, and their biases."""

Layout = Literal[
    "Linear [out, in]", "Conv1D [in, out]", "experts [.., out, in]", "experts [.., in, out]", "rows", "bias"
]

ALONG = 1e-4  # 1 - |cosine| of two vectors that point the same way; bfloat16 rounds a vector by less


class End(NamedTuple):
    """One output projection: its module, the names of its weight and bias there, and the axis of the width."""

    module: nn.Module
    weight: str
    bias: str | None
    layout: Layout
    axis: int


@dataclass
class Trace:
    """What modules returned (rows, width) and norms were given in one pass, and the input of block 0.

    rows : (rows, width) of the token table as it is stored; some tables multiply what they return.
    """

    outputs: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    order: dict[int, int] = field(default_factory=dict)
    entry: Tensor | None = None
    rows: Tensor | None = None


def traced(lm: LanguageModel) -> Trace:
    """Run the probe and keep what every module of the blocks and every table returned, as copies."""
    trace, width = Trace(), lm.certificate.width

    def returned(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        hidden, source = first_tensor(output), first_tensor(args)
        if hidden is not None and hidden.is_floating_point() and hidden.ndim and hidden.shape[-1] == width:
            trace.outputs[id(module)] = hidden.detach().reshape(-1, width).cpu().double()
            trace.order[id(module)] = len(trace.order)
            if module is tokens and isinstance(args[0], Tensor):
                trace.rows = table.detach()[args[0]].reshape(-1, width).cpu().double()
            if "norm" in type(module).__name__.lower() and source is not None and source.shape == hidden.shape:
                trace.inputs[id(module)] = source.detach().reshape(-1, width).cpu().double()

    def entered(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        trace.entry = rows_of(block_input(args, kwargs)).detach().flatten(0, 1).cpu().double()

    model: Any = lm.model
    tokens: nn.Module = model.get_input_embeddings()
    table: Tensor = model.get_input_embeddings().weight
    inside = {id(module) for block in lm.sites.blocks for module in block.modules()}
    with ExitStack() as stack:
        stack.callback(lm.sites.blocks[0].register_forward_pre_hook(entered, with_kwargs=True).remove)
        for module in lm.model.modules():
            if id(module) in inside or isinstance(module, nn.Embedding):
                stack.callback(module.register_forward_hook(returned).remove)
        probe_forward(lm.model, cached=lm.certificate.cached)
    return trace


def projections_of(root: nn.Module, trace: Trace) -> tuple[list[End], list[str]]:
    """Return the output projections of a sub-layer, and why parts of it have none."""
    if (end := _linear(root)) is not None:
        return [end], []
    if (end := _last_along(root, trace)) is not None:
        return [end], []
    if (end := _fused(root)) is not None:
        return [end], []
    return _summed(root, trace)


def _last_along(root: nn.Module, trace: Trace) -> End | None:
    """Return the linear layer inside a module whose output points where the module's does; the last of several.

    One of a list of modules is left out: where a probe reached one expert only, the sum would be that expert's.
    """
    listed = {
        id(inner)
        for stack in root.modules()
        if isinstance(stack, nn.ModuleList) and len(stack) > 1
        for inner in stack.modules()
    }
    along = [
        module
        for module in root.modules()
        if id(module) not in listed
        and _linear(module) is not None
        and _parallel(trace.outputs.get(id(module)), trace.outputs.get(id(root)))
    ]
    return _linear(max(along, key=lambda module: trace.order[id(module)])) if along else None


def _summed(root: nn.Module, trace: Trace) -> tuple[list[End], list[str]]:
    """Return the output projections of everything that a mixture of experts sums."""
    ends: list[End] = []
    missing: list[str] = []
    stacks = [child for child in root.children() if type(child).__name__.endswith("ParallelExperts")]
    last = max(stacks, key=lambda module: trace.order.get(id(module), -1), default=None)
    for child in root.children():
        found: list[End] = []
        why: list[str] = []
        if child in stacks:
            found = [end] if child is last and (end := _fused(child)) is not None else []
        elif isinstance(child, nn.ModuleList):
            found, why = _siblings(child, trace)
        elif (end := _fused(child)) is not None:
            found = [end]
        elif id(child) in trace.outputs and any(True for _ in child.children()):
            found, why = projections_of(child, trace)
        ends, missing = ends + found, missing + why
    if not ends and not missing:
        missing = [f"no output projection was found in it ({type(root).__name__})"]
    return ends, missing


def _siblings(experts: nn.ModuleList, trace: Trace) -> tuple[list[End], list[str]]:
    """Return the output projection of every expert; one that no token of the probe reached is like its siblings."""
    places: dict[type[nn.Module], str] = {}
    for expert in experts:
        if id(expert) in trace.outputs:
            found, _ = projections_of(expert, trace)
            inner = {id(module): path for path, module in expert.named_modules()}
            if len(found) == 1:
                places.setdefault(type(expert), inner[id(found[0].module)])
    ends: list[End] = []
    missing: list[str] = []
    for j, expert in enumerate(experts):
        end = _linear(expert.get_submodule(places[type(expert)])) if type(expert) in places else None
        if end is None:
            missing.append(f"no output projection was found in expert {j} ({type(expert).__name__})")
        else:
            ends.append(end)
    return ends, missing


def _linear(module: nn.Module) -> End | None:
    """Return a linear layer as an end, None for anything else."""
    if isinstance(module, nn.Linear):
        return End(module, "weight", "bias", "Linear [out, in]", -2)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return End(module, "weight", "bias", "Conv1D [in, out]", -1)
    return None


def _fused(module: nn.Module) -> End | None:
    """Return the tensor that holds the output projections of all experts, None where there is none."""
    for weight, bias in FUSED:
        parameter = getattr(module, weight, None)
        if not isinstance(parameter, nn.Parameter) or (parameter.ndim != 3 and type(module).__name__ not in IN_OUT):
            continue
        said = [bool(getattr(module, name)) for name in SAYS_SO if hasattr(module, name)]
        if said[0] if said else type(module).__name__ in IN_OUT:
            return End(module, weight, bias, "experts [.., in, out]", -1)
        return End(module, weight, bias, "experts [.., out, in]", -2)
    return None


def _parallel(a: Tensor | None, b: Tensor | None) -> bool:
    """Tell whether every row of `a` points where that row of `b` points: scales and gates may differ by token."""
    if a is None or b is None or a.shape != b.shape:
        return False
    norms = a.norm(dim=1) * b.norm(dim=1)
    used = norms > 0
    cosine = ((a * b).sum(dim=1)[used] / norms[used]).abs()
    return bool(used.any()) and bool((1 - cosine < ALONG).all())
