"""The design of a label of prompts: what is new at test, and what may be exchanged with what.

Conventions. Groups are what a probe must not have seen: prompt families where the prompts name them and each class
lies in several of them, otherwise clusters of near-duplicates (`lmprobe.near_duplicates`, single linkage: no prompt has
a near-duplicate in another group). A permutation mirrors how labels came about:

    constant in every group        whole groups are exchanged
    varies inside most families    prompts are exchanged inside their family (a paired design)
    varies otherwise               the prompts of a group that share a label are one unit; units of equal size are
                                   exchanged, so that near-duplicates never count as independent and class sizes stay
    a number, near-duplicates      one prompt of each cluster is kept, and these are exchanged

A column of numbers with more than 10 different values is regressed on, every other is a class.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmprobe.capture_run import label_values
from lmprobe.near_duplicates import THRESHOLD, clusters, neighbours
from lmprobe.prompt_table import PromptTable
from probecore.activations import Label
from probecore.errors import DesignError, InputError, shorten
from probecore.validation import codes_of, one_of

GROUPINGS = ("auto", "family", "near-duplicates", "prompt")
Grouping = Literal["auto", "family", "near-duplicates", "prompt"]
LARGEST = 0.25
"""A cluster that holds more of the prompts than this is a chain of prompts that are not alike."""


@dataclass(frozen=True)
class LabelDesign:
    """A label of prompts with its design; `kept` are the positions of the prompts that take part, all else is of them.

    label : values, units and blocks for `probe_layers`. groups : (kept,) what is new at test. grouping : what they are.
    """

    kept: tuple[int, ...] = field(repr=False)
    label: Label = field(repr=False)
    groups: NDArray[Any] = field(repr=False)
    grouping: str
    notes: tuple[str, ...]

    @property
    def real(self) -> bool:
        """Tell whether the label is a number."""
        return self.label.kind == "real"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted; none for a number."""
        return () if self.real else tuple(str(name) for name in np.unique(self.label.values))


def label_design(table: PromptTable, label: str, groups: str = "auto") -> LabelDesign:
    """Return the design of one column of the prompts.

    groups : "family", "near-duplicates", "prompt" (each prompt its own: near-duplicates leak), or "auto".
    Raises `InputError` for a column that is not there, `DesignError` where it cannot be tested.
    """
    one_of(groups, GROUPINGS, "groups")
    cells = table.column(label)
    kept = [i for i, cell in enumerate(cells) if cell]
    notes = []
    if len(kept) < len(cells):
        notes.append(f"{len(cells) - len(kept)} of {len(cells)} prompts have no {label!r} and were left out")
    if len({cells[i] for i in kept}) < 2:
        raise DesignError(f"label {label!r} must have 2 different values; it has {len({cells[i] for i in kept})}")
    values, real = label_values([cells[i] for i in kept])
    group, grouping, why = _groups(table, label, kept, values, real, groups)
    notes += why
    if real and grouping == "near-duplicates":
        first = np.unique(group, return_index=True)[1]
        if len(first) < len(kept):
            notes.append(
                f"{len(kept) - len(first)} near-duplicates were left out: a number is tested on one prompt of each "
                "cluster"
            )
            kept, values, group = [kept[i] for i in np.sort(first)], values[np.sort(first)], group[np.sort(first)]
    if not real:
        kept, values, group, rare = _common(kept, values, group)
        if rare:
            notes.append(f"classes in one group only cannot be new at test and were left out: {shorten(rare)}")
        if len(set(values.tolist())) < 2:
            raise DesignError(
                f"label {label!r} must have 2 classes that each occur in 2 {_PLURAL[grouping]}; it has "
                f"{len(set(values.tolist()))}: take other groups, or more prompts"
            )
    units, blocks, exchanged = _exchange(values, group, real=real, paired=grouping == "family")
    notes.append(
        f"new at test: {_PLURAL[grouping]} ({len(np.unique(group))}, the largest of {_largest(group)} prompts); "
        f"exchanged: {exchanged}"
    )
    made = Label(values, units, blocks, "real" if real else "class")
    return LabelDesign(tuple(kept), made, group, grouping, tuple(notes))


_PLURAL = {"family": "prompt families", "near-duplicates": "clusters of near-duplicates", "prompt": "prompts"}


