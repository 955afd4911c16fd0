"""A base and an aligned model as one potential: logits of V_base + strength V_alignment at any strength.

Conventions. With V = -log pi, the aligned model is V_a = V_b + V_alignment (up to a constant of the context), so

    log pi_s(y | x) = (1 - s) log pi_b(y | x) + s log pi_a(y | x) - log Z_s(x)

is the base at s = 0, the aligned model at s = 1, between them an interpolation and beyond them an extrapolation
(decoding-time realignment, Liu et al. 2024, arXiv 2402.02992). Logits may be mixed as they are: a constant of the
context drops out. Both models are given the same token ids, so they must share a vocabulary.

`mixed` works on the running base model: everything that reads its logits inside (generate, score, calls of the model)
reads those of the mixture. At strength 0 and 1 they are the model's own bit for bit. Residual states stay the base's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lmprobe.inputs import accepts
from lmprobe.models import LanguageModel, Prompt, Template
from probecore.errors import InputError


@dataclass(frozen=True, eq=False)
class Pair:
    """A base and an aligned model that share a vocabulary; made by `pair_models`. Both end at the same end tokens."""

    base: LanguageModel
    aligned: LanguageModel

    @property
    def use_cache(self) -> bool:
        """Whether both models can be decoded with a key/value cache side by side."""
        return all(
            lm.certificate.holds("cache")
            and accepts(lm.model, "past_key_values")
            and accepts(lm.model, "attention_mask")
            for lm in (self.base, self.aligned)
        )

    def format_all(self, prompts: Sequence[Prompt], template: Template = "auto", room: int = 0) -> list[list[int]]:
        """Return the token ids both models are given, by the aligned model's tokenizer and chat template."""
        rows = self.aligned.format_all(prompts, None, template, room)
        return self.base.format_all(rows, None, "raw", room)


def pair_models(base: LanguageModel, aligned: LanguageModel) -> Pair:
    """Return a pair; raises `InputError` where token ids do not mean the same in both models."""
    ours, theirs = base.tokenizer.get_vocab(), aligned.tokenizer.get_vocab()
    if ours != theirs:
        differing = sum(1 for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        raise InputError(
            f"a base and an aligned model must share a tokenizer; {base.name} ({len(ours):,} tokens, hash "
            f"{base.info['tokenizer_hash']}) and {aligned.name} ({len(theirs):,}, {aligned.info['tokenizer_hash']}) "
            f"differ in {differing:,} tokens, so there is no common potential: take two checkpoints of one lineage"
        )
    widths = [int(lm.model.get_output_embeddings().weight.shape[0]) for lm in (base, aligned)]
    if widths[0] != widths[1]:
        raise InputError(
            f"a base and an aligned model must give as many logits; {base.name} gives {widths[0]:,}, {aligned.name} "
            f"{widths[1]:,}: resize the token embeddings of one of them"
        )
    stops = tuple(sorted({*base.stop_ids, *aligned.stop_ids}))
    return Pair(_together(base, aligned, stops), _together(aligned, base, stops))


def _together(lm: LanguageModel, other: LanguageModel, stops: tuple[int, ...]) -> LanguageModel:
    """Return a model that is padded on the left only where the other may be as well: a batch is given to both."""
    theirs = other.certificate.check("left padding")
    certificate = lm.certificate
    if theirs.holds is not True:
        checks = tuple(theirs if check.name == "left padding" else check for check in certificate.checks)
        certificate = replace(certificate, checks=checks)
    return replace(lm, stop_ids=stops, certificate=certificate)


def mix_logits(base: Tensor, aligned: Tensor, strength: float) -> Tensor:
    """Return (1 - s) base + s aligned in float32 or better; the model's own logits at s = 0 and 1."""
    if strength == 0:
        return base
    if strength == 1:
        return aligned.to(base.device)
    one, other = (x if x.dtype == torch.float64 else x.float() for x in (base, aligned.to(base.device)))
    return (1 - strength) * one + strength * other


@contextmanager
def mixed(pair: Pair, strength: float) -> Iterator[LanguageModel]:
    """Make the base model give the logits of the mixture while the context is open; yields it.

    The aligned model is run on the same inputs, with a cache of its own. Open it around `generate` and `score`; a pair
    without a common kind of cache (`Pair.use_cache` false) must be decoded with use_cache=False.
    """
    hook = pair.base.model.register_forward_hook(_Mixer(pair, strength), with_kwargs=True)
    try:
        yield pair.base
    finally:
        hook.remove()


class _Mixer:
    """The hook of `mixed`: a pass over a whole text starts the aligned model's cache, a longer mask continues it."""

    def __init__(self, pair: Pair, strength: float) -> None:
        self.pair, self.strength = pair, strength
        self.cache: Any = None

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ANN401
        """Replace the logits of a forward pass."""
        if self.strength == 0:
            return output
        arguments = dict(kwargs)
        if args:
            arguments["input_ids"] = args[0]
        mask, ids = arguments.get("attention_mask"), arguments["input_ids"]
        whole = mask is None or mask.shape[-1] == ids.shape[1]
        model = self.pair.aligned.model
        arguments = {name: value for name, value in arguments.items() if accepts(model, name)}
        for name in ("past_key_values", "cache_position", "cache_params"):
            arguments.pop(name, None)
        device = self.pair.aligned.device
        arguments = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in arguments.items()}
        if not whole:
            arguments["past_key_values"] = self.cache
        with torch.no_grad():
            theirs = model(**arguments, return_dict=True) if "return_dict" not in arguments else model(**arguments)
        self.cache = getattr(theirs, "past_key_values", None) if arguments.get("use_cache") else None
        output.logits = mix_logits(output.logits, theirs.logits, self.strength)
        return output
