"""`lmprobe potential`: how strongly, and where, aligned models differ from the base they share a tokenizer with.

Conventions. Contexts are the prompts' ends, one sampled continuation of each prompt by the base, one by the aligned
model, and one common text; the choice of contexts changes the strength, so all are reported. The prompt is the unit, a
family the cluster. `strength` defines the estimators L1 to L5 and says what is identified, `mixing` makes the logits of
V_base + lambda V_alignment. Intervals of L1, L3 and L4 hold the resamples of families and, on both sides, the most that
a change 1.25 times as large as the null floor can move the estimate (Cauchy-Schwarz for L1, the triangle inequality for
L3, to first order for L4): resamples alone know nothing of what another training run would have given. Rows keep the
interval of resamples alone as family_low, family_high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.contrasts import Contrast, contrast
from lmprobe.entropy import Entropies
from lmprobe.generate import continuation_ids, generate
from lmprobe.loading import opened
from lmprobe.mixing import Pair, mixed, pair_models
from lmprobe.model_list import Model, as_list, model_names, name_notes
from lmprobe.models import LanguageModel, Template
from lmprobe.organisms.tilt import refusal_log_odds
from lmprobe.potential_rows import WITH_PATH, effect_rows, strength_rows
from lmprobe.potential_sums import Measured
from lmprobe.prompts import Prompts, load_prompts, main_categories
from lmprobe.refusal_odds import log_odds, odds_rows, opening_ids
from lmprobe.score import log_softmax, scan_logits
from lmprobe.terrain_result import COMMON_TEXT
from lmprobe.weight_twins import ROUNDING, halfway_row, rounded_twin
from probecore.errors import InputError
from probecore.progress import meter
from probecore.results import Result, Row
from probecore.stats.bootstrap import cluster_weights
from probecore.validation import at_least, codes_of

Floats = NDArray[np.float64]
LAMBDAS = (0.0, 0.5, 1.0, 1.5)


@dataclass(frozen=True)
class Setting:
    """What is the same for all pairs: prompts, the contrast of their categories, resamples (prompts, 1 + B)."""

    prompts: Prompts
    contrast: Contrast
    weights: Floats = field(repr=False)
    n_families: int
    lambdas: tuple[float, ...]
    max_new_tokens: int
    template: Template
    seed: int


def potential(
    base: Model | None = None,
    aligned: Sequence[Model] | Model | None = None,
    prompts: str | FilePath | Prompts | None = None,
    *,
    null: Model | None = None,
    lambdas: Sequence[float] = LAMBDAS,
    refusal_openings: Sequence[str] = (),
    max_new_tokens: int = 30,
    template: Template = "auto",
    revision: str | None = None,
    n_permutations: int = 999,
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Measure the strength of aligned models over their base and return a `Result` of kind "potential".

    Parameters
    ----------
    base, aligned
        Hub names, folders or opened models that share a tokenizer; several aligned models are checkpoints of one
        lineage in their order, and the last is the anchor of L4. None takes the packaged organisms.
    prompts
        What `load_prompts` takes; None is the packaged set.
    null
        The base trained on without alignment (strength 0 by construction): the floor of every estimate. Without it the
        floor is what rounding the weights to bfloat16 changes, which is far less than another training run.
    lambdas
        Strengths at which logits are mixed and the terrain is measured, for the last aligned model.
    refusal_openings
        Tokens that open a refusal ("I", "Sorry"): a reward of 1 for them at the prompts' ends makes L1, R2 and L2
        defined for any model, in nats, and their odds are given at every lambda. Organisms have a planted reward.
    max_new_tokens, template, revision, n_permutations, n_bootstrap, seed, device, quiet
        As `terrain` takes them; the chat template is the aligned model's.

    Raises `InputError` for models that do not share a vocabulary, `DesignError` for too few prompts.
    """
    from lmprobe.potential_result import potential_result

    at_least(max_new_tokens, 2, "max_new_tokens")
    if not lambdas or not all(np.isfinite(lambdas)):
        raise InputError(f"lambda must be at least 1 finite number; got {list(lambdas)}: for example 0 0.5 1")
    packaged = base is None and aligned is None
    if (base is None) != (aligned is None):
        raise InputError("a strength needs a base and an aligned model; one was given: give both, or none")
    if packaged:
        base, aligned, null = _organisms(null)
    assert base is not None and aligned is not None
    named: list[Model] = [base, *as_list(aligned), *([] if null is None else [null])]
    if len(named) < 2 + (null is not None):
        raise InputError(
            "a strength needs at least 1 aligned model; got an empty list: leave both out for the organisms"
        )
    setting = _setting(prompts, lambdas, max_new_tokens, template, n_permutations, n_bootstrap, seed)
    with meter(len(named) + 1, "models", quiet=quiet) as advance:
        lms: list[LanguageModel] = []
        for name, one in zip(model_names(named), named, strict=True):
            lm = opened(one, revision=revision, device=device, quiet=quiet)
            lms.append(replace(lm, info={**lm.info, "model": name}))
            advance(1)
        first, others = lms[0], lms[1 : len(lms) - (null is not None)]
        pairs = [pair_models(first, other) for other in others]
        floor = pair_models(first, lms[-1]) if null is not None else rounded_twin(first)
        strengths = [_planted_strength(source) for source in named[: 1 + len(others)]]
        openings = opening_ids(first, refusal_openings)
        measured, floor_measured, used = _measure(pairs, floor, setting, strengths, openings)
        rows = strength_rows(measured, floor_measured, setting, used)
        effects = _effects(pairs[-1], setting, used, strengths)
        rows += effect_rows(effects, measured[-1], setting, pairs[-1].aligned.name)
        rows += _opening_rows(pairs[-1], setting, used, strengths)
        rows.append(halfway_row(pairs[-1], setting.prompts, used.ids))
        advance(1)
    return potential_result(rows, measured, pairs, setting, used, packaged, command, name_notes(named))


