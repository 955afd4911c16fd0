"""LibriSpeech from a folder in its original layout (Panayotov et al., ICASSP 2015).

Conventions. A part is a folder PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac with one
SPEAKER-CHAPTER.trans.txt per chapter; SPEAKERS.TXT lies beside the part. Session: one chapter, `SPEAKER-CHAPTER`.
Clip id: the file's stem. Nothing is decoded before it is asked for; whatever does not fit the layout is listed.
"""

import re
from collections import Counter
from functools import partial
from pathlib import Path

from codecprobe.audio import AUDIO_SUFFIXES, file_hash, read_audio
from codecprobe.corpora.corpus import Clip, Corpus, Problem
from codecprobe.corpora.folder import one_session_note
from probecore.errors import InputError, shorten

LAYOUT = "PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac"
_STEM = re.compile(r"(\d+)-(\d+)-(\d+)")


def is_librispeech(folder: Path) -> bool:
    """Tell whether a folder holds at least one clip in the layout of a part."""
    return any(_is_clip(path) for path in folder.glob("*/*/*"))


def read_librispeech(folder: str | Path) -> Corpus:
    """Read one part of LibriSpeech, such as `.../LibriSpeech/dev-clean`.

    Raises `InputError` for a missing folder, for the folder above the parts, and for any other layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give one part of LibriSpeech, such as LibriSpeech/dev-clean")
    parts = sorted(inner.name for inner in folder.iterdir() if inner.is_dir() and is_librispeech(inner))
    if parts:
        raise InputError(f"{folder} holds the parts {shorten(parts)}: give one of them, parts are never mixed")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    audio = [path for path in paths if _is_clip(path) and path.parents[2] == folder]
    if not audio:
        raise InputError(f"{folder} is not a part of LibriSpeech: no file lies at {LAYOUT}")
    sexes, table_problems = _read_speakers(folder)
    texts, text_problems = _read_texts(folder, audio)
    expected = {*audio, *(_transcript(path.parent) for path in audio), folder / "SPEAKERS.TXT"}
    strays = [Problem(str(path.relative_to(folder)), f"not at {LAYOUT}") for path in paths if path not in expected]
    clips = tuple(_clip(path, texts.get(path.stem), sexes) for path in audio)
    doubles = sorted(name for name, count in Counter(clip.clip_id for clip in clips).items() if count > 1)
    if doubles:
        raise InputError(f"{folder}: a clip must lie there once; {shorten(doubles)} exist in two formats: remove one")
    facts = {"layout": "LibriSpeech", "part": folder.name}
    problems = (*strays, *text_problems, *table_problems)
    return Corpus(f"LibriSpeech {folder.name}", clips, problems, one_session_note(clips), facts=facts)


def _is_clip(path: Path) -> bool:
    """Tell whether name and place agree: SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE with an audio suffix."""
    match = _STEM.fullmatch(path.stem)
    return (
        match is not None
        and path.suffix.lower() in AUDIO_SUFFIXES
        and match.group(1, 2) == (path.parent.parent.name, path.parent.name)
    )


def _clip(path: Path, text: str | None, sexes: dict[str, str]) -> Clip:
    speaker, chapter, _ = path.stem.split("-")
    labels = {"sex": sexes[speaker]} if speaker in sexes else {}
    return Clip(
        clip_id=path.stem,
        speaker=speaker,
        session=f"{speaker}-{chapter}",
        read=partial(read_audio, path),
        content_hash=partial(file_hash, path),
        text=text,
        labels=labels,
    )


def _transcript(chapter: Path) -> Path:
    return chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"


def _read_texts(folder: Path, audio: list[Path]) -> tuple[dict[str, str], list[Problem]]:
    """Return texts by clip id, and a problem per chapter whose clips lack theirs."""
    chapters: dict[Path, list[str]] = {}
    for path in audio:
        chapters.setdefault(path.parent, []).append(path.stem)
    texts: dict[str, str] = {}
    problems = []
    for chapter, names in chapters.items():
        file = _transcript(chapter)
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        texts |= {name: text for name, _, text in (line.strip().partition(" ") for line in lines) if text}
        lacking = [name for name in names if name not in texts]
        if lacking:
            reason = f"no text for {shorten(lacking, most=3)}: kept without text"
            problems.append(Problem(str(file.relative_to(folder)), reason))
    return texts, problems


def _read_speakers(folder: Path) -> tuple[dict[str, str], list[Problem]]:
    """Return the sex of each speaker from SPEAKERS.TXT beside (or in) the part; a name may itself hold a `|`."""
    file = next((home / "SPEAKERS.TXT" for home in (folder.parent, folder) if (home / "SPEAKERS.TXT").is_file()), None)
    if file is None:
        return {}, [Problem("SPEAKERS.TXT", "not beside the part: the speakers' sex is unknown")]
    sexes: dict[str, str] = {}
    problems = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith(";"):
            continue
        fields = [field.strip() for field in line.split("|", maxsplit=4)]
        if len(fields) == 5 and fields[1] in ("F", "M"):
            sexes[fields[0]] = fields[1]
        else:
            problems.append(Problem(file.name, f"line {number} is not ID | SEX | SUBSET | MINUTES | NAME"))
    return sexes, problems
