"""The terrain of a language model: how safe and risk prompts differ in entropy, states, dimension and convergence.

Every row says what was measured on which prompts, with its interval and p or the reason why there is none. The prompt
is the unit everywhere, a prompt family the cluster; a token is never counted as an independent observation. What each
row means, and what it cannot show, is written in docs/terrain.md.

The numbers of the printed table are the headline; rows with `detail` true (single categories, other modes and
readings, every layer, control contrasts) are in the JSON object, in the files and in `result.rows`.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from lmprobe.contrasts import Contrast, contrast
from lmprobe.lineage import check_lineage, trend_rows
from lmprobe.loading import open_tokenizer, opened
from lmprobe.matching import Matching, match_lengths
from lmprobe.model_list import Model, model_names, name_notes, wanted_models
from lmprobe.models import LanguageModel, Template
from lmprobe.prompts import Prompts, load_prompts, main_categories
from lmprobe.terrain_model import measure_terrain
from lmprobe.terrain_result import Options, Terrain, terrain_result
from probecore.progress import meter
from probecore.results import Result
from probecore.validation import at_least


def terrain(
    models: Sequence[Model] | Model | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    lineage: bool = False,
    match_length: int | None = None,
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
    """Measure the terrain of models side by side and return a `Result` of kind "terrain".

    Parameters
    ----------
    models
        Hub names, folders or opened models; None takes the packaged organisms, and the result says so.
    prompts
        What `load_prompts` takes; None is the packaged set. Contrasted are "risk" (unsafe, harmful) minus "safe"
        (harmless, benign) or, where a set lacks either, its second category minus its first.
    lineage
        The models are checkpoints of one lineage in their order: adds trends over the steps (`lmprobe.lineage`).
    match_length
        Contrast only pairs of a first and a second prompt whose lengths differ by at most this many tokens under every
        model's tokenizer (`lmprobe.matching`); None takes all prompts.
    max_new_tokens
        Most tokens of each prompt's greedy continuation, at least 2.
    template
        "auto" (the chat template where there is one), "chat" or "raw".
    revision
        Revision of hub models.
    n_permutations, n_bootstrap
        Exchanges of categories behind each p, resamples of families behind each interval; 0 for none.

    Raises `InputError` for prompts or models that cannot be used, `DesignError` for fewer than 3 prompts a category,
    `CertificateError` for a model that cannot be certified.
    """
    at_least(max_new_tokens, 2, "max_new_tokens")
    at_least(n_permutations, 0, "n_permutations")
    at_least(n_bootstrap, 0, "n_bootstrap")
    given = load_prompts("default" if prompts is None else prompts)
    wanted = wanted_models(models)
    names = model_names(wanted)
    matching = None if match_length is None else _matched(given, wanted, names, match_length, revision, quiet)
    given = given if matching is None else matching.prompts
    options = Options(
        given,
        _contrasts(given, n_permutations, n_bootstrap, seed),
        max_new_tokens,
        template,
        n_permutations,
        n_bootstrap,
        seed,
        matching,
    )
    found: list[Terrain] = []
    with meter(len(wanted), "models", quiet=quiet) as advance:
        for name, model in zip(names, wanted, strict=True):
            lm = opened(model, revision=revision, device=device, quiet=quiet)
            found.append(measure_terrain(lm, name, None if isinstance(model, LanguageModel) else model, options))
            advance(1)
    found[0].notes[:0] = name_notes(wanted)
    if lineage:
        check_lineage([each.facts for each in found])
        found[-1].rows.extend(
            trend_rows([each.means for each in found], options.contrasts[0], f"{names[0]} to {names[-1]}")
        )
        found[-1].notes.append(
            f"trend over {len(found)} checkpoints: its interval is about new prompts, its p about the order of the "
            f"checkpoints, of which {len(found)} can give none below {2 / math.factorial(len(found)):.2g}"
        )
    return terrain_result(found, names, options, models is None, command)


def _matched(
    prompts: Prompts, models: Sequence[Model], names: Sequence[str], most: int, revision: str | None, quiet: bool
) -> Matching:
    """Return prompts matched in the number of tokens that every model's tokenizer makes of their texts."""
    lengths = np.empty((len(prompts), len(models)))
    for k, model in enumerate(models):
        own = model.tokenizer if isinstance(model, LanguageModel) else None
        tokenizer = own or open_tokenizer(model, revision=revision, quiet=quiet)  # type: ignore[arg-type]
        lengths[:, k] = [len(ids) for ids in tokenizer(list(prompts.texts), add_special_tokens=False)["input_ids"]]
    first, second = main_categories(prompts)
    return match_lengths(prompts, first, second, lengths, most, names)


def _contrasts(prompts: Prompts, n_permutations: int, n_bootstrap: int, seed: int) -> tuple[Contrast, ...]:
    """Return the main contrast first, then every other pair of categories with at least 3 prompts each."""
    counts = prompts.counts
    names = list(counts)
    first, second = main_categories(prompts)
    pairs = [(first, second)]
    enough = [name for name in names if counts[name] >= 3]
    pairs += [(a, b) for a, b in combinations(enough, 2) if {a, b} != {first, second}]
    return tuple(
        contrast(prompts, a, b, n_permutations=n_permutations, n_bootstrap=n_bootstrap, seed=seed) for a, b in pairs
    )
