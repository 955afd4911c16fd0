"""Plans: which members every experiment trains, at the log's sizes and at small ones (quick).

Conventions. Full plans have the log's task (p = 97), model (2 layers of width 128), batch, optimiser and step limits;
what the log leaves open is in `Spec`. Quick plans keep the axes and shrink task, model and steps, so that every command
ends in minutes on two cores: what they find holds for small tasks and is not compared with the log's numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lmprobe.grokking.spec import BASES, Spec, grid

INITS = ("normal:0.02", "fan-in", "torch")
OTHER_INIT = INITS[1]
DECAYS = (0.0, 0.01, 0.1, 1.0, 10.0)
FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
SIZES = tuple((layers, width) for layers in (1, 2, 4) for width in (64, 128, 256))
BOTH = ("add", "mul")
POPULATION = (0.1, 0.3, 1.0, 2.0, 3.0)
HEAD = 1.0  # the weight decay of the log's headline model


def base(quick: bool) -> Spec:
    """Return the member around which the sweep turns: addition at weight decay 1."""
    if quick:
        small = Spec(p=43, layers=1, width=64, fraction=0.6, batch=256)
        return replace(small, steps=4000, extra=1000, stuck_after=0, evaluate_every=50)
    return Spec(extra=1000)


def base_of_two(quick: bool) -> Spec:
    """Return the member that learns both operations."""
    if quick:
        return Spec(p=59, ops=BOTH, layers=1, fraction=0.7, steps=6000, stuck_after=0)
    return Spec(ops=BOTH, steps=100_000)


def sweep(quick: bool, seeds: Iterable[int]) -> tuple[Spec, ...]:
    """Return weight decays, fractions, initialisations and sizes around the base, one axis at a time.

    Conditions that meet are one. The log gives no initialisation: what it moves by itself is what a claim about another
    axis may owe to it, so that weight decay 0, .1 and 1 are also compared from another one.
    """
    seeds, start = list(seeds), base(quick)
    decays = (0.0, 0.1, 1.0, 10.0) if quick else DECAYS
    fractions = (0.5, 0.6, 0.7, 0.9) if quick else FRACTIONS
    sizes = ((1, 32), (1, 64), (2, 64)) if quick else SIZES
    found = [*grid(start, weight_decay=decays, seed=seeds), *grid(start, fraction=fractions, seed=seeds)]
    found += grid(start, init=INITS[:2] if quick else INITS, seed=seeds)
    found += grid(replace(start, init=OTHER_INIT), weight_decay=(0.0, 0.1), seed=seeds)
    for layers, width in sizes:
        found += grid(replace(start, layers=layers, width=width), seed=seeds)
    return _once(found)


def multitask(quick: bool, seeds: Iterable[int]) -> tuple[Spec, ...]:
    """Return members that learn addition, multiplication, and both, with everything else alike."""
    start = base_of_two(quick)
    return grid(start, ops=[BOTH, *((op,) for op in BOTH)], seed=list(seeds))


def adversarial(
    quick: bool, seeds: Iterable[int], *, weights: Sequence[float] = (0.0, 0.1), ks: Sequence[int] = (10,)
) -> tuple[Spec, ...]:
    """Return members of both operations with and without the removal-resistant loss, its weight and k as axes.

    Every member trained against removal has a control that is trained against the removal of random directions: what
    both do comes of the added loss, not of what it protects. The loss begins before members grok, as the log's does (at
    10,000 of 60,000 steps; from N(0, .02) ours grok at about 3,000).
    """
    start, seeds = base_of_two(quick), list(seeds)
    start = replace(start, adversarial_after=500 if quick else 1000)
    found: list[Spec] = []
    for weight in weights:
        if weight == 0:
            found += grid(base_of_two(quick), seed=seeds)  # the same members as in `multitask`
        else:
            found += grid(start, adversarial=[weight], adversarial_k=list(ks), adversarial_basis=BASES, seed=seeds)
    return _once(found)


def capacity(quick: bool, seeds: Iterable[int]) -> tuple[Spec, ...]:
    """Return members of both operations by size, the small ones under two initialisations.

    That a small model has not learned says nothing of its capacity unless another start fails too.
    """
    start, seeds = base_of_two(quick), list(seeds)
    if quick:
        found = [*grid(start, seed=seeds), *grid(replace(start, layers=2), seed=seeds)]
        return _once([*found, *grid(replace(start, width=32), init=INITS[:2], seed=seeds)])
    found = [*grid(start, seed=seeds), *grid(replace(start, layers=1), seed=seeds)]
    for width in (64, 48, 32):
        small = replace(start, layers=1, width=width, steps=120_000)
        found += grid(small, init=INITS, seed=seeds)
    return _once(found)


def batch_sizes(quick: bool, seeds: Iterable[int]) -> tuple[Spec, ...]:
    """Return batch sizes at a fixed weight decay, and with a decay in proportion to the batch.

    Fixed steps and fixed samples are two readings of the first kind. In the second kind the decay per sample is the
    same for every batch, so that what is left is the number of steps. All are evaluated after the same number of
    samples (25 steps of the middle batch), so that a grok step is known equally well for each.
    """
    start, seeds = base(quick), list(seeds)
    sizes, middle = ((64, 128, 256, 512), 256) if quick else ((64, 128, 256, 512, 1024), 512)
    samples = start.steps * middle if quick else 20_000 * middle
    found: list[Spec] = []
    for size in sizes:
        for decay in (HEAD, HEAD * size / middle):
            one = replace(start, batch=size, weight_decay=decay, steps=samples // size)
            found += grid(replace(one, evaluate_every=max(1, 25 * middle // size)), seed=seeds)
    return _once(found)


def population(quick: bool, seeds: Iterable[int]) -> tuple[Spec, ...]:
    """Return members of many weight decays, whose geometry and robustness differ: 5 decays, and seeds."""
    start = base(quick)
    return _once(grid(start, weight_decay=POPULATION, seed=list(seeds)))


def _once(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    return tuple({spec.key: spec for spec in specs}.values())
