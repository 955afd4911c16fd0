"""Prompts: texts with a category (safe, risk, neutral or others) and a family.

A family is a set of prompts made from one template or about one topic. It is what must be new at test, so it is the
cross-validation group, and the block inside which categories may be exchanged when each family holds both of them.

The packaged set, "default", has 20 safe, 20 risk and 10 neutral prompts written for this project. The safe and the
risk prompt of a family hold the same words in another order, so that neither length nor wording tells them apart.

>>> prompts = load_prompts()
>>> prompts.counts, len(set(prompts.families))
({'safe': 20, 'risk': 20, 'neutral': 10}, 20)
>>> prompts.is_paired("safe", "risk")
True
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from lmprobe.prompt_sets import published
from probecore.errors import InputError, shorten
from probecore.provenance import digest

TEXT_COLUMNS = ("text", "prompt", "instruction", "goal")
CATEGORY_COLUMNS = ("category", "class", "label", "type")
FAMILY_COLUMNS = ("family", "pair_id", "pair", "group")
ID_COLUMNS = ("id", "prompt_id")
RISKY, SAFE = ("risk", "unsafe", "harmful"), ("safe", "harmless", "benign")


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order of their source; all fields have one entry per prompt.

    source : "default", a file name or a data set name. has_families : whether the source named them; where it did
    not, every prompt is its own family.
    """

    source: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    categories: tuple[str, ...]
    families: tuple[str, ...]
    has_families: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> dict[str, int]:
        """Number of prompts of each category, in order of appearance."""
        return dict(Counter(self.categories))

    @property
    def digest(self) -> str:
        """Hash of everything but the source's name."""
        fields = (self.ids, self.texts, self.categories, self.families)
        return digest(*(part for prompt in zip(*fields, strict=True) for part in prompt))

    def take(self, index: Sequence[int]) -> "Prompts":
        """Return the prompts at these positions."""
        kept = [tuple(field[i] for i in index) for field in (self.ids, self.texts, self.categories, self.families)]
        return Prompts(self.source, kept[0], kept[1], kept[2], kept[3], self.has_families)

    def of(self, *categories: str) -> "Prompts":
        """Return the prompts of some categories."""
        return self.take([i for i, category in enumerate(self.categories) if category in categories])

    def is_paired(self, one: str, other: str) -> bool:
        """Tell whether every family with prompts of these categories holds exactly one of each."""
        members: dict[str, list[str]] = {}
        for family, category in zip(self.families, self.categories, strict=True):
            if category in (one, other):
                members.setdefault(family, []).append(category)
        return bool(members) and all(sorted(found) == sorted((one, other)) for found in members.values())


def load_prompts(source: str | Path | Prompts = "default", *, columns: Mapping[str, str] | None = None) -> Prompts:
    """Read prompts.

    source : "default" (packaged), "marked" (for the refusal organisms: `lmprobe.organisms.marked`), a .csv, .tsv,
        .jsonl or .json file, or the name or folder of a `datasets` data set ("name" or "name:split"; the first split
        is taken otherwise). Public sets in their authors' layout are known (`lmprobe.prompt_sets`).
    columns : which column holds "text", "category", "family", "id"; each defaults to the first known name
        (`TEXT_COLUMNS`, `CATEGORY_COLUMNS`, `FAMILY_COLUMNS`, `ID_COLUMNS`). Family and id may be absent.

    Raises `InputError` for a missing column, an empty text, a repeated id or fewer than 2 categories.
    """
    if isinstance(source, Prompts):
        return source
    prompts = _load(str(source), columns or {})
    if len(prompts.counts) < 2:
        raise InputError(
            f"prompts need at least 2 categories; {prompts.source!r} has only {prompts.categories[0]!r}: add others, "
            "as CATEGORY=SOURCE beside CATEGORY=SOURCE"
        )
    return prompts


