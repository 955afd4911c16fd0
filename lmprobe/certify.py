"""Certify: run a short probe and a padded pair through a model and measure what its certificate states.

Conventions. Residual tensors are in the model's own layout (batch, time, width), or (copies, batch, time, width) where
it carries several copies. What counts as the same up to rounding is in `lmprobe.rounding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmprobe.certificate import Certificate, Check
from lmprobe.encoders import is_encoder
from lmprobe.inputs import accepts, forward_arguments, pad
from lmprobe.probe_pass import LONG, SHORT, probe_rows
from lmprobe.readout import tail_replay
from lmprobe.rounding import eps_of, gap_of, is_quantised, is_rounding, scale_of, worst_gap
from lmprobe.sites import Sites, residual_of, rows_of, unwrap
from lmprobe.taps import tapped
from probecore.errors import CertificateError


def certify(model: nn.Module, sites: Sites, pad_id: int = 0) -> Certificate:
    """Run the checks; a check that cannot be made says so, a model that cannot run at all raises.

    Raises `CertificateError` when a forward pass of the probe fails.
    """
    rows = probe_rows(model)
    try:
        return _certify(model, sites, rows, pad_id)
    except (RuntimeError, IndexError, KeyError, AttributeError, TypeError, ValueError) as error:
        text = str(error).splitlines()[0] if str(error) else ""
        raise CertificateError(
            f"a {type(model).__name__} must run a forward pass of {LONG} tokens; it raised {type(error).__name__}: "
            f"{text[:200]}: load it with other settings (dtype, device), or name its blocks with blocks="
        ) from error


def _certify(model: nn.Module, sites: Sites, rows: Sequence[Sequence[int]], pad_id: int) -> Certificate:
    probe = pad(rows[1:], pad_id, "right")
    encoder = is_encoder(model)
    cache, cached = (_skipped("cache"), False) if encoder else _check_cache(model, sites, probe)
    seen = _one_forward(model, sites, *probe, cached=cached)
    _require_numbers(seen)
    residual = seen.outputs[-1]
    paddings, noise = _check_padding(model, sites, rows, pad_id, cached)
    config: Any = model.config
    return Certificate(
        checks=(
            *_check_hidden_states(sites, seen),
            _skipped("read-out") if encoder else _check_read_out(model, sites, seen, cached),
            _skipped("causal") if encoder else _check_causal(model, sites, rows[1], cached),
            cache,
            *paddings,
        ),
        blocks_path=sites.blocks_path,
        norm_path=sites.norm_path,
        n_blocks=len(sites.blocks),
        width=rows_of(residual).shape[-1],
        copies=_copies(residual),
        returns=tuple(seen.returns),
        convention=_convention(sites, seen),
        cached=cached,
        noise=noise,
        facts={
            "attention": getattr(config, "_attn_implementation", None),
            "dtype": str(residual.dtype).removeprefix("torch."),
            "device": residual.device.type,
            "attention_mask": accepts(model, "attention_mask"),
            "position_ids": accepts(model, "position_ids") and not encoder,
            "encoder": encoder,
            "quantised": is_quantised(model),
        },
    )


@dataclass
class _Seen:
    """One forward pass: block input, raw block outputs, tuple lengths, transformers' hidden states, logits."""

    entry: Tensor
    outputs: list[Tensor]
    returns: list[int]
    states: tuple[Tensor, ...] | None
    logits: Tensor | None
    bare: Tensor | None
    """What a model without a head gives back: the last state, after its final norm."""

    @property
    def last(self) -> Tensor:
        """What the final norm of the last block must be: of some bare encoders, hidden_states end before it."""
        assert self.states is not None
        return self.states[-1] if self.bare is None else self.bare


