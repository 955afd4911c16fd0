"""Texts: plain texts without categories, from a file or from the packaged prompts."""

import csv
import json
from pathlib import Path

from lmprobe.prompts import TEXT_COLUMNS, load_prompts
from probecore.errors import InputError


def read_texts(source: str | Path) -> tuple[str, ...]:
    """Return texts: a line each of a .txt file, the text column of a .csv or .jsonl file, or the packaged prompts.

    source : a file, or "default". Empty lines are left out. Raises `InputError` when there is no such file, text or
    column.
    """
    if str(source) == "default":
        return load_prompts("default").texts
    path = Path(source)
    kind = path.suffix.lower()
    if not path.is_file() or kind not in (".txt", ".csv", ".jsonl"):
        raise InputError(
            f"texts must be a .txt, .csv or .jsonl file, or 'default'; got {path.name!r}: give such a file"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if kind == ".txt":
            found = lines
        else:
            records = list(csv.DictReader(lines)) if kind == ".csv" else [json.loads(x) for x in lines if x.strip()]
            column = next((name for name in TEXT_COLUMNS if records and name in records[0]), None)
            if column is None:
                raise InputError(f"{path.name!r} needs a column of texts ({', '.join(TEXT_COLUMNS)}): rename one")
            found = [str(record.get(column) or "") for record in records]
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, AttributeError) as error:
        raise InputError(f"{path.name!r} is not a readable {kind[1:]} file: {error}") from error
    texts = tuple(text.strip() for text in found if text.strip())
    if not texts:
        raise InputError(f"{path.name!r} holds no text: write one text per line")
    return texts
