"""Prompts with all their columns: what captures and probes take their texts, labels, families and templates from.

Conventions. A table has one entry per prompt in every column; cells are text, "" where there is none. A prompt is a
text, or chat messages where the source has a column "messages". Public sets in their authors' layout have the columns
of `lmprobe.prompt_sets` beside their own. Nothing but the text is required: a label is any column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmprobe.models import Prompt
from lmprobe.prompt_sets import published
from lmprobe.prompts import FAMILY_COLUMNS, ID_COLUMNS, TEXT_COLUMNS, Prompts, read_prompts, read_records
from probecore.errors import InputError, shorten
from probecore.provenance import digest_of_record

MESSAGES = "messages"
TEMPLATE_COLUMNS = ("template", "template_id")


@dataclass(frozen=True)
class PromptTable:
    """Prompts in the order of their source.

    names : all different. texts : what the prompts say (of messages, one after the other). prompts : as a model takes
    them. columns : name -> (prompts,) text. family : the column of families, None where there is none.
    """

    source: str
    names: tuple[str, ...] = field(repr=False)
    texts: tuple[str, ...] = field(repr=False)
    prompts: tuple[Prompt, ...] = field(repr=False)
    columns: Mapping[str, tuple[str, ...]] = field(repr=False)
    family: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """Hash of everything but the source's name."""
        return digest_of_record({"names": self.names, "prompts": self.prompts, "columns": dict(self.columns)})

    def column(self, name: str) -> tuple[str, ...]:
        """Return one column; raises `InputError` where there is none of that name."""
        if name not in self.columns:
            raise InputError(
                f"{self.source!r} has no column {name!r}; its columns are {shorten(list(self.columns)) or 'none'}"
            )
        return self.columns[name]

    def take(self, index: Sequence[int]) -> PromptTable:
        """Return the prompts at these positions."""
        return PromptTable(
            self.source,
            tuple(self.names[i] for i in index),
            tuple(self.texts[i] for i in index),
            tuple(self.prompts[i] for i in index),
            {name: tuple(cells[i] for i in index) for name, cells in self.columns.items()},
            self.family,
        )


def read_table(
    sources: Sequence[str] | str | Prompts | PromptTable = "default", *, text: str | None = None,
    family: str | None = None,
) -> PromptTable:  # fmt: skip
    """Read prompts with all their columns.

    sources : one source as `load_prompts` takes it, or several "CATEGORY=SOURCE" as `read_prompts` takes them; none is
        the packaged set. text, family : columns that hold the text and name the family, where they have other names
        than `TEXT_COLUMNS` and `FAMILY_COLUMNS`; with `text` a public set is taken as it stands, all records of it.
    Raises `InputError` for a missing column, a prompt without text, a repeated name.
    """
    if isinstance(sources, PromptTable):
        return sources
    if isinstance(sources, Prompts):
        return _of_prompts(sources)
    given = [sources] if isinstance(sources, str) else [str(source) for source in sources]
    if len(given) > 1 or "marked" in given or ("=" in "".join(given) and not _is_source(given[0])):
        return _of_prompts(read_prompts(given, family=family))
    records, source = read_records(given[0] if given else "default")
    if not records:
        raise InputError(f"prompts {source!r} are empty: give at least 1 prompt")
    if text is None:
        records = _with_published(records)
    columns = [str(name) for name in records[0] if name is not None]
    if text is None and MESSAGES in columns:
        prompts, texts = _messages(records, source)
    else:
        place = _named(columns, text, TEXT_COLUMNS, source)
        if place is None:
            raise InputError(
                f"{source!r} needs a column for the text of a prompt ({', '.join(TEXT_COLUMNS)}, or {MESSAGES}); its "
                f"columns are {shorten(columns)}: rename one, or name it with --text"
            )
        texts = tuple(_cell(record.get(place)) for record in records)
        prompts = texts
    empty = [i + 1 for i, said in enumerate(texts) if not said]
    if empty:
        raise InputError(
            f"every prompt needs a text; in {source!r} records {shorten(empty, most=5)} have none: fill or leave them "
            "out"
        )
    cells = {
        name: tuple(_cell(record.get(name)) for record in records)
        for name in columns
        if not any(isinstance(record.get(name), (list, dict)) for record in records)
    }
    identity = _named(columns, None, ID_COLUMNS, source)
    names = cells[identity] if identity is not None else tuple(f"prompt-{i + 1}" for i in range(len(records)))
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"ids of prompts must be unique; {source!r} repeats {shorten(repeated, most=3)}: rename them")
    return PromptTable(source, names, texts, prompts, cells, _named(columns, family, FAMILY_COLUMNS, source))


def _is_source(name: str) -> bool:
    from pathlib import Path

    return Path(name).exists()


def _of_prompts(prompts: Prompts) -> PromptTable:
    columns = {"text": prompts.texts, "category": prompts.categories}
    if prompts.has_families:
        columns["family"] = prompts.families
    family = "family" if prompts.has_families else None
    return PromptTable(prompts.source, prompts.ids, prompts.texts, prompts.texts, columns, family)


def _with_published(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of a public set with the known columns beside their own; others as they are."""
    known = published(records)
    if known is None:
        return records
    return [{**own, **new} for own, new in zip(records, known, strict=True)] if len(known) == len(records) else known


def _named(columns: Sequence[str], given: str | None, known: Sequence[str], source: str) -> str | None:
    if given is not None:
        if given not in columns:
            raise InputError(f"{source!r} has no column {given!r}; its columns are {shorten(list(columns))}")
        return given
    lower = {name.strip().lower(): name for name in reversed(list(columns))}
    return next((lower[name] for name in known if name in lower), None)


def _messages(records: Sequence[Mapping[str, Any]], source: str) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    prompts = [record.get(MESSAGES) for record in records]
    broken = [
        i + 1
        for i, each in enumerate(prompts)
        if not isinstance(each, list)
        or not each
        or not all(isinstance(m, dict) and isinstance(m.get("role"), str) and m.get("content") for m in each)
    ]
    if broken:
        raise InputError(
            f"{MESSAGES} must be a list of {{'role', 'content'}}; in {source!r} records {shorten(broken, most=5)} have "
            "others: mend or leave them out"
        )
    talks: Any = [[{"role": m["role"], "content": str(m["content"])} for m in each] for each in prompts]  # type: ignore[union-attr]
    return tuple(talks), tuple("\n".join(m["content"] for m in each).strip() for each in talks)


def _cell(value: object) -> str:
    return "" if value is None else str(value).strip()
