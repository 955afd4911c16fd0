"""What a refusal study is made of: prompts in three splits, and what a model shows on them.

Conventions. Harmful and harmless are the two main categories of the prompts (`prompts.main_categories`); prompts of
every other category, as "neutral", are used for capability and for nothing else. Near-duplicates never stand in two
splits; a harmful prompt and its twin, where families are such pairs, share a split, too. Labels are exchanged inside
the pairs then, else between clusters of near-duplicates. Intervals resample the clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lmprobe.models import LanguageModel, Template
from lmprobe.partition import SPLITS, Partition, partition
from lmprobe.prompt_draw import draw_prompts
from lmprobe.prompts import Prompts, main_categories
from lmprobe.refusal_score import RefusalTokens
from lmprobe.refusal_search import Study, prepare
from probecore.errors import DesignError
from probecore.seeds import generator
from probecore.validation import codes_of

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
LEAST = 4  # prompts of each kind in each split
FEW = 20  # test prompts of a kind below which a note says that rates are coarse


@dataclass(frozen=True, eq=False)
class Material:
    """Prompts of a study.

    prompts : harmful and harmless only. others : the rest. harmful, harmless : names of the categories.
    unit : (prompts,) what is exchanged together. paired : families are pairs of one prompt of each kind.
    """

    prompts: Prompts = field(repr=False)
    others: Prompts = field(repr=False)
    harmful: str
    harmless: str
    split: Partition = field(repr=False)
    unit: Ints = field(repr=False)
    paired: bool

    @property
    def is_harmful(self) -> Flags:
        """Which prompts are harmful, (prompts,)."""
        return np.array([category == self.harmful for category in self.prompts.categories])

    def texts(self, split: str) -> list[str]:
        """Return the texts of a split, in its order."""
        return [self.prompts.texts[i] for i in self.split.index(split)]


def material(prompts: Prompts, *, limit: int | None = None, seed: int = 0) -> Material:
    """Split the prompts of a study; limit : draw this many of each kind, None takes all.

    Raises `DesignError` where a split would hold fewer than 4 prompts of a kind.
    """
    harmful, harmless = main_categories(prompts)
    paired = prompts.is_paired(harmful, harmless)
    both = prompts.of(harmful, harmless)
    if limit is not None:
        both = draw_prompts(both, limit, generator(seed, "refusal", "limit"))
    split = partition(
        both.texts, both.categories, families=both.families if paired else None, seed=seed
    )  # fmt: skip
    kinds = np.asarray(both.categories) == harmful
    for name in SPLITS:
        index = split.index(name)
        n = int(kinds[index].sum()), int((~kinds[index]).sum())
        if min(n) < LEAST:
            raise DesignError(
                f"each split needs at least {LEAST} {harmful} and {LEAST} {harmless} prompts; {name} would have {n[0]} "
                f"and {n[1]} of {int(kinds.sum())} and {int((~kinds).sum())}: give more prompts"
            )
    rest = [i for i, category in enumerate(prompts.categories) if category not in (harmful, harmless)]
    unit = codes_of(both.families)[0] if paired else split.cluster
    return Material(both, prompts.take(rest), harmful, harmless, split, unit, paired)


def study_of(
    lm: LanguageModel,
    given: Material,
    *,
    template: Template = "auto",
    room: int = 0,
    tokens: RefusalTokens | None = None,
    batch_tokens: int = 4096,
) -> Study:
    """Run the prompts of the three splits once; room : tokens of the model's context kept for answers."""
    rows = lm.format_all(given.prompts.texts, template=template, room=room)
    index = {name: given.split.index(name) for name in SPLITS}

    def of(values: NDArray[np.generic]) -> Mapping[str, NDArray[np.generic]]:
        return {name: values[i] for name, i in index.items()}

    return prepare(
        lm, {name: [rows[i] for i in found] for name, found in index.items()}, of(given.is_harmful),  # type: ignore[arg-type]
        of(given.split.cluster), of(given.unit), given=tokens, batch_tokens=batch_tokens,  # type: ignore[arg-type]
    )  # fmt: skip


def form_notes(given: Material, lengths: Sequence[int]) -> list[str]:
    """Return in what harmful and harmless prompts differ beside their topic; lengths : tokens of each prompt."""
    kinds, sizes = given.is_harmful, np.asarray(lengths, dtype=np.float64)
    asks = np.array([text.rstrip().endswith("?") for text in given.prompts.texts])
    found = []
    spread = float(np.sqrt((sizes[kinds].var() + sizes[~kinds].var()) / 2))
    gap = float(sizes[kinds].mean() - sizes[~kinds].mean())
    if abs(gap) > 0.25 * max(spread, 1.0):
        found.append(f"{sizes[kinds].mean():.1f} against {sizes[~kinds].mean():.1f} tokens")
    if abs(asks[kinds].mean() - asks[~kinds].mean()) > 0.1:
        found.append(f"{asks[kinds].mean():.0%} against {asks[~kinds].mean():.0%} end in '?'")
    if not found:
        return []
    return [
        f"{given.harmful} and {given.harmless} prompts differ in form, too ({'; '.join(found)}): the direction may "
        "hold that; prompts matched in topic and form (XSTest) tell"
    ]
