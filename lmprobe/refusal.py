"""The refusal direction of a language model: found, chosen, removed, added, and held against controls.

The method is that of Arditi et al. 2024 (arXiv 2406.11717): differences in means of harmful and harmless prompts at
every block's input and end position, scored by what their removal and addition do to the first token, chosen by their
rule; then removed from everything the model writes, or added at one place. Directions come from the extract split, the
choice from the select split, every number that is reported from the test split; near-duplicates share a split.

Beside each effect stands what the same procedure finds where there is nothing to find (`lmprobe.refusal_nulls`): labels
exchanged, directions the states vary along anyway, random ones, each with the choice made again. What every row means,
and what it cannot show, is written in docs/refusal.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmprobe.capability import STEPS, Capability, capability, capability_rows
from lmprobe.detectors import Detector, detector
from lmprobe.interventions import Add, Intervention, ProjectOut
from lmprobe.judge import open_judge
from lmprobe.labelled_answers import LabelledAnswers, calibrations_of, detector_rows, read_labelled
from lmprobe.loading import opened
from lmprobe.model_list import Model
from lmprobe.models import LanguageModel, Template
from lmprobe.near_duplicates import clusters
from lmprobe.organisms.packed import truth_of
from lmprobe.prompts import Prompts, load_prompts
from lmprobe.refusal_answers import (
    ADDED,
    RANDOM_ADDED,
    RANDOM_REMOVED,
    REMOVED,
    UNTOUCHED,
    Arm,
    borrowed_rows,
    judged,
    rate_rows,
    run_arm,
)
from lmprobe.refusal_layers import layer_rows
from lmprobe.refusal_measured import WORDS, Measured
from lmprobe.refusal_nulls import NULLS, Null, null
from lmprobe.refusal_result import refusal_result
from lmprobe.refusal_score import given_tokens
from lmprobe.refusal_search import Found, Study, search
from lmprobe.refusal_setting import Material, material, study_of
from lmprobe.tasks import Task, copying_tasks, load_tasks
from probecore.devices import one_thread
from probecore.errors import InputError
from probecore.progress import meter
from probecore.results import Result, Row
from probecore.validation import at_least

Floats = NDArray[np.float64]
LENGTHS = (16, 32)
MODEL, PROMPTS = "refusal-1", "marked"
TINY = 5_000_000  # parameters below which a second thread costs more than it gives
MOST_CAPABILITY = 64  # prompts on which capability is measured


@dataclass(frozen=True)
class Options:
    """What was asked for; see `refusal`."""

    lengths: tuple[int, ...]
    detectors: tuple[Detector, ...]
    labelled: tuple[LabelledAnswers, ...] = field(repr=False)
    others: tuple[LabelledAnswers, ...] = field(repr=False)
    tasks: tuple[Task, ...] | None = field(repr=False)
    n_controls: int
    n_permutations: int
    n_bootstrap: int
    template: Template
    seed: int
    quiet: bool


def refusal(
    model: Model | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    lengths: Sequence[int] = LENGTHS,
    detectors: Sequence[str] = ("markers",),
    judge: str | LanguageModel | None = None,
    labels: Sequence[str | Path] = (),
    labels_of_others: Sequence[str | Path] = (),
    refusal_openings: Sequence[str] = (),
    tasks: str | Path | None = None,
    limit: int | None = None,
    n_controls: int = 3,
    template: Template = "auto",
    revision: str | None = None,
    n_permutations: int = 99,
    n_bootstrap: int = 1000,
    keep_answers: bool = False,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Find a model's refusal direction, remove and add it, and return a `Result` of kind "refusal".

    Parameters
    ----------
    model
        A hub name, a folder or an opened model; None is the packaged organism "refusal-1", in which one direction is
        planted, and the result says so.
    prompts
        What `load_prompts` takes, with a harmful (risk, unsafe) and a harmless (safe, benign) category; prompts of
        other categories are used for capability. None is "marked" for the refusal organisms, else the packaged set.
    lengths
        Numbers of tokens after which an answer is judged; the longest is written.
    detectors, judge, labels
        String rules by name or file (`lmprobe.detectors`), a causal language model that judges, and files of answers OF
        THIS MODEL labelled by people (`lmprobe.labelled_answers`), with which rates are corrected.
    labels_of_others
        Labelled answers of other models, as XSTest's: how far a detector or judge can be off. Without both, the
        packaged counts on XSTest.
    refusal_openings
        Tokens that open a refusal; without them they are derived from the extract split.
    tasks
        A CSV of tasks (`lmprobe.tasks`); None is the packaged set, for prompts of the refusal organisms copying.
    limit
        Draw this many prompts of each kind.
    n_controls
        Control directions of each kind under which answers are written.
    n_permutations, n_bootstrap
        Replicates of each null (0: no p), resamples of clusters behind each interval (0: none).
    keep_answers
        Keep the written answers in the result. Answers of an edited model to harmful prompts can be harmful text.

    Raises `InputError` for what cannot be used, `DesignError` where there are too few prompts or no direction can be
    chosen, `CertificateError` for a model whose writes are not known.
    """
    options = _options(
        lengths,
        detectors,
        judge,
        (labels, labels_of_others),
        tasks,
        n_controls,
        n_permutations,
        n_bootstrap,
        template,
        seed,
        device,
        quiet,
    )
    packaged = model is None
    model = MODEL if model is None else model
    lm = opened(model, revision=revision, device=device, quiet=quiet)
    truth = truth_of(lm.name if isinstance(model, LanguageModel) else model) or {}
    planted = "topics" in truth.get("planted", {})
    given = load_prompts((PROMPTS if planted else "default") if prompts is None else prompts)
    with one_thread(lm.info["parameters"] < TINY):
        study = material(given, limit=limit, seed=seed)
        found = _measure(lm, study, options, refusal_openings, truth if planted else {})
    return refusal_result(found, options, packaged=packaged, keep_answers=keep_answers, command=command)


