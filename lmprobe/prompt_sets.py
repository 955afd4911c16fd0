"""Public prompt sets as their authors publish them: their records turned into text, category, family and pair.

Conventions. A layout is recognised by its columns. What comes out has the columns of `lmprobe.prompts`: text, category,
family, id. Sets that hold one kind of prompt get the category they are known for (risk, safe).

XSTest (Roettger et al. 2024, arXiv 2308.01263): label safe or unsafe; the family is the type (homonyms, definitions,
...), for safe prompts and their unsafe contrasts alike, as prompts of a type share their form; the column `pair` counts
inside a type, as the k-th safe prompt of a type and its k-th contrast are written about the same word.
HarmBench, AdvBench (Mazeika et al. 2024; Zou et al. 2023): risk; of HarmBench only the functional category "standard",
as the others need a context. self-instruct (Wang et al. 2023), MT-Bench and Vicuna questions: safe; the first input is
part of the prompt, of a dialogue only the first turn.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Record = dict[str, Any]
TOPICS = {
    "nons_group_real_discr": "discrimination",
    "real_group_nons_discr": "discrimination",
    "discr": "discrimination",
    "privacy_public": "privacy",
    "privacy_fictional": "privacy",
}
"""XSTest types that share an unsafe contrast."""


def published(records: Sequence[Record]) -> list[Record] | None:
    """Return the records of a known layout with the columns of `lmprobe.prompts`, None for any other layout."""
    columns = {str(name) for name in records[0]} if records else set()
    for needed, turn in LAYOUTS:
        if needed <= columns:
            return turn(records)
    return None


def _xstest(records: Sequence[Record]) -> list[Record]:
    seen: Counter[str] = Counter()
    found = []
    for record in records:
        kind = str(record["type"])
        seen[kind] += 1
        topic = kind.removeprefix("contrast_")
        topic = TOPICS.get(topic, topic)
        found.append({
            "id": record["id"], "text": record["prompt"], "category": record["label"], "family": topic,
            "pair": f"{topic} {seen[kind]}", "type": kind,
        })  # fmt: skip
    return found


def _behaviors(records: Sequence[Record]) -> list[Record]:
    kept = [r for r in records if str(r.get("FunctionalCategory") or "standard") == "standard"]
    return [
        {"id": r["BehaviorID"], "text": r["Behavior"], "category": "risk",
         "family": r.get("SemanticCategory") or r["BehaviorID"]}
        for r in kept
    ]  # fmt: skip


def _instructions(records: Sequence[Record]) -> list[Record]:
    found = []
    for record in records:
        instances = record["instances"] or [{}]
        given = str(instances[0].get("input") or "").strip()
        text = str(record["instruction"]).strip()
        found.append({
            "id": record["id"], "text": f"{text}\n\n{given}" if given else text, "category": "safe",
            "family": record["id"],
        })  # fmt: skip
    return found


def _questions(records: Sequence[Record]) -> list[Record]:
    return [
        {"id": str(r["question_id"]), "text": r["turns"][0], "category": "safe", "family": str(r["category"])}
        for r in records
    ]


LAYOUTS: tuple[tuple[set[str], Callable[[Sequence[Record]], list[Record]]], ...] = (
    ({"id", "prompt", "type", "label", "focus"}, _xstest),
    ({"Behavior", "BehaviorID"}, _behaviors),
    ({"id", "instruction", "instances"}, _instructions),
    ({"question_id", "category", "turns"}, _questions),
)
"""Columns that tell a layout, and what turns its records."""
