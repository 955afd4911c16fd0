import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codecprobe.corpora.librispeech import read_librispeech
from probecore.errors import InputError

DATA = Path(os.environ.get("CODECPROBE_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "LibriSpeech"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no LibriSpeech at {DATA}; set CODECPROBE_DATA")

TABLE = """; comment | with | bars
60   | M | dev-clean        | 20.18 | |CBW|Simon
61   | F | dev-clean        | 25.03 | Someone Else
"""


@pytest.fixture
def part(tmp_path):
    """Two speakers, two chapters each, two clips a chapter, in the layout of LibriSpeech."""
    root = tmp_path / "LibriSpeech"
    rng = np.random.default_rng(0)
    for speaker in ("60", "61"):
        for chapter in ("7", "8"):
            home = root / "dev-clean" / speaker / chapter
            home.mkdir(parents=True)
            names = [f"{speaker}-{chapter}-{i:04d}" for i in range(2)]
            for name in names:
                soundfile.write(home / f"{name}.flac", 0.1 * rng.standard_normal(8_000), 16_000)
            (home / f"{speaker}-{chapter}.trans.txt").write_text("".join(f"{n} TEXT OF {n}\n" for n in names))
    (root / "SPEAKERS.TXT").write_text(TABLE)
    return root / "dev-clean"


def test_speaker_session_text_and_sex(part):
    corpus = read_librispeech(part)
    assert len(corpus.clips) == 8 and corpus.problems == () and not corpus.synthetic
    assert corpus.speakers == ("60", "61") and corpus.sessions == ("60-7", "60-8", "61-7", "61-8")
    clip = corpus.clips[1]
    assert (clip.clip_id, clip.speaker, clip.session, clip.text) == ("60-7-0001", "60", "60-7", "TEXT OF 60-7-0001")
    assert clip.labels == {"sex": "M"}  # the reader named |CBW|Simon
    assert clip.read().sample_rate_hz == 16_000 and len(clip.read().samples) == 8_000
    assert clip.content_hash() != corpus.clips[0].content_hash()


def test_what_does_not_fit_is_listed_and_what_fits_is_kept(part):
    (part / "60" / "7" / "60-7.trans.txt").write_text("60-7-0000 ONLY ONE\n")
    (part / "61" / "8" / "61-8.trans.txt").unlink()
    (part / "60" / "7" / "notes.txt").write_text("x")
    (part / "60" / "7" / "61-7-0009.flac").write_bytes(b"in the wrong folder")
    (part.parent / "SPEAKERS.TXT").write_text(TABLE + "broken line\n")
    corpus = read_librispeech(part)
    reasons = {problem.name: problem.reason for problem in corpus.problems}
    assert set(reasons) == {
        "60/7/60-7.trans.txt", "61/8/61-8.trans.txt", "60/7/notes.txt", "60/7/61-7-0009.flac", "SPEAKERS.TXT",
    }  # fmt: skip
    assert "60-7-0001" in reasons["60/7/60-7.trans.txt"] and "line 4" in reasons["SPEAKERS.TXT"]
    assert len(corpus.clips) == 8
    assert [clip.clip_id for clip in corpus.clips if clip.text is None] == ["60-7-0001", "61-8-0000", "61-8-0001"]


def test_a_broken_clip_says_so_when_it_is_read(part):
    path = part / "60" / "7" / "60-7-0000.flac"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"60-7-0000\.flac: (cut off|not an audio)"):
        read_librispeech(part).clips[0].read()


def test_a_missing_speaker_table_is_said_and_costs_only_the_sex(part):
    (part.parent / "SPEAKERS.TXT").unlink()
    corpus = read_librispeech(part)
    assert [problem.name for problem in corpus.problems] == ["SPEAKERS.TXT"]
    assert corpus.clips[0].labels == {}


def test_other_layouts_are_refused_with_the_next_step(part, tmp_path):
    with pytest.raises(InputError, match=r"parts dev-clean: give one of them"):
        read_librispeech(part.parent)
    with pytest.raises(InputError, match="no file lies at PART/SPEAKER/CHAPTER"):
        read_librispeech(part / "60")
    with pytest.raises(InputError, match="no folder"):
        read_librispeech(tmp_path / "nowhere")
    clip = part / "60" / "7" / "60-7-0000.flac"
    clip.with_suffix(".wav").write_bytes(clip.read_bytes())
    with pytest.raises(InputError, match="60-7-0000 exist in two formats"):
        read_librispeech(part)


@needs_data
@pytest.mark.parametrize(
    ("name", "speakers", "sessions", "clips", "seconds"),
    [("dev-clean", 8, 24, 240, 1830.2), ("test-other", 10, 10, 100, 766.6)],
)
def test_the_real_parts_have_the_counts_of_their_description(name, speakers, sessions, clips, seconds):
    corpus = read_librispeech(DATA / name)
    assert (len(corpus.speakers), len(corpus.sessions), len(corpus.clips)) == (speakers, sessions, clips)
    assert corpus.problems == () and all(clip.text for clip in corpus.clips)
    women = {clip.speaker for clip in corpus.clips if clip.labels["sex"] == "F"}
    assert len(women) == speakers // 2
    total = sum(soundfile.info(clip.read.args[0]).duration for clip in corpus.clips)
    assert total == pytest.approx(seconds, abs=0.05)
    audio = corpus.clips[0].read()
    assert audio.sample_rate_hz == 16_000 and audio.n_channels == 1