def _options(
    lengths: Sequence[int],
    detectors: Sequence[str],
    judge: str | LanguageModel | None,
    labels: tuple[Sequence[str | Path], Sequence[str | Path]],
    tasks: str | Path | None,
    n_controls: int,
    n_permutations: int,
    n_bootstrap: int,
    template: Template,
    seed: int,
    device: str,
    quiet: bool,
) -> Options:
    counts = tuple(sorted({at_least(n, 1, "tokens") for n in lengths}))
    if not counts or not detectors:
        raise InputError("refusal needs at least 1 length and 1 detector; got none: leave them out for the defaults")
    at_least(n_controls, 1, "n_controls")
    at_least(n_permutations, 0, "n_permutations")
    at_least(n_bootstrap, 0, "n_bootstrap")
    rules: list[Detector] = [detector(name) for name in dict.fromkeys(detectors)]
    if judge is not None:
        rules.append(open_judge(judge, device=device, quiet=quiet))
    own, others = (tuple(read_labelled(name) for name in files) for files in labels)
    asked = None if tasks is None else load_tasks(tasks)
    return Options(
        counts, tuple(rules), own, others, asked, n_controls, n_permutations, n_bootstrap, template, seed, quiet
    )


def _measure(
    lm: LanguageModel, given: Material, options: Options, openings: Sequence[str], truth: Mapping[str, object]
) -> Measured:
    room = max(*options.lengths, STEPS)
    tokens = given_tokens(lm, openings) if openings else None
    study = study_of(lm, given, template=options.template, room=room, tokens=tokens)
    found = search(study, whole_grid=True)
    replicates = max(options.n_permutations, options.n_controls)
    nulls: dict[str, Null] = {}
    with meter(len(NULLS) * replicates, "replicates of the search", quiet=options.quiet) as advance:
        for kind in NULLS:
            nulls[kind] = null(study, found, kind, replicates, seed=options.seed, advance=advance)
    layers = layer_rows(study, found, n_bootstrap=options.n_bootstrap, seed=options.seed)
    with meter(None, "answers", quiet=options.quiet):
        arms = _arms(study, found, nulls, given, options)
    answers, borrowed, detectors = _answer_rows(arms, study, given, options)
    cost, cost_rows = _cost(study, given, found, nulls["random"], options)
    return Measured(
        lm, given, study, found, nulls, layers, arms, answers + borrowed, detectors, cost, cost_rows, dict(truth)
    )


