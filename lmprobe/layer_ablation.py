"""Layer ablation of a language model: what is lost without a block, an attention, an MLP or a direction.

What changes need to know (means, donors, directions, covariances) is fitted on one half of the prompt families and
measured on the other. Every effect stands beside its interval over families, beside the same change in random
directions, and beside the noise floor. What the rows mean, and what they cannot show, is in docs/lm-ablation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.ablation_arms import ALONG, KINDS, PARTS, Arm, flags_of
from lmprobe.ablation_fit import direction_of, fit_arms
from lmprobe.ablation_metrics import SPANS, Meter, Text
from lmprobe.ablation_result import ablation_result
from lmprobe.ablation_sweep import Plan, draw_weights, run_sweep
from lmprobe.generate import generate
from lmprobe.loading import opened
from lmprobe.model_list import Model
from lmprobe.models import LanguageModel, Template
from lmprobe.prompt_draw import draw_prompts
from lmprobe.prompts import Prompts, load_prompts, main_categories
from lmprobe.refusal_odds import opening_ids
from lmprobe.vocabulary import single_tokens
from probecore.errors import DesignError, InputError, shorten
from probecore.progress import meter as progress_meter
from probecore.results import Result
from probecore.seeds import generator
from probecore.validation import at_least, one_of

PACKAGED = "aligned-100"
DEFAULT_KINDS = ("mean", "project")
DEFAULT_PARTS = {"skip": ("block",), "project": ("block",), "add": ("block",)}


def ablate(
    model: Model | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    kinds: Sequence[str] = DEFAULT_KINDS,
    parts: Sequence[str] = (),
    layers: str | Sequence[int] = "all",
    positions: str = "all",
    direction: str | Path | Any | None = None,  # noqa: ANN401
    scale: float = 1.0,
    span: str = "answer",
    target: Sequence[str] = (),
    refusal_openings: Sequence[str] = (),
    max_new_tokens: int = 8,
    limit: int | None = None,
    template: Template = "auto",
    revision: str | None = None,
    n_random: int = 19,
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Ablate parts of every layer and return a `Result` of kind "layer-ablation".

    Parameters
    ----------
    model : hub name, folder or opened model; None takes a packaged organism, and the result says so.
    prompts : what `load_prompts` takes; None is the packaged set. Half of the families is fitted on, half measured.
    kinds : "zero", "skip", "mean", "resample", "project", "add" (`lmprobe.ablation_arms`).
    parts : "attention", "mlp", "block"; by default both sub-layers for zero, mean and resample, blocks for the others.
    layers : "all", block numbers, or a text such as "0-3,7".
    positions : "all", "last" (of the prompt), or absolute positions ("0", "3,5", "2:", "2:6").
    direction : a vector (features,), a file or folder of one (`read_directions`), for "project" and "add"; None takes
        the difference of means of the two main categories at each block, last prompt token, of the fit prompts.
    scale : factor of "add"; 1 adds the direction as long as it is.
    span : where distributions are compared: "end" (of the prompt), "answer" (the intact model's greedy answer of at
        most `max_new_tokens`) or "prompt".
    limit : draw this many prompts of each category (`draw_prompts`); None takes all.
    target, refusal_openings : texts of one token each: their log-probability and their odds at the prompt's end.
    n_random : random directions of each of two kinds behind each control; 0 for none. n_bootstrap : 0 for no intervals.

    Raises `InputError` for models, prompts or settings that cannot be used, `DesignError` for too few families,
    `CertificateError` for a model whose parts are not known.
    """
    chosen = _checked_kinds(kinds, parts, span)
    at_least(max_new_tokens, 1, "max_new_tokens")
    at_least(n_random, 0, "n_random")
    at_least(n_bootstrap, 0, "n_bootstrap")
    flags_of(positions, [0])
    given = load_prompts("default" if prompts is None else prompts)
    if limit is not None:
        given = draw_prompts(given, limit, generator(seed, "ablation limit"))
    packaged = model is None
    if model is None:
        from lmprobe.organisms.folder import organism

        model = organism(PACKAGED).folder
    lm = opened(model, revision=revision, device=device, quiet=quiet)
    lm.certificate.require("taps", "causal")
    arms = _arms(chosen, _blocks(layers, len(lm.sites.blocks)), len(lm.sites.blocks))
    gauge = Meter(
        span, tuple(single_tokens(lm, target, "a target")), tuple(target),
        tuple(opening_ids(lm, refusal_openings)),
    )  # fmt: skip
    fit, test = halves(given, seed)
    texts = _texts(lm, given, gauge, max_new_tokens, template, span)
    given_direction = direction_of(direction, lm)
    uses_direction = any(arm.kind in ALONG for arm in arms)
    fitted = fit_arms(lm, given, fit, texts, arms, given_direction, n_random > 0)
    n_states = max((len(x) for x in fitted.spread.values()), default=0)
    plan = Plan(
        arms, positions, scale, generator(seed, "donors").integers(0, len(fit), size=len(test)),
        draw_weights(n_random, lm.certificate.width, n_states, seed), seed,
    )  # fmt: skip
    with progress_meter(len(arms), "ablation: arms", quiet=quiet) as advance:
        swept = run_sweep(lm, [texts[i] for i in test], gauge, fitted, plan, advance=advance)
    settings: dict[str, Any] = {
        "kinds": list(kinds), "positions": positions, "span": span, "scale": scale, "n_random": n_random,
        "n_bootstrap": n_bootstrap, "max_new_tokens": max_new_tokens if span == "answer" else None,
        "direction": "none" if not uses_direction else "given" if given_direction is not None else
        "difference of means: " + " - ".join(main_categories(given)),
    }  # fmt: skip
    return ablation_result(
        lm, given, fit, test, gauge, swept, arms, settings, packaged=packaged, seed=seed, command=command
    )


