"""Corpus: clips of speech, each with the speaker, the session it was recorded in and, where known, its text.

A session is one sitting in one acoustic condition (a LibriSpeech chapter). It is what must be new at test, because
a recording recognises itself. Times are in seconds, frequencies in Hz. A clip's audio is read when it is asked
for; a clip that cannot be read raises `InputError` with the reason and becomes a `Problem`, never a score.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError
from probecore.seeds import generator


@dataclass(frozen=True)
class Audio:
    """A mono waveform (samples,) float32 in [-1, 1] and its rate; `n_channels` is what the file held."""

    samples: NDArray[np.float32]
    sample_rate_hz: int
    n_channels: int = 1


@dataclass(frozen=True)
class Phone:
    """One phone and when it sounds."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Clip:
    """One utterance.

    read : returns its audio, or raises `InputError` with the reason why there is none.
    content_hash : hash of the audio file or recipe, part of the key of cached encodings.
    phones, f0_hz : exact truth where the corpus knows it (f0_hz: one value per 10 ms, 0 where unvoiced).
    labels : further columns (sex, style, ...), one value per clip.
    """

    clip_id: str
    speaker: str
    session: str
    read: Callable[[], Audio] = field(repr=False)
    content_hash: Callable[[], str] = field(repr=False)
    text: str | None = None
    phones: tuple[Phone, ...] | None = field(default=None, repr=False)
    f0_hz: NDArray[np.float64] | None = field(default=None, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A file that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """Clips in a fixed order, the files that could not be used, and what a reader must know about the data."""

    name: str
    clips: tuple[Clip, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    synthetic: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Distinct speakers, sorted."""
        return tuple(sorted({clip.speaker for clip in self.clips}))

    @property
    def sessions(self) -> tuple[str, ...]:
        """Distinct sessions, sorted."""
        return tuple(sorted({clip.session for clip in self.clips}))

    def sample(self, speakers: int | None = None, clips: int | None = None, seed: int = 0) -> "Corpus":
        """Draw `speakers` speakers and `clips` clips of each, spread over each speaker's sessions; None means all.

        Speakers are drawn without replacement; within a speaker, sessions take turns, so that 5 clips of a speaker
        with 3 sessions come 2 + 2 + 1. Raises `InputError` when there are fewer than asked for.
        """
        if speakers is not None and speakers > len(self.speakers):
            raise InputError(
                f"--speakers {speakers} asks for more speakers than the {len(self.speakers)} of {self.name}"
            )
        rng = generator(seed, "corpus sample")
        order = [str(s) for s in rng.permutation(self.speakers)]
        chosen = sorted(order[: speakers or len(order)])
        kept: set[str] = set()
        for speaker in chosen:
            queues: dict[str, list[str]] = {}
            for clip in self.clips:
                if clip.speaker == speaker:
                    queues.setdefault(clip.session, []).append(clip.clip_id)
            total = sum(map(len, queues.values()))
            if clips is not None and clips > total:
                raise InputError(f"--clips {clips} asks for more clips than the {total} of speaker {speaker}")
            shuffled = [list(rng.permutation(ids)) for ids in queues.values()]
            shuffled = [shuffled[i] for i in rng.permutation(len(shuffled))]
            turns = [ids[turn] for turn in range(max(map(len, shuffled))) for ids in shuffled if turn < len(ids)]
            kept |= {str(i) for i in turns[: clips or total]}
        return replace(self, clips=tuple(clip for clip in self.clips if clip.clip_id in kept))