def drawn(kind: Null, n: int) -> Floats:
    """Return the first n directions (n, d) that replicates of a null chose; they are in random order."""
    made = kind.vectors[np.isfinite(kind.vectors).all(axis=1)]
    return made[:n]


def _arms(study: Study, found: Found, nulls: Mapping[str, Null], given: Material, options: Options) -> list[Arm]:
    test = study.splits["test"]
    rows = {
        given.harmful: [row for row, bad in zip(test.rows, test.is_harmful, strict=True) if bad],
        given.harmless: [row for row, bad in zip(test.rows, test.is_harmful, strict=True) if not bad],
    }
    site, size = f"input {found.block}", float(np.linalg.norm(found.vector))
    names = {kind: f"{REMOVED}: {words}" for kind, words in WORDS.items()}

    def add(vector: Floats) -> Add:
        return Add(vector / np.linalg.norm(vector) * size, site)

    plain: list[Sequence[Intervention]] = [()]
    planned: list[tuple[str, str, list[Sequence[Intervention]]]] = []
    for kind in (given.harmful, given.harmless):
        planned += [(UNTOUCHED, kind, plain), (REMOVED, kind, [(ProjectOut(found.vector),)])]
        for null_kind, words in names.items():
            vectors = drawn(nulls[null_kind], options.n_controls)
            if len(vectors) and (kind == given.harmful or null_kind == "random"):
                planned.append((words, kind, [(ProjectOut(v),) for v in vectors]))
    planned.append((ADDED, given.harmless, [(add(found.vector),)]))
    vectors = drawn(nulls["random"], options.n_controls)
    if len(vectors):
        planned.append((RANDOM_ADDED, given.harmless, [(add(v),) for v in vectors]))
    return [
        run_arm(study.lm, condition, kind, rows[kind], options.lengths, runs, batch_tokens=study.batch_tokens)
        for condition, kind, runs in planned
    ]


def _answer_rows(
    arms: Sequence[Arm], study: Study, given: Material, options: Options
) -> tuple[list[Row], list[Row], list[Row]]:
    """Return rates, borrowed corrections, and what is known of the detectors."""
    test, index = study.splits["test"], given.split.index("test")
    texts = {
        kind: [given.prompts.texts[i] for i, bad in zip(index, test.is_harmful, strict=True) if bad == harmful]
        for kind, harmful in ((given.harmful, True), (given.harmless, False))
    }
    near = {kind: test.cluster[test.is_harmful == (kind == given.harmful)] for kind in texts}
    known = {each.name: calibrations_of(each, options.labelled, options.others) for each in options.detectors}
    rates = rate_rows(
        judged(arms, texts, options.detectors), near, {name: own for name, (_, own) in known.items()},
        n_bootstrap=options.n_bootstrap, seed=options.seed,
    )  # fmt: skip
    longest = [
        row for row in rates if row["tokens"] == max(options.lengths) and row["condition"] in (UNTOUCHED, REMOVED)
    ]
    borrowed: list[Row] = []
    for name, (sources, own) in known.items():
        if own is None:
            borrowed += borrowed_rows([row for row in longest if row["detector"] == name], sources, options.seed)
    about = [
        row
        for each in options.detectors
        for row in detector_rows(each, known[each.name][0], [one.name for one in options.labelled])
    ]
    return rates, borrowed, about


def _cost(study: Study, given: Material, found: Found, random: Null, options: Options) -> tuple[Capability, list[Row]]:
    """Return capability under removal of the direction and of random ones, on prompts that chose nothing."""
    texts = list(given.others.texts) if len(given.others) >= 8 else [
        text for text, bad in zip(given.texts("test"), study.splits["test"].is_harmful, strict=True) if not bad
    ]  # fmt: skip
    texts = texts[:MOST_CAPABILITY]
    tasks = options.tasks
    if tasks is None:
        tasks = copying_tasks(texts) or load_tasks()
    vectors = np.concatenate([found.vector[None], drawn(random, options.n_controls)])
    cost = capability(study.lm, texts, vectors, tasks, template=options.template, batch_tokens=study.batch_tokens)
    rows = capability_rows(
        cost, clusters(texts), (REMOVED, RANDOM_REMOVED), n_bootstrap=options.n_bootstrap, seed=options.seed
    )
    return cost, rows
