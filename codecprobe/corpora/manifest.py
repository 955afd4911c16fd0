"""A corpus from a CSV table: one row per clip.

Conventions. Columns `path` and `speaker` are required, `session` and `text` optional, every other column becomes a
label. Paths are relative to the table. Without `session` a speaker is one session. A session belongs to one speaker:
where speakers share session names (1, 2, 3, ...), they become `SPEAKER/SESSION`. Clip id: the file's stem, or the
path as written where stems repeat.
"""

import csv
from collections import Counter
from functools import partial
from pathlib import Path

from codecprobe.audio import file_hash, read_audio
from codecprobe.corpora.corpus import Clip, Corpus, Problem
from codecprobe.corpora.folder import one_session_note
from probecore.errors import InputError, shorten

REQUIRED = ("path", "speaker")
RESERVED = (*REQUIRED, "session", "text")


def read_manifest(table: str | Path) -> Corpus:
    """Read a CSV table of clips (UTF-8, comma, a header row).

    Raises `InputError` for a missing table, missing columns, rows of another length, empty speakers or sessions,
    a path that is listed twice, and when none of the files exist; single missing files are listed as problems.
    """
    table = Path(table)
    if not table.is_file():
        raise InputError(f"no table {table}: give a CSV with the columns path, speaker, session (optional), text")
    rows, has_session = _rows(table)
    stems = Counter(Path(row["path"]).stem for row in rows)
    shared = has_session and len({(row["session"], row["speaker"]) for row in rows}) > len(
        {row["session"] for row in rows}
    )
    clips, problems = [], []
    for row in rows:
        path = table.parent / row["path"]
        if not path.is_file():
            problems.append(Problem(row["path"], "no such file"))
            continue
        stem = Path(row["path"]).stem
        session = row["session"] if has_session else row["speaker"]
        clips.append(
            Clip(
                clip_id=stem if stems[stem] == 1 else row["path"],
                speaker=row["speaker"],
                session=f"{row['speaker']}/{session}" if shared else session,
                read=partial(read_audio, path),
                content_hash=partial(file_hash, path),
                text=row.get("text") or None,
                labels={name: value for name, value in row.items() if name not in RESERVED and value},
            )
        )
    if not clips:
        raise InputError(f"{table.name}: none of its {len(rows)} files exist; paths are relative to the table")
    notes = ["speakers share session names, so sessions are named SPEAKER/SESSION"] if shared else []
    found = tuple(clips)
    return Corpus(table.stem, found, tuple(problems), (*notes, *one_session_note(found)), facts={"layout": "CSV table"})


def _rows(table: Path) -> tuple[list[dict[str, str]], bool]:
    """Return the checked rows and whether they name sessions."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, line) for line in reader if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table.name}: not a CSV table in UTF-8: {error}") from error
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise InputError(f"{table.name} must have the columns path and speaker; got {shorten(header) or 'none'}")
    doubled = sorted(name for name, count in Counter(header).items() if count > 1)
    if doubled:
        raise InputError(f"{table.name}: a column must be named once; {shorten(doubled)} repeat")
    if not lines:
        raise InputError(f"{table.name}: a corpus needs at least 1 row; got 0")
    wrong = [number for number, line in lines if len(line) != len(header)]
    if wrong:
        raise InputError(
            f"{table.name}: each line must have {len(header)} fields; lines {shorten(wrong, most=5)} do not"
        )
    rows = [{name: value.strip() for name, value in zip(header, line, strict=True)} for _, line in lines]
    for name in (*REQUIRED, *(["session"] if "session" in header else [])):
        empty = [number for (number, _), row in zip(lines, rows, strict=True) if not row[name]]
        if empty:
            raise InputError(f"{table.name}: every clip needs a {name}; lines {shorten(empty, most=5)} have none")
    twice = [path for path, count in Counter(row["path"] for row in rows).items() if count > 1]
    if twice:
        raise InputError(f"{table.name}: a file must be listed once; {shorten(twice, most=5)} repeat")
    return rows, "session" in header
