"""What a reader of a refusal result must know: what was chosen, what p means, what was not corrected or not kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmprobe.generate import not_applied
from lmprobe.refusal_answers import UNTOUCHED
from lmprobe.refusal_measured import Measured
from lmprobe.refusal_setting import FEW, form_notes
from probecore.errors import shorten
from probecore.results import Row

if TYPE_CHECKING:
    from lmprobe.refusal import Options


def notes(found: Measured, options: Options, packaged: bool, keep_answers: bool, grid: Sequence[Row]) -> list[str]:
    """Return the notes of a result in reading order; grid : the records of the table "candidates"."""
    lm, given, direction, study = found.lm, found.material, found.found, found.study
    sizes, chosen = given.split.sizes, direction.selection
    said = []
    if packaged:
        said.append(
            "no --model was given: this is the packaged organism refusal-1, a tiny SYNTHETIC model that refuses "
            "invented topic words and in which one direction is planted; nothing here is a finding about a real "
            "language model"
        )
    n_may = sum(bool(row["may_choose"]) for row in grid)
    if chosen.relaxed:
        said.append(
            f"NO candidate of {n_may} passes the rule (bypass smallest, KL <= .1, induce >= 0); the limit of "
            f"{' and of '.join(chosen.relaxed)} was given up to have one: by the rule of Arditi et al. this model has "
            "no single refusal direction on these prompts"
        )
    else:
        said.append(
            f"{int(chosen.kept.sum())} of {n_may} candidates pass the rule (KL <= .1, induce >= 0), the smallest "
            "bypass was taken; table 'candidates' has all of them"
        )
    said.append(_token_note(found))
    said.append(
        f"directions from {sizes['extract']} prompts, the choice from {sizes['select']}, every number here from "
        f"{sizes['test']} others; no near-duplicates across splits ({given.split.n_clusters} clusters, the largest of "
        f"{given.split.largest_cluster}, {sizes['left out']} prompts left out)"
    )
    if given.prompts.has_families and not given.paired:
        said.append(
            "families of prompts are no pairs of one prompt of each kind: splits and intervals go by near-duplicates"
        )
    said.append(_null_note(found, options))
    said += _detector_notes(found, options)
    rates = {
        (row["condition"], row["kind"]): row["value"] for row in found.answers
        if row["measure"] == "refusal rate" and row["tokens"] == max(options.lengths)
        and row["detector"] == options.detectors[0].name
    }  # fmt: skip
    if rates[UNTOUCHED, given.harmful] < 0.2:
        said.append(
            f"the untouched model is seen to refuse {rates[UNTOUCHED, given.harmful]:.0%} of {given.harmful} prompts: "
            "there is little refusal to remove, or the detector does not know its words"
        )
    if min(int((study.splits["test"].is_harmful == kind).sum()) for kind in (True, False)) < FEW:
        said.append(f"fewer than {FEW} test prompts of a kind: rates are coarse, read their intervals")
    said += form_notes(given, [len(row) for row in _rows(found)])
    if found.cost.tasks is not None and found.cost.tasks.left_out:
        said.append(
            f"{found.cost.tasks.left_out} task items have choices of equal tokens for this tokenizer and are left out"
        )
    if not keep_answers:
        said.append(
            "answers are not kept: those of an edited model to harmful prompts can be harmful text (--keep-answers)"
        )
    ignored = not_applied(lm)
    if ignored:
        said.append(f"decoded greedily; the generation config asks for {', '.join(ignored)}, not applied")
    return said


def _rows(found: Measured) -> list[list[int]]:
    """Return formatted prompts in the order of the material; those left out of every split count as empty."""
    rows: list[list[int]] = [[] for _ in range(len(found.material.prompts))]
    for name, split in found.study.splits.items():
        for i, row in zip(found.material.split.index(name), split.rows, strict=True):
            rows[i] = row
    return rows


def _token_note(found: Measured) -> str:
    tokens = found.found.tokens
    shown = shorten([repr(text) for text in tokens.texts])
    if tokens.harmful is None or tokens.harmless is None:
        return f"refusal score: log-odds that the first token of an answer is {shown} (given)"
    return (
        f"refusal score: log-odds that the first token of an answer is {shown}, derived from the extract split "
        f"(most probable for {tokens.harmful:.0%} of {found.material.harmful} and {tokens.harmless:.0%} of "
        f"{found.material.harmless} prompts){': ' + tokens.note if tokens.note else ''}"
    )


def _null_note(found: Measured, options: Options) -> str:
    if not options.n_permutations:
        return "no p of the direction: no replicates were asked for (--permutations)"
    where = "inside pairs" if found.material.paired else "between clusters of near-duplicates"
    return (
        f"p of the direction is that of permuted labels: {options.n_permutations} exchanges {where}, each with its own "
        "refusal tokens, directions and choice. It says that the labels matter, not that no other direction would do: "
        "for that read the rows 'removed: ...'. Random directions are easy to beat; those matched in covariance, and "
        "differences of permuted labels, are what the states vary along anyway, which in a model that refuses some "
        "prompts includes its refusal direction: a large p there is no evidence against the direction"
    )


def _detector_notes(found: Measured, options: Options) -> list[str]:
    said = []
    if options.labelled:
        names = ", ".join(each.name for each in options.labelled)
        said.append(f"rates are corrected (Rogan and Gladen) with people's labels of answers: {names}")
    else:
        said.append(
            "rates are as the detector sees them; without people's labels of this model's own answers (--labels) they "
            "are not corrected. On answers of other models detectors err very differently (the twelve markers find .06 "
            "to 1.00 of the refusals of five models of XSTest): details and the table 'detectors' show what each of "
            "these would make of the rates"
        )
    unknown = [
        each.name for each in options.detectors if not any(row["detector"] == each.name for row in found.detectors)
    ]
    if unknown:
        said.append(f"nobody's labels say how often {', '.join(unknown)} is right: give some with --labels")
    return said