def halves(prompts: Prompts, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the prompts to fit on and those to measure: whole families, half of those with the same categories each.

    Raises `DesignError` where either half would hold fewer than 2 families.
    """
    families: dict[str, list[int]] = {}
    for i, family in enumerate(prompts.families):
        families.setdefault(family, []).append(i)
    alike: dict[tuple[str, ...], list[str]] = {}
    for family, members in families.items():
        alike.setdefault(tuple(sorted({prompts.categories[i] for i in members})), []).append(family)
    rng, fit = generator(seed, "ablation halves"), set()
    extra = False
    for names in alike.values():
        drawn = rng.permutation(len(names))
        size = (len(names) + extra) // 2
        extra = (len(names) + extra) % 2 == 1 and len(names) > 1
        fit |= {names[k] for k in drawn[:size]}
    inside = np.array([family in fit for family in prompts.families])
    if min(len(fit), len(families) - len(fit)) < 2:
        raise DesignError(
            f"an ablation is fitted on half of the prompt families and measured on the others, at least 2 each; got "
            f"{len(families)} families: add prompts, or name fewer families together"
        )
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def _checked_kinds(kinds: Sequence[str], parts: Sequence[str], span: str) -> list[tuple[str, str]]:
    """Return the pairs of kind and part; raises `InputError` for unknown ones and for one change given twice."""
    one_of(span, SPANS, "span")
    for kind in kinds:
        one_of(kind, KINDS, "kind")
    for part in parts:
        one_of(part, PARTS, "part")
    pairs = [
        (kind, part)
        for kind in dict.fromkeys(kinds)
        for part in dict.fromkeys(parts or DEFAULT_PARTS.get(kind, ("attention", "mlp")))
    ]
    if not pairs:
        raise InputError(f"an ablation needs at least one kind; there are {', '.join(KINDS)}")
    twice = [part for kind, part in pairs if kind == "skip" and part != "block" and ("zero", part) in pairs]
    if twice:
        raise InputError(f"to skip and to zero the {twice[0]} are the same: it adds nothing; leave one kind out")
    return pairs


def _blocks(layers: str | Sequence[int], n_blocks: int) -> list[int]:
    if layers == "all":
        return list(range(n_blocks))
    try:
        if isinstance(layers, str):
            spans = [word.split("-") for word in layers.replace(" ", "").split(",")]
            found = [i for span in spans for i in range(int(span[0]), int(span[-1]) + 1)]
        else:
            found = [int(i) for i in layers]
    except ValueError:
        raise InputError(f"layers must be all, or block numbers as '0-3,7'; got {layers!r}") from None
    outside = [i for i in found if not 0 <= i < n_blocks]
    if outside or not found:
        raise InputError(f"layers must be blocks from 0 to {n_blocks - 1}; got {shorten(outside) or layers!r}")
    return sorted(set(found))


def _arms(pairs: Sequence[tuple[str, str]], blocks: Sequence[int], n_blocks: int) -> tuple[Arm, ...]:
    """Return an arm per kind, part and block, and one for all blocks at once where all are swept.

    Every block skipped, or replaced as a whole, leaves nothing to compare: there is no such arm for blocks.
    """
    arms = []
    for kind, part in pairs:
        arms += [Arm(kind, part, i) for i in blocks]
        if len(blocks) == n_blocks > 1 and (part != "block" or kind in ALONG):
            arms.append(Arm(kind, part, None))
    return tuple(arms)


def _texts(
    lm: LanguageModel, prompts: Prompts, gauge: Meter, max_new_tokens: int, template: Template, span: str
) -> list[Text]:
    rows = lm.format_all(prompts.texts, template=template, room=max_new_tokens if span == "answer" else 0)
    answers: Sequence[Sequence[int]] = [()] * len(rows)
    if span == "answer":
        answers = generate(lm, prompts.texts, max_new_tokens=max_new_tokens, layers=(), template=template).tokens
    texts = [gauge.text(row, answer) for row, answer in zip(rows, answers, strict=True)]
    short = [prompts.ids[i] for i, text in enumerate(texts) if text.stop == text.start]
    if short:
        raise InputError(f"span 'prompt' needs prompts of at least 2 tokens; {shorten(short)} have 1: take span 'end'")
    return texts
