"""Writers: every tensor that writes into the residual stream, so that an edit of weights can reach all of them.

Conventions. A writer is a parameter with one axis of the stream's width d; every vector along that axis is something
the model can add to the stream. There are the token table and learned position tables (rows), the output projection of
each attention, state-space or convolution layer, of each MLP and of every expert, and their biases.

How they are found. What each block adds is measured (`lmprobe.sublayers`), and so is what enters block 0: a sum of
tables. Inside a sub-layer the output projections are found by what they return (`lmprobe.output_projections`). What
cannot be reached is listed with the reason. An edit is confirmed afterwards by the leak audit and by the hook it must
equal (`lmprobe.weight_edits`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmprobe.interventions import Replace, intervened, sublayers_of
from lmprobe.models import LanguageModel
from lmprobe.output_projections import Layout, Trace, projections_of, traced
from lmprobe.probe_pass import probe_forward
from lmprobe.sublayers import Part

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Writer:
    """One parameter that writes into the residual stream.

    site : "embed", "attention i" or "mlp i" (or "other i"). axis : the axis of the stream's width, from the end.
    gain : (d,) float64, the gain of the norm that stands between this tensor and the stream, None where none does.
    scale : number by which a row of the token table is multiplied before it enters block 0 (Gemma's embedding scale).
    """

    name: str
    module: nn.Module = field(repr=False)
    attribute: str = field(repr=False)
    site: str
    block: int | None
    layout: Layout
    axis: int
    gain: Tensor | None = field(default=None, repr=False)
    scale: float = 1.0

    @property
    def parameter(self) -> nn.Parameter:
        """The tensor itself."""
        found: nn.Parameter = getattr(self.module, self.attribute)
        return found


@dataclass(frozen=True)
class Gap:
    """Something that writes into the stream, or changes it, and that an edit of weights cannot reach."""

    site: str
    reason: str


@dataclass(frozen=True, eq=False)
class Writers:
    """The writers of one model.

    gaps : what could not be covered, each with its reason. tied : the output head shares the token table. norms : by
    site the modules whose output a norm is given there. read_elsewhere : what the tables give is also read elsewhere
    than in the stream (Gemma 4's inputs of each layer), so that an edit of a table does more than a hook on the stream.
    """

    writers: tuple[Writer, ...]
    gaps: tuple[Gap, ...]
    tied: bool
    norms: Mapping[str, tuple[nn.Module, ...]]
    read_elsewhere: bool

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that are covered, in the order of the forward pass."""
        return tuple(dict.fromkeys(writer.site for writer in self.writers))


def find_writers(lm: LanguageModel) -> Writers:
    """Return every tensor that writes into the residual stream; three forward passes of a short probe.

    Raises `CertificateError` when the blocks do not run.
    """
    known = sublayers_of(lm)
    trace = traced(lm)
    names = {id(module): path for path, module in lm.model.named_modules()}
    writers: list[Writer] = []
    gaps = [Gap(f"block {i}", reason) for i, reason in known.reasons.items()]
    if known.between is not None:
        gaps.append(Gap("between blocks", known.between))
    norms: dict[str, tuple[nn.Module, ...]] = {}
    tables = _tables(lm, trace, names)
    parts = ((i, part) for i, of_block in enumerate(known.parts) for part in of_block)
    for found in (tables, *(_of_part(lm, trace, names, i, part) for i, part in parts)):
        writers += found.writers
        gaps += found.gaps
        for site, module in found.normed:
            norms[site] = (*norms.get(site, ()), module)
    distinct = {id(writer.parameter): writer for writer in reversed(writers)}  # blocks may share their weights
    kept = [writer for writer in writers if distinct[id(writer.parameter)] is writer]
    gaps += [Gap(w.site, reason) for w in kept if (reason := _unusable(w, lm.certificate.width)) is not None]
    elsewhere = _read_elsewhere(lm, trace, [writer.module for writer in tables.writers])
    return Writers(tuple(kept), tuple(gaps), _tied(lm), norms, elsewhere)


@dataclass
class _Found:
    writers: list[Writer] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    normed: list[tuple[str, nn.Module]] = field(default_factory=list)


def _tables(lm: LanguageModel, trace: Trace, names: dict[int, str]) -> _Found:
    """Return the tables whose sum enters block 0: tokens, learned positions."""
    inside = {id(module) for block in lm.sites.blocks for module in block.modules()}
    tables = [
        module
        for module in lm.model.modules()
        if isinstance(module, nn.Embedding) and id(module) in trace.outputs and id(module) not in inside
    ]
    assert trace.entry is not None
    columns = [_broadcast(trace.outputs[id(table)], trace.entry) for table in tables]
    if not tables or any(column is None for column in columns):
        return _Found(gaps=[Gap("embed", "what enters block 0 does not come from tables of the stream's width")])
    design = torch.stack([column.flatten() for column in columns if column is not None], dim=1)
    scales = torch.linalg.lstsq(design, trace.entry.flatten()[:, None]).solution[:, 0]
    rounding = 8 * torch.finfo(lm.dtype).eps * (design.abs() @ scales.abs()).reshape(trace.entry.shape)
    if bool(((design @ scales).reshape(trace.entry.shape) - trace.entry).abs().gt(rounding).any()):
        return _Found(
            gaps=[Gap("embed", "what enters block 0 is no sum of tables: a norm or a projection stands after them")]
        )
    found = _Found()
    for table, scale in zip(tables, scales.tolist(), strict=True):
        if abs(scale) > 1e-6:
            if table is lm.model.get_input_embeddings() and trace.rows is not None:
                given = trace.outputs[id(table)]
                scale *= float((given * trace.rows).sum() / trace.rows.square().sum())
            name = f"{names[id(table)]}.weight"
            found.writers.append(Writer(name, table, "weight", "embed", None, "rows", -1, scale=scale))
    return found


def _broadcast(rows: Tensor, entry: Tensor) -> Tensor | None:
    """Return a table's rows for every token; positions are looked up once for all texts of a batch."""
    if entry.shape[1] != rows.shape[1] or len(entry) % len(rows):
        return None
    return rows.repeat(len(entry) // len(rows), 1)


def _of_part(lm: LanguageModel, trace: Trace, names: dict[int, str], block: int, part: Part) -> _Found:
    """Return the writers behind one part of a block."""
    site = f"{part.kind} {block}"
    root, gain = part.module, None
    if part.norm:
        source = _given_by(lm.sites.blocks[block], part.module, trace)
        gain = _gain(part.module, lm.dtype)
        if source is None or gain is None:
            what = "is given what no module returned" if source is None else "is no gain on u / rms(u)"
            return _Found(gaps=[Gap(site, f"the norm behind it ({type(part.module).__name__}) {what}")])
        root = source
    ends, missing = projections_of(root, trace)
    found = _Found(gaps=[Gap(site, reason) for reason in missing])
    if part.norm:
        found.normed.append((site, root))
    for module, weight, bias, layout, axis in ends:
        name = names[id(module)]
        found.writers.append(Writer(f"{name}.{weight}", module, weight, site, block, layout, axis, gain))
        if bias is not None and isinstance(getattr(module, bias, None), nn.Parameter):
            found.writers.append(Writer(f"{name}.{bias}", module, bias, site, block, "bias", -1, gain))
    return found


def _given_by(block: nn.Module, norm: nn.Module, trace: Trace) -> nn.Module | None:
    """Return the outermost module of a block whose output is what a norm was given."""
    given = trace.inputs.get(id(norm))
    for module in block.modules():
        output = trace.outputs.get(id(module))
        if module not in (block, norm) and given is not None and output is not None and torch.equal(output, given):
            return module
    return None


def _gain(norm: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """Return g of y = g u / rms(u), from the parameter it is made of; None where the norm is something else."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or getattr(norm, "bias", None) is not None:
        return None
    values = weight.detach().cpu().double()
    u = torch.randn(8, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = (3 + u).to(dtype)  # off zero: a norm that takes the mean away gives something else
    with torch.no_grad():
        y = norm(u.to(weight.device)).cpu().double()
    unit = u.double() / u.double().square().mean(dim=1, keepdim=True).sqrt()
    limit = 16 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for gain in (values, 1.0 + values):
        if bool(((y - gain * unit).abs() <= limit * (1 + (gain * unit).abs())).all()):
            return gain
    return None


def _read_elsewhere(lm: LanguageModel, trace: Trace, tables: Sequence[nn.Module]) -> bool:
    """Tell whether logits change when tables return something else while block 0 is given what it was given."""
    if not tables or trace.entry is None:
        return False
    entry = trace.entry.unflatten(0, (2, -1))  # the probe has two texts
    with ExitStack() as stack:
        stack.enter_context(intervened(lm, Replace(entry, at="embed")))
        plain = probe_forward(lm.model, cached=lm.certificate.cached).logits
        for table in tables:
            stack.callback(table.register_forward_hook(_rolled).remove)
        other = probe_forward(lm.model, cached=lm.certificate.cached).logits
    return bool((other - plain).abs().max() > 64 * torch.finfo(lm.dtype).eps * plain.abs().max())


def _rolled(module: nn.Module, args: Any, output: Tensor) -> Tensor:  # noqa: ANN401
    return output.roll(1, dims=-1)


def _unusable(writer: Writer, width: int) -> str | None:
    """Say why a tensor cannot be edited, None where it can."""
    parameter = writer.parameter
    if parameter.is_meta:
        return "its weights are not in memory: load the model without offloading"
    if parameter.dtype not in FLOATS or type(parameter.data) is not Tensor:
        return f"its weights are quantised ({parameter.dtype}): load the model in float32 or bfloat16"
    if parameter.shape[writer.axis] != width:
        return f"{writer.name} has {parameter.shape[writer.axis]} numbers where its layout has the width {width}"
    return None


def _tied(lm: LanguageModel) -> bool:
    head, table = lm.model.get_output_embeddings(), lm.model.get_input_embeddings()
    weight = getattr(head, "weight", None)
    return weight is not None and weight.data_ptr() == table.weight.data_ptr()
