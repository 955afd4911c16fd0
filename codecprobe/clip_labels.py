"""Labels of whole clips (sex, session, text, any column of a corpus): what carries them, and what must be new at test.

    constant for each speaker    unit speaker, leave speakers out (sex, accent)
    constant for each session    unit session, leave sessions out, exchanged inside speakers where it varies there
    session itself               unit clip, leave clips out, exchanged inside speakers: the recording, given the voice
    text                         unit clip, leave speakers out, exchanged inside sessions
    varies inside sessions       unit clip, leave speakers out, exchanged inside sessions

A permutation mirrors how the label came about, folds mirror what is new: so a label of speakers is never tested on the
speaker it was learned from, and a session never by its speaker alone. A column of numbers with more than
10 different values is regressed on, every other is a class.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codecprobe.corpora.corpus import Clip
from probecore.errors import DesignError, InputError, shorten
from probecore.validation import constant_inside

MOST_CLASSES_OF_NUMBERS = 10


@dataclass(frozen=True)
class ClipLabel:
    """A label of windows with its design; `kept` (items,) are the indices of the windows that take part.

    values, groups, units, blocks : (kept items,), blocks None where units are exchanged freely.
    """

    kept: tuple[int, ...] = field(repr=False)
    values: NDArray[Any] = field(repr=False)
    groups: NDArray[Any] = field(repr=False)
    units: NDArray[Any] = field(repr=False)
    blocks: NDArray[Any] | None = field(repr=False)
    real: bool
    folds: str
    notes: tuple[str, ...]


def clip_label(name: str, clips: Sequence[Clip]) -> ClipLabel:
    """Return the label `name` of some clips and its design.

    Raises `InputError` for a name that no clip has, `DesignError` where the label cannot be told from what carries it.
    """
    if name == "speaker":
        raise InputError("--target speaker has a command of its own: codecprobe speaker-probe")
    if name == "session":
        return _session(clips)
    if name == "text":
        return _text(clips)
    missing = [clip.clip_id for clip in clips if not clip.labels.get(name)]
    if len(missing) == len(clips):
        known = sorted(set.intersection(*(set(clip.labels) for clip in clips)))
        raise InputError(
            "--target must be sex, session, phone, text, f0, energy (these also -normalised) or a column of the "
            f"corpus; got {name!r}, and the columns are {shorten(known) or 'none'}: add it to the manifest"
        )
    kept = [i for i, clip in enumerate(clips) if clip.labels.get(name)]
    notes = [f"{len(missing)} clips without a {name} were left out: {shorten(missing, most=5)}"] if missing else []
    return _column(name, [clips[i] for i in kept], kept, notes)


def _column(name: str, clips: Sequence[Clip], kept: Sequence[int], notes: list[str]) -> ClipLabel:
    text = [clip.labels[name] for clip in clips]
    values, real = _numbers(text)
    if len(set(text)) < 2:
        raise DesignError(f"--target {name} has one value only, {text[0]!r}: nothing to tell apart")
    speaker, session, clip_id = _places(clips)
    if constant_inside(values, speaker):
        units, groups, blocks = speaker, speaker, None
        said = "every speaker has one value: the unit is the speaker, speakers are left out"
    elif constant_inside(values, session):
        units, groups, blocks = session, session, _inside(speaker, session)
        said = "every session has one value: the unit is the session, sessions are left out, exchanged inside speakers"
    else:
        units, groups, blocks = clip_id, speaker, _inside(session, clip_id)
        said = (
            "the value varies inside sessions: the unit is the clip, speakers are left out, exchanged inside sessions"
        )
    notes.append(f"{name}: {said}" + ("; a number, regressed on" if real else f"; {_counts(values, units)}"))
    return ClipLabel(tuple(kept), values, groups, units, blocks, real, "auto", tuple(notes))


def _session(clips: Sequence[Clip]) -> ClipLabel:
    sessions: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        sessions[clip.speaker][clip.session] += 1
    fit = {s: {name for name, n in own.items() if n > 1} for s, own in sessions.items()}
    usable = {s for s, own in fit.items() if len(own) > 1}
    kept = [i for i, clip in enumerate(clips) if clip.speaker in usable and clip.session in fit[clip.speaker]]
    if not kept:
        raise DesignError(
            "session cannot be told from speaker: no speaker has 2 sessions of 2 or more clips; record more of each"
        )
    speaker, session, clip_id = _places([clips[i] for i in kept])
    notes = [
        f"session: {len(set(session.tolist()))} sessions of {len(usable)} speakers; the unit is the clip; clips are "
        "left out, and exchanged between the sessions of their speaker: chance knows the voice, p is for the recording",
        "what is read in a session counts as the session: with texts of its own (LibriSpeech), words tell it too",
    ]
    if len(kept) < len(clips):
        notes.append(f"{len(clips) - len(kept)} clips of speakers without 2 sessions of 2 clips were left out")
    return ClipLabel(tuple(kept), session, clip_id, clip_id, speaker, False, "group", tuple(notes))


def _text(clips: Sequence[Clip]) -> ClipLabel:
    speakers: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.text:
            speakers[clip.text].add(clip.speaker)
    shared = {text for text, who in speakers.items() if len(who) > 1}
    if len(shared) < 2:
        raise DesignError(
            f"--target text needs 2 or more texts that 2 or more speakers say; got {len(shared)} (of "
            f"{len(speakers)} texts): take parallel recordings, or --target phone where phones are known"
        )
    kept = [i for i, clip in enumerate(clips) if clip.text in shared]
    speaker, session, clip_id = _places([clips[i] for i in kept])
    texts = sorted(shared)
    values = np.array([f"text {texts.index(str(clips[i].text)):03d}" for i in kept])
    notes = [
        f"text: {len(texts)} texts said by 2 or more speakers; the unit is the clip, speakers are left out, texts are "
        "exchanged inside sessions",
        "a window is the first seconds of its clip, so a text is recognised by its beginning; no feature knows order",
    ]
    if len(kept) < len(clips):
        notes.append(f"{len(clips) - len(kept)} clips whose text one speaker says, or without a text, were left out")
    return ClipLabel(tuple(kept), values, speaker, clip_id, _inside(session, clip_id), False, "group", tuple(notes))


def _places(clips: Sequence[Clip]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return tuple(np.array([getattr(clip, name) for clip in clips]) for name in ("speaker", "session", "clip_id"))  # type: ignore[return-value]


def _inside(blocks: NDArray[Any], units: NDArray[Any]) -> NDArray[Any] | None:
    """Return the blocks to exchange inside; None where each holds one unit, so that nothing could be exchanged."""
    several = Counter(block for block, _ in set(zip(blocks.tolist(), units.tolist(), strict=True)))
    return blocks if max(several.values()) > 1 else None


def _numbers(text: Sequence[str]) -> tuple[NDArray[Any], bool]:
    try:
        values = np.array([float(value) for value in text])
    except ValueError:
        return np.array(text), False
    real = len(np.unique(values)) > MOST_CLASSES_OF_NUMBERS and bool(np.isfinite(values).all())
    return (values, True) if real else (np.array(text), False)


def _counts(values: NDArray[Any], units: NDArray[Any]) -> str:
    of_unit = dict(zip(units.tolist(), values.tolist(), strict=True))
    return shorten([f"{value}: {n}" for value, n in sorted(Counter(of_unit.values()).items())])