def read_prompts(sources: Sequence[str], *, family: str | None = None) -> Prompts:
    """Read what a command was given: one source, or several "CATEGORY=SOURCE" put together; none is the packaged set.

    Of a "CATEGORY=SOURCE" every prompt gets that category, or, where the source itself has prompts of that category
    beside others, these alone are taken. family : column that names the family.
    Raises what `load_prompts` raises, and `InputError` for sources of which one has no category.
    """
    columns = {} if family is None else {"family": family}
    if not sources:
        return load_prompts("default", columns=columns)
    named = [_category_of(source) for source in sources]
    if len(named) == 1 and named[0][0] is None:
        return load_prompts(named[0][1], columns=columns)
    if any(category is None for category, _ in named):
        raise InputError(
            f"several sources of prompts need a category each; got {shorten(list(sources))}: write CATEGORY=SOURCE"
        )
    found = []
    for category, name in named:
        part = _load(name, columns)
        chosen = part.of(str(category)) if category in part.counts else part
        found.append((str(category), chosen))
    if len({category for category, _ in found}) < 2:
        raise InputError(f"prompts need at least 2 categories; all sources are {named[0][0]!r}: add another")
    return Prompts(
        " + ".join(f"{category}={part.source}" for category, part in found),
        tuple(f"{part.source}:{i}" for _, part in found for i in part.ids),
        tuple(text for _, part in found for text in part.texts),
        tuple(category for category, part in found for _ in part.ids),
        tuple(f"{part.source}:{name}" for _, part in found for name in part.families),
        all(part.has_families for _, part in found),
    )


def _category_of(source: str) -> tuple[str | None, str]:
    """Return category and source of "CATEGORY=SOURCE", None and the source where there is none."""
    category, equals, name = source.partition("=")
    return (category, name) if equals and category and not Path(source).exists() else (None, source)


def _load(name: str, columns: Mapping[str, str]) -> Prompts:
    if name == "marked":
        from lmprobe.organisms.marked import marked_prompts

        return marked_prompts()
    return _prompts(*read_records(name), columns)


def read_records(name: str) -> tuple[list[dict[str, Any]], str]:
    """Return the records of a source as they stand there, and the name it is shown by.

    name : "default", a .csv, .tsv, .jsonl or .json file, or a `datasets` data set. Raises `InputError` for any other.
    """
    if name == "default":
        text = files("lmprobe").joinpath("data/prompts.csv").read_text(encoding="utf-8")
        return list(csv.DictReader(text.splitlines())), name
    path = Path(name)
    if path.is_file():
        return _read(path), path.name
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".json"):
        raise InputError(f"no prompt file {name!r}: give a file that exists, or 'default' for the packaged prompts")
    return _dataset(name), path.name if path.is_dir() else name


def main_categories(prompts: Prompts) -> tuple[str, str]:
    """Return the categories that are contrasted, first minus second: risk and safe, else the second and the first.

    >>> main_categories(load_prompts())
    ('risk', 'safe')
    """
    names = list(prompts.counts)
    first = next((name for name in names if name.lower() in RISKY), None)
    second = next((name for name in names if name.lower() in SAFE), None)
    return (names[1], names[0]) if first is None or second is None else (first, second)


def _read(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    try:
        text = path.read_text(encoding="utf-8-sig")
        if kind in (".csv", ".tsv"):
            return list(csv.DictReader(text.splitlines(keepends=True), delimiter="\t" if kind == ".tsv" else ","))
        if kind == ".json":
            records = json.loads(text)
        elif kind == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            raise InputError(f"prompts must be .csv, .tsv, .jsonl or .json; got {path.name!r}: convert it")
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"{path.name!r} is not a readable {kind[1:]} file: {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{path.name!r} must hold one JSON object per prompt; got {type(records).__name__}")
    return records


