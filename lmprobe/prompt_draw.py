"""A draw of prompts: fewer of a set, for a run that shall cost less."""

import numpy as np

from lmprobe.prompts import Prompts, main_categories
from probecore.validation import at_least


def draw_prompts(prompts: Prompts, n: int, rng: np.random.Generator) -> Prompts:
    """Return at most n prompts of each category, drawn at random and in the order of the set.

    Where the main categories are paired (every family holds one of each), n whole pairs of them are drawn. Raises
    `InputError` for n below 1.
    """
    at_least(n, 1, "limit")
    categories, families = np.asarray(prompts.categories), np.asarray(prompts.families)
    names = list(prompts.counts)
    kept: list[int] = []
    if len(names) > 1:
        main = main_categories(prompts)
        inside = np.isin(categories, main)
        if prompts.is_paired(*main):
            known = np.array(list(dict.fromkeys(families[inside].tolist())))
            kept += np.flatnonzero(inside & np.isin(families, rng.permutation(known)[:n])).tolist()
            names = [name for name in names if name not in main]
        else:
            names = [*main, *(name for name in names if name not in main)]
    for name in names:
        kept += rng.permutation(np.flatnonzero(categories == name))[:n].tolist()
    return prompts.take(sorted(kept))
