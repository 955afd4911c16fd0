"""A small task set: questions with one right and some wrong answers, chosen by probability.

Conventions. An item counts as right when its right answer has the largest log-probability per byte of all its choices,
each scored as the answer to the formatted prompt. Chance is the mean of 1 / choices. A set says whether a model still
knows what it knew, not how good it is: before and after on the same items is what it is for. An item whose choices have
equal tokens (words a tokenizer does not know) decides nothing and is left out, and counted.

>>> len(load_tasks()), round(chance(load_tasks()), 2)
(48, 0.25)
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.models import LanguageModel, Template
from lmprobe.removal_scores import removal_log_probs
from probecore.errors import InputError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Task:
    """One item: a prompt and its choices, the right one first."""

    prompt: str
    choices: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TaskAnswers:
    """What was answered. right : (1 + K, items kept), untouched first. left_out : items whose choices are alike."""

    right: Flags = field(repr=False)
    chance: float
    left_out: int


def load_tasks(source: str | Path = "default") -> tuple[Task, ...]:
    """Read tasks: "default" (packaged, 48 items), or a CSV with the columns prompt, right, and wrong1, wrong2, ...

    Raises `InputError` for a missing file or column, and an item without a wrong answer.
    """
    if str(source) == "default":
        text = files("lmprobe").joinpath("data/tasks.csv").read_text(encoding="utf-8")
        return _tasks(list(csv.DictReader(text.splitlines())), "default")
    path = Path(source)
    if not path.is_file() or path.suffix.lower() != ".csv":
        raise InputError(f"tasks must be a .csv file, or 'default'; got {path.name!r}: give such a file")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return _tasks(list(csv.DictReader(stream)), path.name)


def copying_tasks(texts: Sequence[str]) -> tuple[Task, ...]:
    """Return the task of the refusal organisms for prompts of their language: copy three words, in order.

    The wrong answers copy the right words in another order. Texts of another language are left out.
    """
    from lmprobe.organisms.marked import complying, recognise_marked

    found = []
    for text in texts:
        prompt = recognise_marked(text)
        if prompt is not None:
            said = complying(prompt)[:-1]
            a, b, c = said[2:5]
            orders = ((a, b, c), (b, a, c), (a, c, b), (c, b, a))
            found.append(Task(text, tuple(" ".join((*said[:2], *order, *said[5:])) for order in orders)))
    return tuple(found)


def chance(tasks: Sequence[Task]) -> float:
    """Return the share that guessing gets right."""
    return float(np.mean([1 / len(task.choices) for task in tasks]))


def answer_tasks(
    lm: LanguageModel,
    tasks: Sequence[Task],
    vectors: Floats,
    *,
    template: Template = "auto",
    batch_tokens: int = 4096,
) -> TaskAnswers:
    """Return which items are right, untouched and with each of the directions (K, d) removed."""
    rows: list[list[int]] = []
    starts: list[int] = []
    place: list[tuple[int, int]] = []
    kept: list[Task] = []
    for task in tasks:
        ids = [list(lm.tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in task.choices]
        if len({tuple(row) for row in ids}) < len(ids) or not all(ids):
            continue
        prompt = lm.format_all([task.prompt], template=template, room=max(map(len, ids)))[0]
        for k, answer in enumerate(ids):
            rows.append([*prompt, *answer])
            starts.append(len(prompt))
            place.append((len(kept), k))
        kept.append(task)
    n_arms = 1 + len(vectors)
    score = np.full((n_arms, len(kept), max((len(t.choices) for t in kept), default=1)), -np.inf)

    def keep(i: int, log_p: Tensor, tokens: Tensor) -> None:
        item, choice = place[i]
        taken = log_p.gather(2, tokens[None, :, None].expand(n_arms, -1, 1))[..., 0].sum(dim=1)
        score[:, item, choice] = taken.numpy() / len(kept[item].choices[choice].encode())

    if rows:
        removal_log_probs(lm, rows, starts, vectors, keep, batch_tokens=batch_tokens)
    right = score.argmax(axis=2) == 0
    return TaskAnswers(right, chance(kept) if kept else float("nan"), len(tasks) - len(kept))


def _tasks(records: list[dict[str, str]], source: str) -> tuple[Task, ...]:
    names = list(records[0]) if records else []
    wrong = [name for name in names if name and name.startswith("wrong")]
    if not {"prompt", "right"} <= set(names) or not wrong:
        raise InputError(f"tasks need the columns prompt, right and wrong1; {source!r} has {names or 'no record'}")
    found = []
    for i, record in enumerate(records):
        choices = (record["right"], *(record[name] for name in wrong if record[name]))
        if not record["prompt"] or not all(choices) or len(choices) < 2:
            raise InputError(
                f"every task needs a prompt, a right and a wrong answer; record {i + 1} of {source!r} lacks"
            )
        found.append(Task(record["prompt"], tuple(choices)))
    return tuple(found)