def _dataset(name: str) -> list[dict[str, Any]]:
    import datasets

    place, _, split = name.partition(":") if not Path(name).exists() else (name, "", "")
    try:
        local = Path(place).is_dir() and any((Path(place) / f).exists() for f in ("dataset_info.json", "state.json"))
        saved = local or (Path(place) / "dataset_dict.json").exists()
        data = datasets.load_from_disk(place) if saved else datasets.load_dataset(place)
    except Exception as error:  # `datasets` raises many kinds: all mean the same here
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"prompts {name!r} are no file, and `datasets` cannot open them ({type(error).__name__}: {reason}): "
            "give a CSV or JSONL file, a data set name or folder, or 'default'"
        ) from error
    if isinstance(data, dict):
        if split and split not in data:
            raise InputError(f"data set {place!r} has no split {split!r}; there are {shorten(sorted(data))}")
        data = data[split or next(iter(data))]
    records: list[dict[str, Any]] = [dict(record) for record in data]
    features = getattr(data, "features", {})
    for column, feature in features.items():
        if hasattr(feature, "int2str"):  # class labels by their name
            for record in records:
                record[column] = feature.int2str(record[column])
    return records


def _prompts(records: list[dict[str, Any]], source: str, columns: Mapping[str, str]) -> Prompts:
    if not records:
        raise InputError(f"prompts {source!r} are empty: give at least 2 categories with 2 prompts each")
    if not {"text", "category"} & columns.keys():  # columns named by the caller are taken as they are
        records = published(records) or records
    text = _needed(records, source, "text", TEXT_COLUMNS, columns)
    category = _needed(records, source, "category", CATEGORY_COLUMNS, columns)
    family = _column(records, source, "family", FAMILY_COLUMNS, columns)
    identity = _column(records, source, "id", ID_COLUMNS, columns)
    texts = _values(records, text, source)
    categories = _values(records, category, source)
    ids = _values(records, identity, source) if identity else tuple(f"prompt-{i + 1}" for i in range(len(records)))
    families = _values(records, family, source) if family else ids
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise InputError(f"ids of prompts must be unique; {source!r} repeats {shorten(repeated, most=3)}: rename them")
    return Prompts(source, ids, texts, categories, families, has_families=family is not None)


def _column(
    records: list[dict[str, Any]], source: str, field: str, known: Sequence[str], columns: Mapping[str, str]
) -> str | None:
    """Return the column that holds a field: the one named, else the first known name that is there, else None."""
    names = list(records[0])
    if field in columns:
        if columns[field] not in names:
            raise InputError(f"{source!r} has no column {columns[field]!r}; its columns are {shorten(names)}")
        return columns[field]
    lower = {str(name).strip().lower(): name for name in reversed(names) if name is not None}
    return next((lower[name] for name in known if name in lower), None)


def _needed(
    records: list[dict[str, Any]], source: str, field: str, known: Sequence[str], columns: Mapping[str, str]
) -> str:
    found = _column(records, source, field, known, columns)
    if found is None:
        raise InputError(
            f"{source!r} needs a column for the {field} of a prompt ({', '.join(known)}); its columns are "
            f"{shorten(list(records[0]))}: rename one, or name it with columns"
        )
    return found


def _values(records: list[dict[str, Any]], column: str, source: str) -> tuple[str, ...]:
    values = [record.get(column) for record in records]
    missing = [i + 1 for i, value in enumerate(values) if value is None or not str(value).strip()]
    if missing:
        raise InputError(
            f"every prompt needs a {column!r}; in {source!r} records {shorten(missing, most=5)} have none: "
            "fill or leave them out"
        )
    return tuple(str(value).strip() for value in values)


def pair_index(prompts: Prompts, one: str, other: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (pairs, 2): positions of the prompt of category `one` and of `other` in each family of a paired set."""
    if not prompts.is_paired(one, other):
        raise InputError(
            f"families must hold exactly one {one!r} and one {other!r} prompt; {prompts.source!r} has others"
        )
    place = {(family, c): i for i, (family, c) in enumerate(zip(prompts.families, prompts.categories, strict=True))}
    wanted = dict.fromkeys(family for family, c in place if c == one)
    return np.array([(place[family, one], place[family, other]) for family in wanted], dtype=np.int64)
