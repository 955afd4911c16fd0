"""Drawing a design from a corpus: counts, spread over sessions, seeds, and what cannot be drawn."""

from collections import Counter

import numpy as np
import pytest

from codecprobe.corpora.corpus import Audio, Clip, Corpus
from probecore.errors import InputError


def corpus(speakers: int = 4, sessions: int = 3, clips: int = 4) -> Corpus:
    return Corpus("toy", tuple(
        Clip(f"{s}-{c}-{i}", f"s{s}", f"s{s}-{c}", lambda: Audio(np.ones(1, np.float32), 1), lambda: "")
        for s in range(speakers) for c in range(sessions) for i in range(clips)
    ))  # fmt: skip


def test_sessions_take_turns():
    drawn = corpus().sample(speakers=2, clips=5, seed=3)
    assert len(drawn.speakers) == 2 and len(drawn.clips) == 10
    for speaker in drawn.speakers:
        assert sorted(Counter(c.session for c in drawn.clips if c.speaker == speaker).values()) == [1, 2, 2]


def test_same_seed_same_draw_and_other_seeds_differ():
    ids = {seed: tuple(c.clip_id for c in corpus().sample(2, 5, seed).clips) for seed in range(20)}
    assert ids[3] == tuple(c.clip_id for c in corpus().sample(2, 5, 3).clips)
    assert len(set(ids.values())) > 10


def test_order_is_the_corpus_order_and_all_is_all():
    whole = corpus()
    assert whole.sample().clips == whole.clips
    ids = [c.clip_id for c in whole.clips]
    drawn = [ids.index(c.clip_id) for c in whole.sample(3, 2, 1).clips]
    assert drawn == sorted(drawn)


def test_a_refused_clip_is_replaced_and_named():
    drawn = corpus(1, 1, 4).sample(clips=3, refuse=lambda clip: "too short" if clip.clip_id == "0-0-2" else "")
    assert {c.clip_id for c in drawn.clips} == {"0-0-0", "0-0-1", "0-0-3"}
    for seed in range(20):
        problems = corpus(1, 1, 4).sample(clips=3, seed=seed, refuse=lambda c: "x" * (c.clip_id == "0-0-2")).problems
        assert [p.name for p in problems] in ([], ["0-0-2"])


def test_more_than_there_is_is_refused():
    with pytest.raises(InputError, match="at most the 4 of toy; got 5"):
        corpus().sample(speakers=5)
    with pytest.raises(InputError, match="at most the 12 usable clips of speaker s0; got 13"):
        corpus().sample(clips=13)