def _groups(
    table: PromptTable, label: str, kept: list[int], values: NDArray[Any], real: bool, asked: str
) -> tuple[NDArray[Any], str, list[str]]:
    """Return groups (kept,), what they are, and notes on the choice."""
    texts = [table.texts[i] for i in kept]
    notes: list[str] = []
    if asked == "prompt":
        near = int((np.diff(neighbours(texts).indptr) > 0).sum())
        notes.append(f"each prompt is its own group: {near} of {len(texts)} may have a near-duplicate in training")
        return np.arange(len(kept)), "prompt", notes
    family = table.family
    if asked == "family" and family is None:
        raise InputError(
            f"{table.source!r} names no families: name their column with --family, or take near-duplicates"
        )
    if family is not None and asked != "near-duplicates":
        cells = np.array([table.column(family)[i] for i in kept])
        why = _unfit(cells, family, label, values, real)
        if asked == "family" and why:
            raise DesignError(f"families cannot be new at test: {why}: take near-duplicates")
        if not why:
            across = _across(texts, cells)
            if across:
                notes.append(
                    f"{across} prompts have a near-duplicate in another family; --groups near-duplicates keeps these "
                    "together"
                )
            return cells, "family", notes
        notes.append(f"families are not what is new at test: {why}")
    cluster = clusters(texts, linkage="single")
    if np.bincount(cluster).max() > LARGEST * len(texts):
        cluster = clusters(texts, linkage="complete")
        notes.append(
            f"near-duplicates form a chain of more than {100 * LARGEST:g} % of the prompts: clusters of prompts that "
            f"are all alike are taken, and {_across(texts, cluster)} prompts have a near-duplicate in another"
        )
    return cluster, "near-duplicates", notes


def _unfit(families: NDArray[Any], name: str, label: str, values: NDArray[Any], real: bool) -> str:
    """Return why families cannot be the groups, "" if they can."""
    n = len(np.unique(families))
    if name == label:
        return "they are the label"
    if "" in families:
        return f"{int((families == '').sum())} prompts have none"
    if n == len(families):
        return "each prompt is its own"
    if n < 3:
        return f"there are only {n}"
    if not real:
        lonely = [str(v) for v in np.unique(values) if len(np.unique(families[values == v])) < 2]
        if lonely:
            return f"classes lie in one family only ({shorten(lonely, most=3)})"
    return ""


def _across(texts: list[str], groups: NDArray[Any]) -> int:
    """Return how many texts have a near-duplicate (word-Jaccard at least 0.5) in another group."""
    pairs = neighbours(texts, threshold=THRESHOLD).tocoo()
    return len(np.unique(pairs.row[groups[pairs.row] != groups[pairs.col]]))


def _common(
    kept: list[int], values: NDArray[Any], group: NDArray[Any]
) -> tuple[list[int], NDArray[Any], NDArray[Any], list[str]]:
    """Leave out the prompts of classes that lie in a single group."""
    rare = [str(v) for v in np.unique(values) if len(np.unique(group[values == v])) < 2]
    stay = ~np.isin(values, rare)
    return [i for i, stays in zip(kept, stay, strict=True) if stays], values[stay], group[stay], rare


def _exchange(
    values: NDArray[Any], group: NDArray[Any], *, real: bool, paired: bool
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, str]:
    """Return units and blocks (prompts,), None where the core derives them, and the rule in words."""
    codes = codes_of(group)[0]
    pairs = set(zip(codes.tolist(), values.tolist(), strict=True))
    kinds = Counter(code for code, _ in pairs)
    sizes = np.bincount(codes)
    if len(kinds) == len(values):
        return None, None, "prompts"
    if max(kinds.values()) == 1:
        return None, None, "whole groups"
    mixed = sum(sizes[code] for code, n in kinds.items() if n > 1)
    if real or (paired and mixed >= len(values) / 2):
        return None, None, "prompts inside their group"
    unit = codes_of([f"{code} {value}" for code, value in zip(codes.tolist(), values.tolist(), strict=True)])[0]
    size = np.bincount(unit)[unit]
    free = sum(n for n, units in Counter(np.bincount(unit).tolist()).items() if units > 1)
    return unit, size, f"sets of alike prompts of one label, among those of equal size ({free} sizes)"


def _largest(group: NDArray[Any]) -> int:
    return int(np.bincount(codes_of(group)[0]).max())
