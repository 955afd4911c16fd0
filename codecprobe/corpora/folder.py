"""Any folder of speakers: SPEAKER/SESSION/FILE or SPEAKER/FILE.

Conventions. The first folder names the speaker, the folders between it and a file name the session
(`SPEAKER/SESSION`); where files lie directly in a speaker's folder they are one session named like the speaker,
because files of one folder may come from one recording. Clip id: the path below the folder, without suffix. A text
file of the same stem holds the clip's text. What is no audio is listed.
"""

from collections import Counter
from functools import partial
from pathlib import Path

from codecprobe.audio import AUDIO_SUFFIXES, file_hash, read_audio
from codecprobe.corpora.corpus import Clip, Corpus, Problem
from probecore.errors import InputError, shorten


def read_folder(folder: str | Path) -> Corpus:
    """Read a folder of speakers.

    Raises `InputError` for a missing folder, for one without a speaker's folder with audio in it, and when a clip lies
    there in two formats.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give a folder of SPEAKER/SESSION/FILE")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    audio = [path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES]
    inside = [path for path in audio if path.parent != folder]
    if not inside:
        where = "lie directly in it" if audio else "were found"
        raise InputError(
            f"{folder} must hold SPEAKER/SESSION/FILE; {len(audio)} audio files {where}: "
            "make one folder per speaker, or give a CSV with the columns path, speaker and session"
        )
    names = [_name(path, folder) for path in inside]
    doubles = sorted(name for name, count in Counter(names).items() if count > 1)
    if doubles:
        raise InputError(f"{folder}: a clip must lie there once; {shorten(doubles)} exist in two formats: remove one")
    clips = tuple(_clip(path, folder) for path in inside)
    known = {*inside, *(path.with_suffix(".txt") for path in inside)}
    problems = tuple(Problem(path.relative_to(folder).as_posix(), _reason(path)) for path in paths if path not in known)
    facts = {"layout": "SPEAKER/SESSION/FILE"}
    return Corpus(folder.name, clips, problems, notes=one_session_note(clips), facts=facts)


def one_session_note(clips: tuple[Clip, ...]) -> tuple[str, ...]:
    """Return the warning a reader needs when no speaker, or not every speaker, has two sessions."""
    sessions: dict[str, set[str]] = {}
    for clip in clips:
        sessions.setdefault(clip.speaker, set()).add(clip.session)
    single = sorted(speaker for speaker, names in sessions.items() if len(names) == 1)
    if not single:
        return ()
    if len(single) == len(sessions):
        return (
            "every speaker has one session, so voice and recording cannot be told apart: "
            "a p-value for the speaker will be refused",
        )
    return (f"speakers with one session only, who cannot be tested on a new one: {shorten(single)}",)


def _clip(path: Path, folder: Path) -> Clip:
    speaker, *between = path.relative_to(folder).parts[:-1]
    text = path.with_suffix(".txt")
    return Clip(
        clip_id=_name(path, folder),
        speaker=speaker,
        session="/".join([speaker, *between]),
        read=partial(read_audio, path),
        content_hash=partial(file_hash, path),
        text=(text.read_text(encoding="utf-8").strip() or None) if text.is_file() else None,
    )


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _reason(path: Path) -> str:
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return "lies in no speaker's folder"
    return f"not named as audio ({', '.join(sorted(AUDIO_SUFFIXES))})"
