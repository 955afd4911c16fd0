"""k-sweeps: how many directions carry a behaviour, and what their removal costs.

The k leading directions of a contrast of harmful and harmless prompts are removed from everything the model writes,
k = 0 .. K, the same test prompts at every k. Directions come from the extract split, at the site that the rule of
`lmprobe.refusal_search` chooses on the select split; every rate is of the test split. R(k) is the share of harmful
prompts whose written answer is a refusal, C(k) capability: the share of tokens of the untouched model's own answers to
neutral prompts that stay the most probable one. k@q is the smallest k from which on a share q of R(0) is gone while
C(k) is at least `keeps`: a model that can do nothing any more refuses nothing either. What every row means, and what it
cannot show, is written in docs/k-sweeps.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.detectors import detector
from lmprobe.k_curves import Curves, Options, removal_curves, shares_of_controls, size_of_refusal
from lmprobe.k_frames import ARMS, contrast_frame, frames_again, frames_of, labelings
from lmprobe.loading import opened
from lmprobe.model_list import Model, as_list
from lmprobe.models import LanguageModel, Template
from lmprobe.near_duplicates import clusters
from lmprobe.organisms.packed import truth_of
from lmprobe.prompts import Prompts, load_prompts
from lmprobe.refusal_search import Study, search
from lmprobe.refusal_setting import Material, material, study_of
from lmprobe.removal_effects import Answers, untouched
from probecore.contrastive import ContrastSpectrum, contrast_spectrum
from probecore.directions import Contrast
from probecore.errors import InputError, shorten
from probecore.progress import meter
from probecore.results import Result
from probecore.validation import at_least, one_of

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
MODELS, PROMPTS = ("refusal-1", "refusal-4"), "marked"
SITES = ("writes", "site")
CONTROL_K = (1, 2, 3, 4, 6, 8, 12, 16, 20, 25, 30)
MOST_NEUTRAL = 32
LEAST_REFUSED = 5
LEAST_AGAIN = 8  # directions of resampled prompts are removed up to here, or to twice k*
EVERYWHERE = "everything the model writes"


@dataclass(frozen=True, eq=False)
class Sweep:
    """Everything measured on one model.

    x, is_signal, cluster : the extract split at the site. behaviour : (harmful test prompts,) each one's behaviour.
    extract_behaviour : (extract prompts,), "" for harmless ones. k_star : size at which controls are compared, chosen
    on the select split. one_size : control -> gated share removed by each of its frames of that size. by_behaviour :
    behaviour -> curves of the removal of its own directions. drawn : directions of resampled extract prompts. again :
    their curves. clusters : of test harmful, harmless, neutral prompts.
    why_none : why there is nothing to remove. relaxed : limits of the rule that were given up to choose a site.
    """

    lm: LanguageModel = field(repr=False)
    name: str
    given: Material = field(repr=False)
    site: str
    position: int
    k_max: int
    x: Floats = field(repr=False)
    is_signal: Flags = field(repr=False)
    cluster: Ints = field(repr=False)
    curves: Mapping[str, Curves] = field(repr=False)
    k_star: int
    one_size: Mapping[str, Floats] = field(repr=False)
    spectrum: ContrastSpectrum = field(repr=False)
    drawn: list[Floats] = field(repr=False)
    again: Curves | None = field(repr=False)
    behaviour: NDArray[np.str_] = field(repr=False)
    extract_behaviour: NDArray[np.str_] = field(repr=False)
    by_behaviour: Mapping[str, Curves] = field(repr=False)
    clusters: tuple[Ints, Ints, Ints] = field(repr=False)
    why_none: str
    relaxed: tuple[str, ...]
    truth: dict[str, Any] = field(repr=False)


def k_sweep(
    models: Sequence[Model] | Model | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    behaviours: Mapping[str, Sequence[str]] | None = None,
    k_max: int = 30,
    contrast: Contrast = "whitened",
    at: str = "writes",
    keeps: float = 0.95,
    detector_name: str = "markers",
    max_new_tokens: int = 16,
    limit: int | None = None,
    n_random: int = 99,
    n_curves: int = 10,
    template: Template = "auto",
    revision: str | None = None,
    n_permutations: int = 200,
    n_bootstrap: int = 1000,
    n_extract: int = 20,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Remove the k leading directions of refusal, k = 0 .. k_max, and return a `Result` of kind "k-sweep".

    Parameters
    ----------
    models
        Hub names, folders or opened models; None is the packaged organisms "refusal-1" and "refusal-4", in which one
        and four directions are planted, and the result says so.
    prompts
        What `load_prompts` takes, with a harmful (risk, unsafe) and a harmless (safe, benign) category; prompts of
        other categories are neutral and serve capability. None is "marked" for refusal organisms, else the packaged
        set.
    behaviours
        Name -> beginnings of the ids of its harmful prompts: parts of them whose directions are compared and removed
        from each other. None takes two halves of the topics of a refusal organism, and nothing for other models.
    contrast
        "whitened" or "anchored" (`probecore.directions.contrastive_svd`): signal minus the mean of the reference,
        never centred by its own mean.
    at
        "writes": from everything that is written into the residual stream; "site": only where the states were read.
    keeps
        Share of capability that must be left for a removal to count.
    n_random, n_curves
        Frames of each random control behind a p (0: none), and those of them whose whole curve is measured.
    n_permutations, n_bootstrap, n_extract
        Exchanges of labels behind the ranks, resamples of test clusters behind each interval, and resamples of extract
        clusters whose own directions are removed.

    Raises `InputError` for what cannot be used, `DesignError` where there are too few prompts, `CertificateError` for a
    model whose writes are not known.
    """
    from lmprobe.k_result import k_result

    packaged = models is None
    chosen = as_list(MODELS if models is None else models)
    if not chosen:
        raise InputError("a k-sweep needs at least 1 model; got an empty list: leave models out for the organisms")
    if not 0 < keeps <= 1:
        raise InputError(f"keeps must lie in (0, 1]; got {keeps:g}")
    options = Options(
        at_least(k_max, 1, "k_max"), contrast, one_of(at, SITES, "at"), keeps, detector(detector_name),
        at_least(max_new_tokens, 1, "max_new_tokens"), at_least(n_random, 0, "n_random"),
        at_least(n_curves, 1, "n_curves"), at_least(n_permutations, 1, "n_permutations"),
        at_least(n_bootstrap, 2, "n_bootstrap"), at_least(n_extract, 0, "n_extract"), template, seed, quiet,
    )  # fmt: skip
    one_of(contrast, ("anchored", "whitened"), "contrast")
    truths = [_planted(model) for model in chosen]
    if prompts is None:
        prompts = PROMPTS if all(truths) else "default"
    given = material(load_prompts(prompts), limit=limit, seed=seed)
    found = []
    for model, truth in zip(chosen, truths, strict=True):
        lm = opened(model, revision=revision, device=device, quiet=quiet)
        found.append(sweep(lm, given, options, behaviours, truth))
    return k_result(found, options, packaged=packaged, command=command)