@dataclass(frozen=True)
class Used:
    """The contexts: token rows and where the scored part of each begins, by mode; the same for all models.

    ids : (N) formatted prompts. rewards : (N,) reward of an opening after each prompt, or None. openings : their ids.
    is_planted : the reward is that planted in organisms. floor_name : what the floor is.
    """

    ids: list[list[int]] = field(repr=False)
    rewards: Floats | None
    openings: list[int]
    is_planted: bool
    floor_name: str
    n_bytes: Floats


def _measure(
    pairs: Sequence[Pair],
    floor: Pair | None,
    setting: Setting,
    strengths: Sequence[float | None],
    openings: list[int],
) -> tuple[list[Measured], Measured | None, Used]:
    """Return what every pair shows at all contexts, the floor's likewise, and the contexts."""
    from lmprobe.organisms.tilt import refusal_ids, rewards

    texts, base = setting.prompts.texts, pairs[0].base
    common = continuation_ids(base, COMMON_TEXT)
    room = max(setting.max_new_tokens, len(common))
    ids = pairs[-1].format_all(texts, setting.template, room)
    for pair in pairs:
        pair.aligned.format_all(ids, None, "raw", room)
    reward_of = np.ones(len(texts)) if openings else None
    if not openings and all(s is not None for s in strengths):
        reward_of = rewards(texts)
    is_planted = reward_of is not None and not openings
    refusing = refusal_ids(base.tokenizer) if is_planted else openings
    sampled: dict[str, Any] = {
        "max_new_tokens": setting.max_new_tokens, "temperature": 1.0, "layers": (), "template": "raw",
        "seed": setting.seed,
    }  # fmt: skip
    base_text = generate(base, ids, **sampled)
    models = [pair.aligned for pair in pairs] + ([floor.aligned] if floor is not None else [])
    n, n_pairs = len(texts), len(pairs)
    found = [
        Measured(model.name, strengths[0], strengths[1 + k] if k < n_pairs else None) for k, model in enumerate(models)
    ]
    anchor = models[n_pairs - 1]

    def read(mode: str, texts_of: Sequence[Sequence[int]], whose: Sequence[int]) -> None:
        """Score the models `whose` (numbers) on the same contexts, with base and anchor."""
        involved = [base, anchor, *(models[k] for k in whose)]
        for k in whose:
            path = mode == "prompt end" or (mode in WITH_PATH and n_pairs > 1)
            found[k].start(mode, n, reward=reward_of is not None and mode == "prompt end", path=path)

        def keep(i: int, logits: list[Tensor], tokens: Tensor) -> None:
            log_b, log_anchor, *log_m = (log_softmax(each, i) for each in logits)
            reward = None
            if reward_of is not None and mode == "prompt end":
                reward = torch.zeros_like(log_b)
                reward[:, refusing] = float(reward_of[i])
            for k, own in zip(whose, log_m, strict=True):
                found[k].add(mode, i, own, log_b, log_anchor, tokens, reward)

        rows = [[*row, *text] for row, text in zip(ids, texts_of, strict=True)]
        scan_logits(involved, rows, [len(row) for row in ids], keep)

    everyone = list(range(len(models)))
    read("prompt end", [common[:1]] * n, everyone)
    read("common text", [common] * n, everyone)
    read("base text", base_text.tokens, everyone)
    n_bytes = np.zeros((len(models), n))
    for k, model in enumerate(models):
        own_text = generate(model, ids, **sampled)
        read("aligned text", own_text.tokens, [k])
        n_bytes[k] = [len(text.encode()) for text in own_text.texts]
    name = "" if floor is None else ROUNDING if floor.aligned.name.endswith(ROUNDING) else floor.aligned.name
    return (
        found[:n_pairs],
        (found[-1] if floor is not None else None),
        Used(ids, reward_of, refusing, is_planted, name, n_bytes),
    )