def _one_forward(model: nn.Module, sites: Sites, ids: Tensor, mask: Tensor, *, cached: bool) -> _Seen:
    outputs: dict[int, Tensor] = {}
    returns: dict[int, int] = {}
    entry: list[Tensor] = []

    def keep(i: int) -> Any:  # noqa: ANN401
        def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
            returns[i] = len(output) if isinstance(output, (tuple, list)) else 0
            outputs[i] = unwrap(output).clone()

        return hook

    handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(sites.blocks)]
    try:
        shown = {"output_hidden_states": True} if accepts(model, "output_hidden_states", passed_on=True) else {}
        arguments = forward_arguments(model, ids, mask, use_cache=cached, **shown)
        with torch.no_grad(), tapped(sites, ("embed",), lambda _, hidden: entry.append(hidden.clone())):
            out = model(**arguments)
    finally:
        for handle in handles:
            handle.remove()
    missing = [i for i in range(len(sites.blocks)) if i not in outputs]
    if missing or not entry:
        raise CertificateError(
            f"every block of {sites.blocks_path} must run once in a forward pass; block {missing[:3]} did not: "
            "name the right block list with blocks="
        )
    n = len(sites.blocks)
    states = getattr(out, "hidden_states", None) or None
    logits = getattr(out, "logits", None)  # a bare encoder has none
    bare = getattr(out, "last_hidden_state", None)
    return _Seen(entry[0], [outputs[i] for i in range(n)], [returns[i] for i in range(n)], states, logits, bare)


def _require_numbers(seen: _Seen) -> None:
    for place, values in [*((f"block {i}", h) for i, h in enumerate(seen.outputs)), ("the logits", seen.logits)]:
        if values is not None and not bool(torch.isfinite(values).all()):
            raise CertificateError(
                f"states and logits of a probe must be finite numbers; those of {place} are not ({values.dtype}): "
                "load the model in float32 or bfloat16, or check its weights"
            )


def _convention(sites: Sites, seen: _Seen) -> str:
    """Say which of the known ways this model's `hidden_states` follow."""
    if seen.states is None:
        return "not given by this model"
    offset = _offset(seen)
    if offset is None:
        return "entries match no block outputs"
    last, raw = seen.states[-1], seen.outputs[-1]
    if torch.equal(last, raw):
        end = "the last entry is the last block's output"
    elif _normed_gap(sites, seen) == 0:
        end = "the last entry is after the final norm"
    else:
        end = f"the last entry {tuple(last.shape)} is neither the last block's output nor its norm"
    start = "entry i+1 is block i" if offset == 1 else "entry i is block i, no embedding entry"
    return f"{start}; {end}"


def _offset(seen: _Seen) -> int | None:
    """Return 1 where entry i+1 is block i, 0 where entry i is block i (state-space models), None otherwise."""
    assert seen.states is not None
    for offset in (1, 0):
        pairs = list(zip(seen.outputs[:-1], seen.states[offset:], strict=False))
        starts = torch.equal(rows_of(seen.entry), rows_of(seen.states[0])) if offset else bool(pairs)
        if starts and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
            return offset
    return None


def _check_hidden_states(sites: Sites, seen: _Seen) -> list[Check]:
    if seen.states is None:
        absent = "transformers gives no hidden_states for this model"
        return [Check("taps", None, note=absent), Check("final norm", None, note=absent)]
    taps = Check("taps", True, 0.0) if _offset(seen) is not None else Check("taps", False, _taps_gap(seen))
    if sites.norm is None:
        return [taps, Check("final norm", None, note="this model has none")]
    gap = _normed_gap(sites, seen)
    if gap is None:
        raw = seen.states[-1].shape == seen.outputs[-1].shape and torch.equal(seen.states[-1], seen.outputs[-1])
        why = "hidden_states end with the last block's own output" if raw else "shapes differ"
        return [taps, Check("final norm", None if raw else False, note=why)]
    return [taps, Check("final norm", is_rounding(gap, seen.last), gap)]


def _taps_gap(seen: _Seen) -> float | None:
    assert seen.states is not None
    gaps = [gap_of(a, b) for a, b in zip(seen.outputs[:-1], seen.states[1:], strict=False) if a.shape == b.shape]
    return max(gaps, default=None)


def _normed_gap(sites: Sites, seen: _Seen) -> float | None:
    """Return the gap between norm(last block) and the last state, None where the two cannot be compared."""
    raw = seen.outputs[-1]
    if sites.norm is None or seen.states is None or raw.ndim != 3:
        return None
    with torch.no_grad():
        normed = sites.norm(raw)
    return gap_of(normed, seen.last) if normed.shape == seen.last.shape else None


