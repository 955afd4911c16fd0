"""Tokenized corpora as `datasets` (Arrow) data sets, in memory and on disk.

Conventions. One row per clip: clip_id, speaker, session, text, duration_s (seconds), n_samples (at the codec's rate),
codes (frames x layers, nested lists of int64), phones and f0_hz where the corpus knows them (one value per 10 ms, 0
where unvoiced), and one column per label of the corpus. On disk the data set lies beside `provenance.json`: codec,
certificate, versions and every file that could not be used.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codecprobe.codecs.codec import CodecInfo
from codecprobe.corpora.corpus import Audio, Clip, Phone, Problem
from codecprobe.tokenization import TokenizedCorpus
from probecore.errors import InputError, shorten
from probecore.provenance import digest, digest_of_files, versions

if TYPE_CHECKING:
    from datasets import Dataset

PROVENANCE = "provenance.json"
COLUMNS = ("clip_id", "speaker", "session", "text", "duration_s", "n_samples", "codes", "phones", "f0_hz")


def to_dataset(tokenized: TokenizedCorpus) -> "Dataset":
    """Return the data set of a tokenized corpus; `row["codes"]` is a list of frames, each a list of layers.

    Raises `InputError` when a label of the corpus has the name of a column.
    """
    from datasets import Dataset, Features, Value

    labels = _label_names(tokenized)
    clips = tokenized.clips
    columns: dict[str, list[Any]] = {
        "clip_id": [clip.clip_id for clip in clips],
        "speaker": [clip.speaker for clip in clips],
        "session": [clip.session for clip in clips],
        "text": [clip.text for clip in clips],
        "duration_s": list(tokenized.durations_s),
        "n_samples": list(tokenized.n_samples),
        "codes": [codes.tolist() for codes in tokenized.codes],
        "phones": [None if clip.phones is None else [asdict(phone) for phone in clip.phones] for clip in clips],
        "f0_hz": [None if clip.f0_hz is None else clip.f0_hz.tolist() for clip in clips],
        **{name: [clip.labels.get(name) for clip in clips] for name in labels},
    }
    text, number = Value("string"), Value("float64")
    features = {
        **dict.fromkeys(("clip_id", "speaker", "session", "text"), text),
        "duration_s": number,
        "n_samples": Value("int64"),
        "codes": [[Value("int64")]],
        "phones": [{"name": text, "start_s": number, "end_s": number}],
        "f0_hz": [number],
        **dict.fromkeys(labels, text),
    }
    return Dataset.from_dict(columns, features=Features(features))


def save_tokenized(tokenized: TokenizedCorpus, folder: str | Path) -> Path:
    """Write the data set (`datasets.load_from_disk(folder)` reads it) and its provenance; return the folder.

    A folder that holds this very data set, its files unharmed, is left as it is. Raises `InputError` when the folder
    holds something else.
    """
    folder = Path(folder)
    record = _record(tokenized)
    if _holds(folder, record):
        return folder
    from datasets import disable_progress_bars, enable_progress_bars
    from datasets.utils import are_progress_bars_disabled

    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / PROVENANCE).is_file())):
        raise InputError(f"{folder} must be empty, new or an earlier data set of this kind: name another folder")
    (folder / PROVENANCE).unlink(missing_ok=True)  # a half-written data set is none
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        to_dataset(tokenized).save_to_disk(str(folder))
    finally:
        if bars:
            enable_progress_bars()
    record["files"] = _files_of(folder)
    (folder / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def load_tokenized(folder: str | Path) -> TokenizedCorpus:
    """Read what `save_tokenized` wrote. The clips have no audio: `clip.read()` raises `InputError`.

    Raises `InputError` when the folder holds no such data set.
    """
    from datasets import load_from_disk

    path = Path(folder) / PROVENANCE
    if not path.is_file():
        raise InputError(f"{folder} holds no tokenized corpus: give a folder that codecprobe tokenize --out wrote")
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = load_from_disk(str(folder)).to_list()
    codec = record["codec"]
    return TokenizedCorpus(
        corpus=record["corpus"],
        clips=tuple(_clip(row, record["labels"]) for row in rows),
        codes=tuple(np.array(row["codes"], dtype=np.int64) for row in rows),
        n_samples=tuple(row["n_samples"] for row in rows),
        durations_s=tuple(row["duration_s"] for row in rows),
        problems=tuple(Problem(**problem) for problem in record["problems"]),
        codec=CodecInfo(
            **{
                **codec,
                "codebook_sizes": tuple(codec["codebook_sizes"]),
                "parallel_groups": tuple(map(tuple, codec["parallel_groups"])),
            }
        ),
        certificate=record["certificate"],
        notes=tuple(record["notes"]),
        synthetic=record["synthetic"],
        facts=record["facts"],
        n_cached=len(rows),
    )


def _record(tokenized: TokenizedCorpus) -> dict[str, Any]:
    """Return how the data set was made, and the hash of all that is in it, in JSON types."""
    whole = [
        repr((clip.clip_id, clip.speaker, clip.session, clip.text, clip.phones, sorted(clip.labels.items())))
        for clip in tokenized.clips
    ]
    pitch = [b"" if clip.f0_hz is None else clip.f0_hz.tobytes() for clip in tokenized.clips]
    codes = [np.ascontiguousarray(codes, dtype=np.int64).tobytes() for codes in tokenized.codes]
    lengths = repr((tokenized.durations_s, tokenized.n_samples))
    record = {
        "corpus": tokenized.corpus,
        "codec": asdict(tokenized.codec),
        "certificate": dict(tokenized.certificate),
        "notes": list(tokenized.notes),
        "synthetic": tokenized.synthetic,
        "facts": dict(tokenized.facts),
        "labels": _label_names(tokenized),
        "problems": [asdict(problem) for problem in tokenized.problems],
        "versions": versions(),
        "content": digest(lengths, *whole, *pitch, *codes),
    }
    plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return plain


def _holds(folder: Path, record: Mapping[str, Any]) -> bool:
    """Return whether the folder holds the data set of this record, every file as it was written."""
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == {**record, "files": _files_of(folder)})


def _files_of(folder: Path) -> str:
    return digest_of_files(path for path in folder.iterdir() if path.is_file() and path.name != PROVENANCE)


def _label_names(tokenized: TokenizedCorpus) -> list[str]:
    names = sorted({name for clip in tokenized.clips for name in clip.labels})
    taken = [name for name in names if name in COLUMNS]
    if taken:
        raise InputError(f"labels of a corpus must not have the name of a column; got {shorten(taken)}: rename them")
    return names


def _clip(row: Mapping[str, Any], labels: list[str]) -> Clip:
    return Clip(
        clip_id=row["clip_id"],
        speaker=row["speaker"],
        session=row["session"],
        read=_no_audio(row["clip_id"]),
        content_hash=_no_audio(row["clip_id"]),
        text=row["text"],
        phones=None if row["phones"] is None else tuple(Phone(**phone) for phone in row["phones"]),
        f0_hz=None if row["f0_hz"] is None else np.array(row["f0_hz"], dtype=np.float64),
        labels={name: row[name] for name in labels if row[name] is not None},
    )


def _no_audio(clip_id: str) -> "Callable[[], Any]":
    def read() -> Audio:
        raise InputError(f"{clip_id}: read from a data set of codes, which holds no audio: open the corpus instead")

    return read
