"""Corpus: clips of speech, each with the speaker, the session it was recorded in and, where known, its text.

A session is one sitting in one acoustic condition (a LibriSpeech chapter). It is what must be new at test, because
a recording recognises itself. Times are in seconds, frequencies in Hz. A clip's audio is read when it is asked
for; a clip that cannot be read raises `InputError` with the reason and becomes a `Problem`, never a score.
"""

from collections.abc import Callable, Mapping, Sequence
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

    def sample(
        self,
        speakers: int | None = None,
        clips: int | None = None,
        seed: int = 0,
        refuse: Callable[[Clip], str] = lambda clip: "",
    ) -> "Corpus":
        """Draw `speakers` speakers and `clips` clips of each, spread over each speaker's sessions; None means all.

        Speakers are drawn without replacement; within a speaker, sessions take turns, so that 5 clips of a speaker
        with 3 sessions come 2 + 2 + 1. `refuse` says why a clip cannot be used ("" when it can); when clips are
        drawn the next one takes its place and it is listed in `problems`.

        Raises `InputError` when there are fewer speakers or clips than asked for.
        """
        if speakers is not None and speakers > len(self.speakers):
            raise InputError(f"--speakers must be at most the {len(self.speakers)} of {self.name}; got {speakers}")
        rng = generator(seed, "corpus sample")
        chosen = {str(name) for name in rng.permutation(self.speakers)[: speakers or None]}
        if clips is None:
            return replace(self, clips=tuple(clip for clip in self.clips if clip.speaker in chosen))
        kept: set[str] = set()
        refused: list[Problem] = []
        for speaker in sorted(chosen):
            drawn = 0
            for clip in _in_turns([clip for clip in self.clips if clip.speaker == speaker], rng):
                if drawn == clips:
                    break
                reason = refuse(clip)
                if reason:
                    refused.append(Problem(clip.clip_id, reason))
                else:
                    kept.add(clip.clip_id)
                    drawn += 1
            if drawn < clips:
                raise InputError(f"--clips must be at most the {drawn} usable clips of speaker {speaker}; got {clips}")
        kept_clips = tuple(clip for clip in self.clips if clip.clip_id in kept)
        return replace(self, clips=kept_clips, problems=(*self.problems, *refused))


def _in_turns(clips: Sequence[Clip], rng: np.random.Generator) -> list[Clip]:
    """Return the clips of one speaker in random order, one of each session in turn."""
    queues: dict[str, list[Clip]] = {}
    for clip in clips:
        queues.setdefault(clip.session, []).append(clip)
    order = [list(queues.values())[i] for i in rng.permutation(len(queues))]
    shuffled = [[queue[i] for i in rng.permutation(len(queue))] for queue in order]
    return [queue[turn] for turn in range(max(map(len, shuffled))) for queue in shuffled if turn < len(queue)]
