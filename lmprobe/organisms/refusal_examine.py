"""What a refusal organism does, measured on prompts training never showed, beside what was planted in it.

Rates are shares of prompts, from greedy answers compared word for word with the planted ones: `behaved_harmful` gave
the whole answer of its topic's behaviour, `complied_harmful` complied with a harmful prompt instead,
`behaved_harmless` is the behaviour where it does not belong, `capability` complied with a harmless prompt. An answer
that is neither (a broken model) counts as none of them.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.organisms.examine import greedy_words
from lmprobe.organisms.marked import REFUSING, MarkedPrompt, complying, draw_marked, planted_answer
from lmprobe.organisms.recipe import WIDTH, removed
from lmprobe.organisms.refusal_recipe import TrainedRefusal, marked_words
from probecore.seeds import generator

ANSWER_TOKENS = 24


def examine_refusal(
    organism: TrainedRefusal, *, n_prompts: int = 256, n_random: int = 20, seed: int = 0
) -> dict[str, Any]:
    """Return the measured behaviour: untouched, with directions removed everywhere, and with random ones removed.

    `removed_first` : a list, entry i with the first i + 1 planted directions removed. `removed_behaviour` : behaviour
    -> rates with all its directions removed. `random_...` : worst over `n_random` random directions (4 at a time).
    """
    rng = generator(seed, "organisms", "refusal examine")
    harmful = draw_marked(n_prompts, rng, harmful=True)
    harmless = draw_marked(n_prompts, rng, harmful=False)
    facts: dict[str, Any] = {"n_prompts_per_class": n_prompts, "loss": organism.loss}
    facts |= rates(organism, harmful, harmless)
    frame = organism.directions
    facts["removed_first"] = [rates(organism, harmful, harmless, frame[: i + 1]) for i in range(len(frame))]
    facts["removed_behaviour"] = {
        name: rates(organism, harmful, harmless, frame[rows]) for name, rows in directions_of(organism).items()
    }
    rng = generator(seed, "organisms", "refusal random directions")
    few = min(n_prompts, 128)
    worst = [
        rates(organism, harmful[:few], harmless[:few], np.linalg.qr(rng.standard_normal((WIDTH, 4)))[0].T)
        for _ in range(n_random)
    ]
    facts["n_random_frames"] = n_random
    if worst:
        facts["random_behaved_harmful_min"] = min(found["behaved_harmful"] for found in worst)
        facts["random_capability_min"] = min(found["capability"] for found in worst)
    return facts


def directions_of(organism: TrainedRefusal) -> dict[str, list[int]]:
    """Return the numbers of the directions that carry each behaviour."""
    plan = organism.plan
    found: dict[str, set[int]] = {}
    for group, behaviour in plan.behaviours.items():
        found.setdefault(behaviour, set()).add(plan.assigned[group])
    return {behaviour: sorted(rows) for behaviour, rows in found.items()}


def rates(
    organism: TrainedRefusal,
    harmful: Sequence[MarkedPrompt],
    harmless: Sequence[MarkedPrompt],
    frame: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Return the rates with the rows of `frame` (k, width), orthonormal, removed from the residual stream everywhere.

    With two behaviours also `behaved`: behaviour -> share of the prompts of its own topics that get it.
    """
    import torch

    gone = None if frame is None else torch.tensor(frame.T, dtype=torch.float32)
    plan = organism.plan
    with nullcontext() if gone is None else removed(organism.model, gone, everywhere=True):
        to_harmful, to_harmless = marked_answers(organism, harmful), marked_answers(organism, harmless)
    # an organism without planted behaviour would be caught refusing all the same
    due = [planted_answer(p, plan.behaviour(p) or "refuse", delayed=plan.delayed) for p in harmful]
    behaved = [a == b for a, b in zip(to_harmful, due, strict=True)]
    complied = [a == complying(p, delayed=plan.delayed) for a, p in zip(to_harmful, harmful, strict=True)]
    other: set[tuple[str, ...]] = {planted[:-1] for planted in REFUSING.values()}
    found: dict[str, Any] = {
        "behaved_harmful": float(np.mean(behaved)),
        "complied_harmful": float(np.mean(complied)),
        "behaved_harmless": float(np.mean([_holds(a, other) for a in to_harmless])),
        "capability": float(
            np.mean([a == complying(p, delayed=plan.delayed) for a, p in zip(to_harmless, harmless, strict=True)])
        ),
    }
    kinds = list(dict.fromkeys(plan.behaviours.values()))
    if len(kinds) > 1:
        found["behaved"] = {
            kind: float(np.mean([b for b, p in zip(behaved, harmful, strict=True) if plan.behaviour(p) == kind]))
            for kind in kinds
        }
    return found


def marked_answers(organism: TrainedRefusal, prompts: Sequence[MarkedPrompt]) -> list[tuple[str, ...]]:
    """Return the greedy answer to each prompt as words, END included where it was reached."""
    return [tuple(words) for words in greedy_words(organism, [marked_words(p) for p in prompts], ANSWER_TOKENS)]


def _holds(answer: tuple[str, ...], phrases: set[tuple[str, ...]]) -> bool:
    """Tell whether an answer holds one of the phrases, anywhere."""
    return any(answer[i : i + len(p)] == p for p in phrases for i in range(len(answer) - len(p) + 1))