def _effects(pair: Pair, setting: Setting, used: Used, strengths: Sequence[float | None]) -> list[Row]:
    """Return entropies of the mixture at every lambda: {"lambda", "entropies", "planted"}."""
    from lmprobe.organisms.truth import planted_entropies
    from lmprobe.score import score

    known = strengths[0] == 0.0 and strengths[-1] is not None
    words = [str(w) for w in pair.base.tokenizer.convert_ids_to_tokens(continuation_ids(pair.base, COMMON_TEXT))]
    found: list[Row] = []
    for value in setting.lambdas:
        with mixed(pair, value) as lm:
            own = generate(
                lm, used.ids, max_new_tokens=setting.max_new_tokens, layers=(), template="raw",
                use_cache=pair.use_cache, seed=setting.seed,
            )  # fmt: skip
            forced = score(lm, used.ids, COMMON_TEXT, template="raw")
        traces = {"prompt end": own.entropy[:, :1], "own text": own.entropy, "common text": forced.entropy}
        planted = None
        if known:
            planted = planted_entropies(
                setting.prompts.texts, value * float(strengths[-1]), words,  # type: ignore[arg-type]
                tokens=setting.max_new_tokens, log_vocabulary=0.0,
            )  # fmt: skip
        log_v = float(np.log(lm.vocabulary))
        found.append({"lambda": value, "entropies": Entropies(traces, log_v), "planted": planted, "texts": own.texts})
    return found


def _opening_rows(pair: Pair, setting: Setting, used: Used, strengths: Sequence[float | None]) -> list[Row]:
    """Return the odds of a refusal opening at every lambda, where openings are known."""
    if not used.openings:
        return []
    odds = log_odds(pair, used.ids, used.openings, setting.lambdas)
    planted = None
    if used.is_planted and strengths[0] == 0.0 and strengths[-1] is not None:
        tilts = [value * strengths[-1] for value in setting.lambdas]
        planted = np.array([[refusal_log_odds(text, tilt) for text in setting.prompts.texts] for tilt in tilts])
    main = setting.contrast
    return odds_rows(odds, setting.lambdas, setting.prompts, pair, planted, (main.first, main.second))


def _setting(
    prompts: str | FilePath | Prompts | None,
    lambdas: Sequence[float],
    max_new_tokens: int,
    template: Template,
    n_permutations: int,
    n_bootstrap: int,
    seed: int,
) -> Setting:
    given = load_prompts("default" if prompts is None else prompts)
    first, second = main_categories(given)
    main = contrast(given, first, second, n_permutations=n_permutations, n_bootstrap=n_bootstrap, seed=seed)
    families = codes_of(given.families)[0]
    drawn = cluster_weights(families, at_least(n_bootstrap, 0, "n_bootstrap"), seed=seed).T
    weights = np.concatenate([np.ones((len(given), 1)), drawn], axis=1)
    n_families = len(np.unique(families))
    return Setting(given, main, weights, n_families, tuple(lambdas), max_new_tokens, template, seed)


def _organisms(null: Model | None) -> tuple[Model, list[Model], Model]:
    from lmprobe.organisms.folder import packaged_organisms
    from lmprobe.organisms.null import null_organism

    base, *aligned = (each.folder for each in packaged_organisms())
    return base, list(aligned), null_organism().folder if null is None else null


def _planted_strength(source: Any) -> float | None:  # noqa: ANN401
    """Return the planted strength of an organism, None for every other model."""
    from lmprobe.organisms.packed import truth_of

    strength = (truth_of(source) or {}).get("strength")
    return None if strength is None else float(strength)
