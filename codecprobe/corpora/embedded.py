"""The embedded corpus: synthetic voices whose speaker, session, phones and pitch are known exactly.

Conventions: 16 kHz; a session is one recording channel of one speaker; texts are drawn for each session from one pool,
independently of who speaks, so sessions are exchangeable in everything but the voice and its channel. Nothing lies on
disk: a clip is synthesised when it is read. It is a positive control with a known answer, not speech of people.
"""

from functools import partial

import numpy as np

from codecprobe.corpora.corpus import Audio, Clip, Corpus, Phone
from codecprobe.corpora.phones import phones_of, sentence
from codecprobe.corpora.voices import (
    RATE_HZ,
    Channel,
    Voice,
    draw_channel,
    draw_voice,
    is_voiced,
    pitch_contour,
    record,
    speak,
    time_phones,
)
from probecore.provenance import digest
from probecore.seeds import generator
from probecore.validation import at_least

RECIPE = "embedded corpus 7"  # raise when one seed gives another sound
TYPICAL_SEED = 3  # a draw in which texts happen to tell no speaker (p = .73, true phones, seeds 0 to 23: mean .46)
N_TEXTS = 24
NOTE = "synthetic voices from a recipe: a positive control with a known answer, not speech of people"


def embedded_corpus(seed: int = TYPICAL_SEED, speakers: int = 10, sessions: int = 3, clips: int = 6) -> Corpus:
    """Return `speakers` x `sessions` x `clips` clips of 3.2 to 4.2 s; another seed gives other people and texts.

    Sexes alternate. Raises `InputError` for sizes below 1 or more clips in a session than the pool has texts (24).
    """
    at_least(speakers, 1, "speakers")
    at_least(sessions, 1, "sessions")
    at_least(N_TEXTS - at_least(clips, 1, "clips"), 0, f"{N_TEXTS} texts less the clips of a session")
    pool = [sentence(generator(seed, RECIPE, "text", i)) for i in range(N_TEXTS)]
    made = []
    for s in range(speakers):
        voice = draw_voice(generator(seed, RECIPE, "voice", s), "FM"[s % 2])
        for r in range(sessions):
            channel = draw_channel(generator(seed, RECIPE, "channel", s, r))
            texts = generator(seed, RECIPE, "texts of a session", s, r).choice(N_TEXTS, clips, replace=False)
            made += [_clip(seed, (s, r, k), voice, channel, pool[t], f"text{t:02d}") for k, t in enumerate(texts)]
    name = "embedded" if seed == TYPICAL_SEED else f"embedded:{seed}"
    facts = {"recipe": RECIPE, "seed": seed, "speakers": speakers, "sessions": sessions, "clips": clips}
    return Corpus(name, tuple(made), notes=(NOTE,), synthetic=True, facts=facts)


def _clip(seed: int, place: tuple[int, int, int], voice: Voice, channel: Channel, text: str, text_id: str) -> Clip:
    speaker, session, number = place
    rng = generator(seed, RECIPE, "prosody", *place)
    phones = time_phones(phones_of(text), float(rng.uniform(3.2, 4.2)), rng)
    pitch = pitch_contour(voice, phones, rng)
    name = f"v{speaker:02d}-s{session}-{number:02d}"
    return Clip(
        clip_id=name,
        speaker=f"v{speaker:02d}",
        session=f"v{speaker:02d}-s{session}",
        read=partial(_read, seed, place, voice, channel, phones, tuple(pitch.tolist())),
        content_hash=partial(digest, RECIPE, repr((seed, place, voice, channel, phones))),
        text=text,
        phones=phones,
        f0_hz=np.where(is_voiced(phones), pitch, 0.0),
        labels={"sex": voice.sex, "text_id": text_id},
    )


def _read(
    seed: int,
    place: tuple[int, int, int],
    voice: Voice,
    channel: Channel,
    phones: tuple[Phone, ...],
    pitch: tuple[float, ...],
) -> Audio:
    rng = generator(seed, RECIPE, "sound", *place)
    return Audio(record(speak(voice, phones, np.array(pitch), rng), channel, rng), RATE_HZ)
