import numpy as np
import pytest
import soundfile

from codecprobe.corpora.folder import read_folder
from codecprobe.corpora.manifest import read_manifest
from codecprobe.corpora.registry import open_corpus
from probecore.errors import InputError


def sound(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(4_000), 16_000)
    return path


def test_speaker_session_file(tmp_path):
    for speaker in ("ann", "bob"):
        for session in ("mon", "tue"):
            sound(tmp_path / "set" / speaker / session / "1.wav")
    sound(tmp_path / "set" / "ann" / "mon" / "take 2" / "deep.flac")
    (tmp_path / "set" / "ann" / "mon" / "1.txt").write_text("good morning\n")
    corpus = read_folder(tmp_path / "set")
    assert corpus.speakers == ("ann", "bob")
    assert corpus.sessions == ("ann/mon", "ann/mon/take 2", "ann/tue", "bob/mon", "bob/tue")
    assert (corpus.clips[0].clip_id, corpus.clips[0].text) == ("ann/mon/1", "good morning")
    assert corpus.notes == () and corpus.problems == ()
    assert len(corpus.clips[0].read().samples) == 4_000


def test_files_directly_in_a_speakers_folder_are_one_session_and_the_note_says_what_that_costs(tmp_path):
    """One session per file would let a recording test itself."""
    for i in range(3):
        sound(tmp_path / "ann" / f"{i}.wav")
        sound(tmp_path / "bob" / f"{i}.wav")
    corpus = read_folder(tmp_path)
    assert corpus.sessions == ("ann", "bob")
    assert "p-value for the speaker will be refused" in corpus.notes[0]
    sound(tmp_path / "bob" / "later" / "4.wav")
    assert "one session only" in (note := read_folder(tmp_path).notes[0]) and note.endswith("ann")


def test_what_is_no_clip_is_listed(tmp_path):
    sound(tmp_path / "ann" / "1.wav")
    sound(tmp_path / "lost.wav")
    (tmp_path / "ann" / "cover.jpg").write_bytes(b"x")
    reasons = {problem.name: problem.reason for problem in read_folder(tmp_path).problems}
    assert set(reasons) == {"lost.wav", "ann/cover.jpg"}
    assert "no speaker's folder" in reasons["lost.wav"] and "not named as audio" in reasons["ann/cover.jpg"]


def test_folders_that_hold_no_corpus_are_refused(tmp_path):
    with pytest.raises(InputError, match="0 audio files were found"):
        read_folder(tmp_path)
    sound(tmp_path / "1.wav")
    with pytest.raises(InputError, match="1 audio files lie directly in it"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        read_folder(tmp_path / "nowhere")
    sound(tmp_path / "ann" / "1.wav")
    sound(tmp_path / "ann" / "1.flac")
    with pytest.raises(InputError, match="ann/1 exist in two formats"):
        read_folder(tmp_path)


def table(folder, text):
    (folder / "set.csv").write_text(text, encoding="utf-8")
    return folder / "set.csv"


def test_a_table_gives_sessions_texts_and_labels(tmp_path):
    sound(tmp_path / "a" / "1.wav"), sound(tmp_path / "a" / "2.wav")
    path = table(
        tmp_path,
        '\ufeffpath,speaker,session,text,style\na/1.wav,ann,mon,"well, yes",calm\na/2.wav,ann,tue,,\n\n',
    )
    corpus = read_manifest(path)
    first, second = corpus.clips
    assert (first.clip_id, first.session, first.text, first.labels) == ("1", "mon", "well, yes", {"style": "calm"})
    assert (second.session, second.text, second.labels) == ("tue", None, {})
    assert len(first.read().samples) == 4_000 and corpus.notes == ()


def test_session_names_that_speakers_share_are_made_their_own(tmp_path):
    for name in "1234":
        sound(tmp_path / f"{name}.wav")
    path = table(tmp_path, "path,speaker,session\n1.wav,ann,1\n2.wav,ann,2\n3.wav,bob,1\n4.wav,bob,2\n")
    corpus = read_manifest(path)
    assert corpus.sessions == ("ann/1", "ann/2", "bob/1", "bob/2")
    assert "SPEAKER/SESSION" in corpus.notes[0]


def test_without_sessions_a_speaker_is_one_session(tmp_path):
    sound(tmp_path / "x" / "1.wav"), sound(tmp_path / "y" / "1.wav")
    corpus = read_manifest(table(tmp_path, "path,speaker\nx/1.wav,ann\ny/1.wav,bob\n"))
    assert corpus.sessions == ("ann", "bob") and "will be refused" in corpus.notes[0]
    assert [clip.clip_id for clip in corpus.clips] == ["x/1.wav", "y/1.wav"]


def test_a_missing_file_is_listed(tmp_path):
    sound(tmp_path / "1.wav")
    corpus = read_manifest(table(tmp_path, "path,speaker\n1.wav,ann\nnope.wav,bob\n"))
    assert len(corpus.clips) == 1
    assert [(problem.name, problem.reason) for problem in corpus.problems] == [("nope.wav", "no such file")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,session\n1.wav,x\n", "must have the columns path and speaker; got path, session"),
        ("", "got none"),
        ("path,speaker,speaker\n1.wav,x,y\n", "speaker repeat"),
        ("path,speaker\n", "at least 1 row"),
        ("path,speaker\n1.wav,ann\n1.wav,bob\n", "listed once; 1.wav repeat"),
        ("path,speaker\n1.wav,ann,extra\n", "lines 2 do not"),
        ("path,speaker\n1.wav,\n", "every clip needs a speaker; lines 2"),
        ("path,speaker,session\n1.wav,ann,\n", "every clip needs a session; lines 2"),
        ("path,speaker\nnope.wav,ann\n", "none of its 1 files exist"),
        ('path,speaker\n"1.wav,ann\n', "not a CSV table"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(text, reason, tmp_path):
    sound(tmp_path / "1.wav")
    with pytest.raises(InputError, match=reason) as caught:
        read_manifest(table(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_open_corpus_knows_each_kind_by_what_it_is_given(tmp_path):
    assert open_corpus("embedded:5").name == "embedded:5"
    assert open_corpus("embedded:0").clips[0].content_hash() != open_corpus("embedded").clips[0].content_hash()
    sound(tmp_path / "folder" / "ann" / "1.wav")
    assert open_corpus(tmp_path / "folder").speakers == ("ann",)
    sound(tmp_path / "dev" / "60" / "7" / "60-7-0001.flac")
    assert open_corpus(str(tmp_path / "dev")).sessions == ("60-7",)
    assert open_corpus(table(tmp_path, "path,speaker\nfolder/ann/1.wav,ann\n")).speakers == ("ann",)
    for wrong in ("nothing-here", "embedded:x", str(tmp_path / "nowhere"), "librispeech"):
        with pytest.raises(InputError, match=r"no corpus .*; give embedded .*librispeech:SUBSET.*CSV"):
            open_corpus(wrong)
    with pytest.raises(InputError, match="no LibriSpeech subset 'dev'; there are dev-clean"):
        open_corpus("librispeech:dev")
    with pytest.raises(InputError, match="parts dev: give one of them"):
        open_corpus(tmp_path)