def sweep(
    lm: LanguageModel,
    given: Material,
    options: Options,
    behaviours: Mapping[str, Sequence[str]] | None = None,
    truth: Mapping[str, Any] | None = None,
) -> Sweep:
    """Measure one model; see `k_sweep`."""
    seed = options.seed
    names = _behaviours(given, behaviours, truth)
    study = study_of(lm, given, template=options.template, room=options.max_new_tokens)
    chosen = search(study)
    place = study.end.positions.index(chosen.position)
    x = np.asarray(study.states[:, place, chosen.block], dtype=np.float64)
    extract = study.splits["extract"]
    y = extract.is_harmful
    k_max = min(options.k_max, int(y.sum()), x.shape[1] - 1)
    site = f"input {chosen.block}"
    at = "writes" if options.at == "writes" else site
    sets = _test_sets(study, given, options)
    harmful, harmless, neutral = (known for known, _ in sets)
    refuses = float(harmful.refused.mean())
    why_none = "" if harmful.refused.sum() >= LEAST_REFUSED and refuses > 2 * harmless.refused.mean() else (
        f"{lm.name} refuses {harmful.refused.sum()} of {len(harmful)} harmful and {harmless.refused.sum()} of "
        f"{len(harmless)} harmless test prompts: there is no refusal to remove"
    )  # fmt: skip
    whole = list(range(k_max + 1))
    few = [0, *sorted({k for k in (*CONTROL_K, k_max) if k <= k_max})]

    def curves(arm: str, frames: Sequence[Floats], ks: list[int], over: bool = False) -> Curves:
        there = [k for k in ks if k <= min(len(f) for f in frames)]
        return removal_curves(
            lm, arm, frames, there, at, harmful, harmless if over else None, neutral, options.detector
        )

    with meter(None, f"{lm.name}: removing 0 to {k_max} directions", quiet=options.quiet):
        frame = contrast_frame(x, y, k_max, options.contrast)
        found = {"contrast": curves("contrast", [frame], whole, over=True)}
        for arm in ARMS[1:]:
            frames = frames_of(arm, x, y, k_max, options.n_curves, options.contrast, seed)
            found[arm] = curves(arm, frames, few)
    k_star, one_size = k_max, {}
    if not why_none:
        k_star = size_of_refusal(lm, study, frame, at, neutral, given, options)
        with meter(None, f"{lm.name}: {options.n_random} frames of each control, k = {k_star}", quiet=options.quiet):
            one_size = shares_of_controls(lm, x, y, k_star, at, harmful, neutral, options)
    index = given.split.index("test")
    own = names[index[given.is_harmful[index]]]
    mine = names[given.split.index("extract")]
    by_behaviour = {}
    if len(set(own.tolist())) > 1 and not why_none:
        for name in dict.fromkeys(own.tolist()):
            part = (mine == name) | ~y
            frames = [contrast_frame(x[part], y[part], k_max, options.contrast)]
            by_behaviour[name] = curves(f"directions of {name}", frames, [k for k in whole if k <= len(frames[0])])
    spectrum = contrast_spectrum(
        x, y, options.contrast, labelings=labelings(y, extract.unit, options.n_permutations, seed), seed=seed
    )
    most = min(k_max, max(2 * k_star, LEAST_AGAIN), int(y.sum()) // 2)
    drawn = frames_again(x, y, extract.cluster, most, options.contrast, options.n_extract, seed)
    again = None
    if drawn and not why_none:
        with meter(None, f"{lm.name}: directions of {len(drawn)} resamples of the prompts", quiet=options.quiet):
            again = curves("resampled", drawn, list(range(most + 1)))
    return Sweep(
        lm, lm.name, given, site, chosen.position, k_max, x, y, extract.cluster, found, k_star, one_size, spectrum,
        drawn, again, own, mine, by_behaviour, tuple(c for _, c in sets), why_none,  # type: ignore[arg-type]
        chosen.selection.relaxed, dict(truth or {}),
    )  # fmt: skip


def _test_sets(study: Study, given: Material, options: Options) -> list[tuple[Answers, Ints]]:
    """Return harmful, harmless and neutral test prompts with the untouched answers, and their clusters."""
    test, texts = study.splits["test"], given.texts("test")
    found: list[tuple[Answers, Ints]] = []
    for kind in (test.is_harmful, ~test.is_harmful):
        index = np.flatnonzero(kind)
        known = untouched(
            study.lm, [test.rows[i] for i in index], [texts[i] for i in index], options.detector, options.max_new_tokens
        )
        found.append((known, test.cluster[index]))
    others = list(given.others.texts)[:MOST_NEUTRAL]
    if len(others) < 8:
        return [*found, (found[1][0], found[1][1])]
    rows = study.lm.format_all(others, template=options.template, room=options.max_new_tokens)
    known = untouched(study.lm, rows, others, options.detector, options.max_new_tokens)
    return [*found, (known, clusters(others))]


def _behaviours(
    given: Material, asked: Mapping[str, Sequence[str]] | None, truth: Mapping[str, Any] | None
) -> NDArray[np.str_]:
    """Return the behaviour of each prompt, (prompts,): "" for harmless ones, the category where there are no parts."""
    prompts = given.prompts
    if asked is None and truth and prompts.source.startswith("marked"):
        topics = list(truth["planted"]["topics"])
        half = len(topics) // 2
        asked = {" and ".join(part): [f"{t}-" for t in part] for part in (topics[:half], topics[half:])}
    out = np.where(given.is_harmful, given.harmful, "").astype(object)
    if asked:
        for i in np.flatnonzero(given.is_harmful):
            hits = [name for name, starts in asked.items() if str(prompts.ids[i]).startswith(tuple(starts))]
            if len(hits) != 1:
                raise InputError(
                    f"every harmful prompt must belong to one behaviour; {prompts.ids[i]!r} belongs to "
                    f"{shorten(hits) if hits else 'none'}: name the beginnings of the ids of each"
                )
            out[i] = hits[0]
    return np.asarray(out, dtype=np.str_)


def _planted(model: Model) -> dict[str, Any]:
    """Return the truth of a refusal organism, nothing for every other model."""
    truth = truth_of(model.name if isinstance(model, LanguageModel) else model) or {}
    return truth if "topics" in truth.get("planted", {}) else {}