def _check_read_out(model: nn.Module, sites: Sites, seen: _Seen, cached: bool) -> Check:
    assert seen.logits is not None
    # through the flattened state and back, because that is what one reads and hands in
    raw = residual_of(rows_of(seen.outputs[-1]), _copies(seen.outputs[-1]))
    try:
        again = tail_replay(model, sites, seen.returns, raw, token=probe_rows(model)[0][0], cached=cached)
    except (RuntimeError, IndexError, KeyError, AttributeError, TypeError, ValueError) as error:
        return Check("read-out", False, note=f"{type(error).__name__}: {str(error)[:80]}")
    if again.shape != seen.logits.shape:
        return Check("read-out", False, note=f"logits {tuple(again.shape)} instead of {tuple(seen.logits.shape)}")
    gap = gap_of(again, seen.logits)
    return Check("read-out", is_rounding(gap, seen.logits), gap)


def _check_cache(model: nn.Module, sites: Sites, probe: tuple[Tensor, Tensor]) -> tuple[Check, bool]:
    """Return the check, and whether single passes need a cache to be what generation computes."""
    without = _states(model, sites, *probe, cached=False)
    try:
        with_cache = _states(model, sites, *probe, cached=True)
    except (RuntimeError, IndexError, KeyError, AttributeError, TypeError, ValueError) as error:
        return Check("cache", None, note=f"{type(error).__name__}: {str(error)[:80]}"), False
    gap, holds = worst_gap(without, with_cache, model)
    note = "" if holds else "blocks share keys and values through the cache; single passes use one"
    return Check("cache", holds, gap, note), not holds


def _check_causal(model: nn.Module, sites: Sites, row: Sequence[int], cached: bool) -> Check:
    """Compare the states of a text's beginning with those of the beginning alone."""
    whole = _states(model, sites, *pad([row], 0, "right"), cached=cached)
    begin = _states(model, sites, *pad([row[:SHORT]], 0, "right"), cached=cached)
    gap, holds = worst_gap(begin, [states[:, :SHORT] for states in whole], model)
    return Check("causal", holds, gap, "" if holds else "earlier states see later tokens")


def _check_padding(
    model: nn.Module, sites: Sites, rows: Sequence[Sequence[int]], pad_id: int, cached: bool
) -> tuple[list[Check], dict[str, float]]:
    """Compare the short probe alone with itself beside the long one, padded on either side."""
    short = len(rows[0])
    alone = _states(model, sites, *pad(rows[:1], pad_id, "right"), cached=cached)
    noise = dict.fromkeys(sites.layers, 0.0)
    checks = []
    sides: tuple[Literal["left", "right"], ...] = ("left", "right")
    for side in sides:
        if side == "left" and is_encoder(model):
            checks.append(_skipped("left padding"))
            continue
        padded = _states(model, sites, *pad(rows, pad_id, side), cached=cached)
        where = slice(0, short) if side == "right" else slice(-short, None)
        inside = [states[:1, where] for states in padded]
        gap, holds = worst_gap(alone, inside, model)
        if holds:
            floors = [max(gap_of(a, b) / scale_of(a), eps_of(a)) for a, b in zip(alone, inside, strict=True)]
            noise = {layer: max(noise[layer], floor) for layer, floor in zip(sites.layers, floors, strict=True)}
        note = "" if holds else "padding changes the states; batches are made of equal lengths"
        checks.append(Check(f"{side} padding", holds, gap, note))
    return checks, noise


def _skipped(name: str) -> Check:
    """Return a check that an encoder has no use for, with the reason."""
    why = "encoders are padded on the right" if name == "left padding" else "an encoder reads the whole text at once"
    return Check(name, None, note=f"not applicable: {why}")


def _states(model: nn.Module, sites: Sites, ids: Tensor, mask: Tensor, *, cached: bool) -> list[Tensor]:
    kept: dict[int, Tensor] = {}
    with torch.no_grad(), tapped(sites, sites.layers, lambda i, hidden: kept.update({i: hidden.clone()}), stop=True):
        model(**forward_arguments(model, ids, mask, use_cache=cached))
    return [kept[i] for i in range(len(sites.layers))]


def _copies(residual: Tensor) -> int:
    return residual.shape[0] if residual.ndim == 4 else 1
