"""Prompts matched in length: pairs of a first and a second category that have nearly the same number of tokens.

Conventions. lengths (prompts, models): tokens of each prompt under each model's tokenizer; the distance of two prompts
is the largest difference over the models. Where families hold both categories, a pair is drawn inside a family, so that
the topic is matched as well. The matching is optimal: it finds as many pairs within the limit as there are, and of
these the closest (Rosenbaum 1989). Prompts of other categories stay. The standardised difference of mean lengths is
that before matching in both rows of the balance: (mean first - mean second) / sqrt((var first + var second) / 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmprobe.prompts import Prompts
from probecore.errors import DesignError
from probecore.results import Row
from probecore.validation import at_least, codes_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Matching:
    """Matched prompts and the balance of their lengths: a row before and one after, for every model."""

    prompts: Prompts
    balance: tuple[Row, ...] = field(repr=False)
    n_pairs: int
    inside_families: bool


def match_lengths(
    prompts: Prompts, first: str, second: str, lengths: ArrayLike, most: int, names: Sequence[str] = ()
) -> Matching:
    """Match prompts of two categories whose lengths differ by at most `most` tokens.

    lengths : (prompts,) or (prompts, models). names : of the models. Raises `DesignError` for fewer than 3 pairs.
    """
    from scipy.optimize import linear_sum_assignment

    at_least(most, 0, "most")
    tokens = np.asarray(lengths, dtype=np.float64).reshape(len(prompts), -1)
    families, categories = codes_of(prompts.families)[0], np.asarray(prompts.categories)
    groups = [np.flatnonzero(categories == name) for name in (first, second)]
    inside = bool(set(families[groups[0]]) & set(families[groups[1]]))
    blocks = np.unique(families) if inside else [-1]
    kept: list[int] = []
    for block in blocks:
        one, other = (g if not inside else g[families[g] == block] for g in groups)
        if not len(one) or not len(other):
            continue
        distance = np.abs(tokens[one][:, None] - tokens[other][None]).max(axis=2)
        beyond = distance > most
        large = 1.0 + (most + 1.0) * min(distance.shape)  # one more pair is worth more than any closeness
        rows, columns = linear_sum_assignment(np.where(beyond, large, distance))
        chosen = ~beyond[rows, columns]
        kept += [*one[rows[chosen]].tolist(), *other[columns[chosen]].tolist()]
    n_pairs = len(kept) // 2
    if n_pairs < 3:
        raise DesignError(
            f"matching in length needs at least 3 pairs of {first} and {second} within {most} tokens; there are "
            f"{n_pairs}: allow a larger difference"
        )
    rest = np.flatnonzero(~np.isin(categories, (first, second))).tolist()
    balance = _balance(tokens, groups, kept, categories, (first, second), names)
    return Matching(prompts.take(sorted(kept + rest)), balance, n_pairs, inside)


def _balance(
    tokens: Floats,
    groups: Sequence[NDArray[np.int64]],
    kept: Sequence[int],
    categories: NDArray[np.str_],
    pair: tuple[str, str],
    names: Sequence[str],
) -> tuple[Row, ...]:
    chosen = [np.array([i for i in kept if categories[i] == name]) for name in pair]
    rows: list[Row] = []
    for m in range(tokens.shape[1]):
        spread = float(np.sqrt(sum(tokens[g, m].var(ddof=1) for g in groups) / 2))
        for when, sets in (("before", groups), ("after", chosen)):
            means = [float(tokens[g, m].mean()) for g in sets]
            rows.append({
                "model": names[m] if len(names) else "", "matching": when, f"n_{pair[0]}": len(sets[0]),
                f"n_{pair[1]}": len(sets[1]), f"tokens_{pair[0]}": means[0], f"tokens_{pair[1]}": means[1],
                "standardised_difference": (means[0] - means[1]) / spread if spread else 0.0,
            })  # fmt: skip
    return tuple(rows)
