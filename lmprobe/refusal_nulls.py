"""Refusal nulls: what the whole search finds where there is nothing to find, with the choice made inside.

Conventions. Every replicate runs the search again: candidates at all positions and blocks, their scores on the select
split, the rule, and then the effect on the test split of the direction it chose. A p is (1 + replicates whose effect is
at least the observed one) / (1 + replicates). A replicate in which nothing can be chosen counts as no effect at all.

permuted     labels are exchanged between prompts in all three splits, refusal tokens and differences are derived anew.
             Exact: where the labels mean nothing, every labelling was as likely as the one that was given.
covariance   each difference in means becomes one random weighted sum of the prompts' states without their class means,
             the same weights everywhere, as long as a difference of means of noise is: directions states vary along. A
             model whose refusal varies in strength varies along its refusal direction, and this control finds it, too.
random       each difference becomes an isotropic direction of the same norm.

What is exchanged: prompts of a unit (near-duplicates, a family) keep together. Units of one label exchange labels among
each other; in units that hold both labels, as a prompt and its twin do, labels change places inside the unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lmprobe.candidates import States, weighted
from lmprobe.refusal_search import Flags, Floats, Found, Ints, Study, odds_on_test, search
from probecore.errors import DesignError
from probecore.seeds import generator
from probecore.stats.permutation import p_value
from probecore.validation import at_least, one_of

NULLS = ("permuted", "covariance", "random")


@dataclass(frozen=True, eq=False)
class Null:
    """Replicates of one null.

    vectors : (M, d) raw directions chosen in them; rows of NaN where none could be. effects : (M,) on the test split.
    observed : the effect of the real search.
    """

    kind: str
    vectors: Floats = field(repr=False)
    effects: Floats = field(repr=False)
    observed: float

    @property
    def p_value(self) -> float:
        """One-sided p of the observed effect."""
        return float(p_value(np.concatenate([[self.observed], self.effects])))


def effect_of(study: Study, found: Found, labels: Flags | None = None) -> tuple[float, Floats, Floats]:
    """Return the effect of a search's direction and the test prompts' scores (prompts,) before and after."""
    before, after = odds_on_test(study, found.vector[None], [found.tokens.ids])
    harmful = study.splits["test"].is_harmful if labels is None else labels
    return float((before[0] - after[0])[harmful].mean()), before[0], after[0]


def null(
    study: Study,
    found: Found,
    kind: str,
    n_replicates: int,
    *,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Null:
    """Return `n_replicates` replicates of a null, (M,); advance : told when one is done."""
    one_of(kind, NULLS, "kind")
    rng = generator(seed, "refusal null", kind)
    vectors = np.full((at_least(n_replicates, 1, "n_replicates"), study.states.shape[-1]), np.nan)
    tokens: list[tuple[int, ...]] = []
    harmful: list[Flags] = []
    for m in range(n_replicates):
        labels = {name: split.is_harmful for name, split in study.splits.items()}
        drawn = None
        if kind == "permuted":
            labels = {name: exchanged(split.is_harmful, split.unit, rng) for name, split in study.splits.items()}
        elif kind == "random":
            drawn = isotropic(found, rng)
        else:
            noise = weighted_noise(study.states, study.splits["extract"].is_harmful, rng)
            drawn = np.where(found.candidates.exists[..., None], noise, 0.0)
        try:
            again = search(study, labels["extract"], labels["select"], vectors=drawn)
            vectors[m] = again.vector
            tokens.append(again.tokens.ids)
        except DesignError:
            tokens.append(found.tokens.ids)
        harmful.append(labels["test"])
        if advance is not None:
            advance(1)
    effects = np.full(n_replicates, -np.inf)
    made = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    if len(made):
        used = np.any(harmful, axis=0)  # all test prompts where labels were exchanged, else the harmful ones
        before, after = odds_on_test(study, vectors[made], [tokens[m] for m in made], used)
        effects[made] = [(b - a)[harmful[m][used]].mean() for m, b, a in zip(made, before, after, strict=True)]
    least = float(np.finfo(float).min)  # a finite stand-in for "no effect at all", smaller than any effect
    return Null(kind, vectors, np.where(np.isfinite(effects), effects, least), effect_of(study, found)[0])


def exchanged(labels: Flags, units: Ints, rng: np.random.Generator) -> Flags:
    """Return labels (prompts,) after a random exchange: among units of one label, and inside units of both."""
    out = labels.copy()
    members = [np.flatnonzero(units == u) for u in np.unique(units)]
    pure = [m for m in members if labels[m].all() or not labels[m].any()]
    for m, label in zip(pure, rng.permutation([bool(labels[m[0]]) for m in pure]), strict=True):
        out[m] = label
    for m in members:
        if labels[m].any() and not labels[m].all():
            out[m] = rng.permutation(labels[m])
    return out


def isotropic(found: Found, rng: np.random.Generator) -> Floats:
    """Return random vectors (P, L, d) of the same norms as the differences in means."""
    shape = found.candidates.vectors.shape
    drawn = rng.standard_normal(shape)
    drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
    return np.asarray(drawn * np.where(found.candidates.exists, found.candidates.norms, 0.0)[..., None])


def weighted_noise(states: States, is_harmful: Flags, rng: np.random.Generator) -> Floats:
    """Return one random weighted sum (P, L, d) of states (prompts, P, L, d) without their class means.

    Its covariance is S_h / n_h + S_b / n_b, that of the noise of a difference of means.
    """
    weights = rng.standard_normal(len(is_harmful))
    for kind in (is_harmful, ~is_harmful):
        n = int(kind.sum())
        weights[kind] -= weights[kind].mean()  # takes the class mean out
        weights[kind] /= np.sqrt(n * max(n - 1, 1))
    return np.asarray(weighted(states, weights[None])[0])
