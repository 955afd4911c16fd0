"""Refusal search: from labelled prompts to one direction, a function of the labels alone, so that it can be repeated.

Conventions. A `Study` holds what a model shows on the prompts of the three splits before anything is labelled: states
at the end positions and first-token log-probabilities. `search` takes labels and gives the direction: refusal tokens
and differences in means from the extract split, scores and choice on the select split. The effect of a direction is
what its removal does to the refusal score of harmful test prompts: mean over prompts of rho before - rho after, above 0
where refusal becomes less likely.

The rule chooses among the end tokens, as Arditi et al. do; t_inst, the last token of the instruction, is chosen only
where there is no end token. Blocks from floor(0.8 L) on are never chosen. What the rule never chooses is scored only
where the whole grid is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.candidate_scores import CandidateScores, candidate_scores, removed_runs
from lmprobe.candidates import Candidates, States, difference_in_means, end_states
from lmprobe.direction_selection import DEPTH, Selection, select_direction
from lmprobe.instruction_end import InstructionEnd, find_end
from lmprobe.models import LanguageModel
from lmprobe.partition import SPLITS
from lmprobe.refusal_score import RefusalTokens, first_token_log_probs, refusal_log_odds, refusal_tokens
from probecore.errors import DesignError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SplitData:
    """One split: formatted prompts, which are harmful, near-duplicate clusters, units that are exchanged together.

    log_p : (prompts, vocabulary) of the first answer token of the untouched model.
    """

    rows: list[list[int]] = field(repr=False)
    is_harmful: Flags
    cluster: Ints
    unit: Ints
    log_p: Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class Study:
    """What a model shows on all prompts before they are labelled.

    states : (prompts, P, L, d) of the extract split. given : refusal tokens that are not to be derived.
    """

    lm: LanguageModel = field(repr=False)
    end: InstructionEnd
    splits: Mapping[str, SplitData]
    states: States = field(repr=False)
    given: RefusalTokens | None = None
    batch_tokens: int = 4096

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return int(self.states.shape[2])

    @property
    def deepest(self) -> int:
        """Number of blocks the rule chooses from."""
        return int(DEPTH * self.n_blocks)


@dataclass(frozen=True, eq=False)
class Found:
    """A search's outcome.

    places : (N, 2) position index and block of each scored candidate. vector : (d,) raw difference of the chosen one.
    """

    tokens: RefusalTokens
    candidates: Candidates = field(repr=False)
    places: Ints = field(repr=False)
    scores: CandidateScores = field(repr=False)
    selection: Selection

    @property
    def position(self) -> int:
        """Position of the chosen direction, negative."""
        return self.candidates.positions[int(self.places[self.selection.index, 0])]

    @property
    def block(self) -> int:
        """Block at whose input the chosen direction was read."""
        return int(self.places[self.selection.index, 1])

    @property
    def vector(self) -> Floats:
        """The raw difference in means, (d,)."""
        return self.candidates.raw(self.position, self.block)

    @property
    def unit(self) -> Floats:
        """The unit direction, (d,)."""
        return self.candidates.unit(self.position, self.block)


def prepare(
    lm: LanguageModel,
    rows: Mapping[str, list[list[int]]],
    is_harmful: Mapping[str, Flags],
    cluster: Mapping[str, Ints],
    unit: Mapping[str, Ints],
    *,
    given: RefusalTokens | None = None,
    batch_tokens: int = 4096,
) -> Study:
    """Run the formatted prompts of the three splits once.

    rows, is_harmful, cluster, unit : by split, see `SplitData`. The end tokens are what the prompts of all splits have
    in common; they depend on no label. Raises `DesignError` for a model of one block, of which the rule leaves none.
    """
    end = find_end([row for name in SPLITS for row in rows[name]])
    states = end_states(lm, rows["extract"], end, batch_tokens=batch_tokens)
    splits = {
        name: SplitData(
            rows[name], is_harmful[name], cluster[name], unit[name],
            first_token_log_probs(lm, rows[name], batch_tokens=batch_tokens),
        )
        for name in SPLITS
    }  # fmt: skip
    study = Study(lm, end, splits, states, given, batch_tokens)
    if study.deepest < 1:
        raise DesignError(
            f"the rule chooses among blocks below floor({DEPTH:g} L); a model of {study.n_blocks} block has none: "
            "take a deeper model"
        )
    return study


def search(
    study: Study,
    extract: Flags | None = None,
    select: Flags | None = None,
    *,
    vectors: Floats | None = None,
    whole_grid: bool = False,
    relax: bool = True,
    arditi_eps: bool = False,
) -> Found:
    """Return the direction that labels of the extract and the select split lead to; the true ones by default.

    vectors : (P, L, d) candidates to choose among in the place of the differences in means.
    whole_grid : score what the rule never chooses, too. relax, arditi_eps : see `select_direction` and
    `refusal_log_odds`.
    Raises `DesignError` where no candidate can be chosen.
    """
    one, two = study.splits["extract"], study.splits["select"]
    kinds = one.is_harmful if extract is None else extract
    chosen = two.is_harmful if select is None else select
    candidates = difference_in_means(study.states, kinds, study.end.positions)
    if vectors is not None:
        candidates = Candidates(
            vectors, candidates.positions, candidates.scale, candidates.n_harmful, candidates.n_harmless
        )
    tokens = study.given
    if tokens is None:
        bad = torch.from_numpy(kinds)
        tokens = refusal_tokens(study.lm, one.log_p[bad], one.log_p[~bad])
    there = candidates.exists
    allowed = (np.arange(study.n_blocks) < study.deepest)[None] & _may_choose(study.end)[:, None]
    places = np.argwhere(there if whole_grid else there & allowed).astype(np.int64)
    if not (there & allowed).any():
        raise DesignError(
            "harmful and harmless prompts have equal mean states at all end positions of the blocks the rule chooses "
            "from: there is no direction; check that the two files differ, and that the tokenizer knows their words"
        )
    scores = candidate_scores(
        study.lm,
        [two.rows[i] for i in np.flatnonzero(chosen)],
        [two.rows[i] for i in np.flatnonzero(~chosen)],
        candidates.vectors[places[:, 0], places[:, 1]],
        places[:, 1].tolist(),
        tokens.ids,
        two.log_p[torch.from_numpy(~chosen)],
        arditi_eps=arditi_eps,
        batch_tokens=study.batch_tokens,
    )
    selection = select_direction(
        scores.bypass.mean(axis=1), scores.induce.mean(axis=1), scores.kl.mean(axis=1), places[:, 1], study.n_blocks,
        allowed=allowed[places[:, 0], places[:, 1]], relax=relax,
    )  # fmt: skip
    return Found(tokens, candidates, places, scores, selection)


def _may_choose(end: InstructionEnd) -> Flags:
    """Return the positions (P,) the rule chooses from: the end tokens, or t_inst where there are none."""
    return np.array([end.length == 0 or position != end.instruction for position in end.positions])


def odds_on_test(
    study: Study, vectors: Floats, tokens: Sequence[Sequence[int]], chosen: Flags | None = None
) -> tuple[Floats, Floats]:
    """Return the refusal score of test prompts, (N, prompts), untouched and with each vector (N, d) removed.

    tokens : refusal tokens of each vector. chosen : which test prompts are run, None for all.
    """
    test = study.splits["test"]
    kept = np.arange(len(test.rows)) if chosen is None else np.flatnonzero(chosen)
    after = np.full((len(vectors), len(kept)), np.nan)

    def keep(n: int, prompts: Ints, log_p: Tensor) -> None:
        after[n, prompts] = refusal_log_odds(log_p, tokens[n])

    removed_runs(study.lm, [test.rows[i] for i in kept], vectors, keep, batch_tokens=study.batch_tokens)
    known: dict[tuple[int, ...], Floats] = {}
    for ids in map(tuple, tokens):
        if ids not in known:
            known[ids] = refusal_log_odds(test.log_p[kept], ids)
    return np.stack([known[tuple(ids)] for ids in tokens]), after
