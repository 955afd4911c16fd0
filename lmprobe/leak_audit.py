"""Leak audit: what is left of a subspace in the residual stream when random tokens run through a model.

Conventions. leak = max over tokens of ||Q^T x|| / rms(x), x the stream of a token at one layer (embed, block 0 .. block
L-1), rms over its features: what the next norm sees, so that a token of massive activations hides nothing of others.
For what a sub-layer adds, rms is that of the token's write before the edit, at least that of all tokens together.
A model of which every writer was edited leaves rounding only; a forgotten expert, bias or position table leaves 0.1 or
more. The audit does not see the output head: an edited head is found by comparing its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmprobe.inputs import forward_arguments
from lmprobe.interventions import Read, intervened
from lmprobe.models import LanguageModel
from lmprobe.taps import tapped
from lmprobe.vectors import Vectors, orthonormal, vector
from probecore.seeds import generator

LEAK_LIMITS = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest leak of one direction that is rounding, of k directions sqrt(k) times that.

A norm computes in float32 also inside a float64 model.
"""
NOTHING = 1e-3  # a state below this share of the size of all is measured against that: a pad's row may be zero
KL_LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""Largest mean KL in nats between an edit of weights and the hook it must equal that is rounding."""


@dataclass(frozen=True)
class LeakAudit:
    """Leaks by layer and by write, and the limit under which they are rounding.

    stream : layer -> leak. writes : site -> leak. limit : by dtype.
    """

    stream: Mapping[str, float]
    writes: Mapping[str, float]
    limit: float
    tokens: int

    @property
    def leak(self) -> float:
        """Largest leak of the stream."""
        return max(self.stream.values())

    @property
    def worst(self) -> str:
        """Layer of the largest leak of the stream."""
        return max(self.stream, key=lambda layer: self.stream[layer])

    @property
    def passed(self) -> bool:
        """Whether nothing but rounding is left in the stream."""
        return self.leak < self.limit


@dataclass(frozen=True, eq=False)
class Passage:
    """One run of the audit's tokens: components along Q and sizes at every layer and write, and the logits.

    components : place -> (tokens, k) float64; sizes : place -> (tokens,) rms over features. logits : (batch, time,
    vocabulary) float64.
    """

    components: Mapping[str, Tensor] = field(repr=False)
    sizes: Mapping[str, Tensor] = field(repr=False)
    logits: Tensor = field(repr=False)


def leak_audit(
    lm: LanguageModel,
    basis: Vectors,
    *,
    center: Vectors | None = None,
    writes: Iterable[str] = (),
    texts: int = 4,
    length: int = 32,
    seed: int = 0,
) -> LeakAudit:
    """Return the leak of a subspace (d,) or (d, k) at every layer on random tokens, and at the writes asked for.

    center : (d,), for the affine form the component of the centre that is meant to stay. Interventions that are
    installed are part of what is audited.
    """
    sites = tuple(writes)
    seen = passage(lm, orthonormal(basis), audit_tokens(lm, texts, length, seed), sites)
    return audit_of(lm, seen, seen, sites, orthonormal(basis), center)


def audit_tokens(lm: LanguageModel, texts: int = 4, length: int = 32, seed: int = 0) -> Tensor:
    """Return random token ids (texts, length), no longer than the model's context."""
    longest = length if lm.context is None else min(length, lm.context)
    return torch.from_numpy(generator(seed, "leak audit").integers(0, lm.vocabulary, (texts, longest)))


def passage(lm: LanguageModel, frame: Tensor, ids: Tensor, writes: Iterable[str] = ()) -> Passage:
    """Run tokens through a model and keep components along the columns of `frame` (d, k) float64."""
    components: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}

    def keep(place: str, hidden: Tensor) -> None:
        states = hidden.detach().flatten(0, -2).cpu().double()
        components[place] = states @ frame
        sizes[place] = states.square().mean(dim=1).sqrt()

    sites = tuple(writes)
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(intervened(lm, *([Read(keep, sites)] if sites else [])))
        stack.enter_context(tapped(lm.sites, lm.layers, lambda slot, hidden: keep(lm.layers[slot], hidden)))
        arguments = forward_arguments(lm.model, ids, torch.ones_like(ids), use_cache=lm.certificate.cached)
        logits = lm.model(**arguments).logits.cpu().double()
    return Passage(components, sizes, logits)


def audit_of(
    lm: LanguageModel,
    after: Passage,
    before: Passage,
    writes: Iterable[str],
    frame: Tensor,
    center: Vectors | None = None,
) -> LeakAudit:
    """Return the leaks of a run, writes measured in the size they had in the run `before`."""
    stays = torch.zeros(frame.shape[1], dtype=torch.float64)
    if center is not None:
        stays = vector(center, "center") @ frame

    def leak(left: Tensor, sizes: Tensor, least: float) -> float:
        whole = float(sizes.square().mean().sqrt())
        return float((left.norm(dim=1) / sizes.clamp(min=max(least * whole, 1e-300))).max()) if left.shape[1] else 0.0

    return LeakAudit(
        stream={place: leak(after.components[place] - stays, after.sizes[place], NOTHING) for place in lm.layers},
        writes={site: leak(after.components[site], before.sizes[site], 1.0) for site in writes},
        limit=LEAK_LIMITS[lm.dtype] * max(1, frame.shape[1]) ** 0.5,
        tokens=len(after.components[lm.layers[0]]),
    )


def logit_gap(reference: Tensor, other: Tensor) -> tuple[float, float]:
    """Return max |difference| / sd of the reference's logits, and the mean KL(reference || other) in nats per token."""
    gap = float((reference - other).abs().max() / reference.std())
    p, q = torch.log_softmax(reference, -1), torch.log_softmax(other, -1)
    return gap, max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))
