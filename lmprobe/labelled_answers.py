"""Labelled answers: what people said about answers of models, and how often detectors agree with them.

Conventions. A file of labelled answers is a CSV or JSONL with the columns `answer` (or completion, text, response),
`label` (or final_label) and, for judges, `prompt`. Labels are refusal, partial and compliance; those of XSTest
(1_full_compliance, 2_full_refusal, 3_partial_refusal) are read as they are. Partial refusals are left out of counts.
Texts are only read, never printed or kept in a result.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmprobe.calibration import Calibration, calibrate, pooled, published_calibrations
from lmprobe.detectors import Detector
from probecore.errors import InputError, shorten
from probecore.results import Row

ANSWER, LABEL, PROMPT = ("answer", "completion", "response", "text"), ("label", "final_label"), ("prompt",)
LABELS: Mapping[str, bool | None] = {
    "refusal": True, "compliance": False, "partial": None, "2_full_refusal": True, "1_full_compliance": False,
    "3_partial_refusal": None,
}  # fmt: skip
POOLED, POOLED_OTHERS = "XSTest, pooled", "other models, pooled"


@dataclass(frozen=True)
class LabelledAnswers:
    """Answers with people's labels. is_refusal : None for a partial refusal."""

    name: str
    prompts: tuple[str, ...] = field(repr=False)
    answers: tuple[str, ...] = field(repr=False)
    is_refusal: tuple[bool | None, ...] = field(repr=False)


def read_labelled(source: str | Path) -> LabelledAnswers:
    """Read a file of labelled answers; raises `InputError` for a missing file or column and for unknown labels."""
    path = Path(source)
    kind = path.suffix.lower()
    if not path.is_file() or kind not in (".csv", ".jsonl"):
        raise InputError(f"labelled answers must be a .csv or .jsonl file; got {path.name!r}: give such a file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            records: list[dict[str, Any]] = (
                list(csv.DictReader(stream)) if kind == ".csv" else [json.loads(x) for x in stream if x.strip()]
            )
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"{path.name!r} is not a readable {kind[1:]} file: {error}") from error
    answer, label = (_column(records, names, path.name) for names in (ANSWER, LABEL))
    said = [str(record[label]).strip().lower() for record in records]
    unknown = sorted({word for word in said if word not in LABELS})
    if unknown:
        raise InputError(
            f"labels must be refusal, partial or compliance; {path.name!r} has {shorten(unknown, most=3)}: rename them"
        )
    return LabelledAnswers(
        path.stem,
        tuple(str(record.get(PROMPT[0]) or "") for record in records),
        tuple(str(record[answer] or "") for record in records),
        tuple(LABELS[word] for word in said),
    )


def calibrations_of(
    detector: Detector, own: Sequence[LabelledAnswers], others: Sequence[LabelledAnswers] = ()
) -> tuple[dict[str, Calibration], Calibration | None]:
    """Return the counts of a detector by source, and their sum over the model's own answers, None where there are none.

    own : answers of the model that is measured: they can correct its rates. others : answers of other models, which say
    how far a detector can be off and correct nothing. Without either the packaged counts on XSTest stand in for others.
    """
    counted = {
        each.name: calibrate(detector.verdicts(each.prompts, each.answers), each.is_refusal) for each in (*own, *others)
    }
    total = pooled([counted[each.name] for each in own]) if own else None
    if others and not own:
        counted = {POOLED_OTHERS: pooled(list(counted.values())), **counted}
    if counted:
        return counted, total
    published = published_calibrations().get(detector.name, {})
    return ({POOLED: pooled(list(published.values())), **published} if published else {}), None


def detector_rows(detector: Detector, found: Mapping[str, Calibration], own: Sequence[str]) -> list[Row]:
    """Return one row per source of labels: sensitivity, specificity, J, and why rates cannot be corrected with it.

    own : names of the sources that are answers of the model that is measured.
    """
    return [
        {"detector": detector.name, "source": name, "own_answers": name in own, **c.row(), "not_usable": c.usable}
        for name, c in found.items()
    ]


def _column(records: Sequence[Mapping[str, Any]], names: Sequence[str], source: str) -> str:
    there = list(records[0]) if records else []
    found = next((name for name in names if name in there), None)
    if found is None:
        raise InputError(f"{source!r} needs a column {' or '.join(names)}; it has {shorten(there) or 'no record'}")
    return found
