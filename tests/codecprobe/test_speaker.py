"""The speaker probe: calibrated where speakers add nothing, refused where it cannot be tested, honest about leaks."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from scipy.stats import binom
from toy_codec import ToyCodec

from codecprobe.corpora.corpus import Audio, Clip, Corpus
from codecprobe.speaker import COLUMNS, Settings, probe_family, speaker_probe, utterance_accuracy
from probecli.codec import main
from probecore import Activations, DesignError, InputError, Label, probe_layers
from probecore.provenance import digest

RATE_HZ = 8000
KEYS = {
    "layer", "features", "accuracy", "ci_low", "ci_high", "chance", "p_value", "p_adjusted", "n_items", "n_groups",
}  # fmt: skip


def world(seed: int, speaker_sd: float, session_sd: float, shape: tuple[int, int, int] = (8, 3, 5)) -> Activations:
    """Items with a vector of their speaker, one of their session and noise of their own, (items, 12)."""
    rng = np.random.default_rng(seed)
    n_speakers, n_sessions, n_clips = shape
    speaker = np.repeat(np.arange(n_speakers), n_sessions * n_clips)
    session = np.repeat(np.arange(n_speakers * n_sessions), n_clips)
    values = rng.standard_normal((len(speaker), 12))
    values += session_sd * rng.standard_normal((session.max() + 1, 12))[session]
    values += speaker_sd * rng.standard_normal((n_speakers, 12))[speaker]
    labels = {"speaker": Label([f"s{i}" for i in speaker], units=session)}
    return Activations.from_arrays({"layer 0": values}, session, labels, info={"features": "baseline"})


def settings(split: str = "session", n_permutations: int = 199, seed: int = 0) -> Settings:
    return Settings(split, n_permutations, 0, seed, "cpu")


def test_sessions_that_differ_do_not_pass_for_speakers():
    """200 worlds without speakers: rejections at .05 stay in the 99.9 % binomial band; free exchange rejects always."""
    worlds = [world(seed, speaker_sd=0.0, session_sd=1.0) for seed in range(200)]
    ours = sum(probe_family(w, settings()).rows[0]["p_value"] <= 0.05 for w in worlds)
    low, high = binom.interval(0.999, 200, 0.05)
    assert low <= ours <= high
    naive = [
        probe_layers(w, "speaker", folds="item", units=np.arange(w.n_items), n_permutations=199, n_bootstrap=0)
        for w in worlds[:20]
    ]
    assert all(result.rows[0]["p_value"] <= 0.05 for result in naive)


def test_an_uninformed_probe_is_right_as_often_as_chance():
    """One session of each speaker left out: mean accuracy without an effect is 1/8; leaving out single ones is not."""
    worlds = [world(seed, 0.0, 1.0) for seed in range(200)]
    ours = np.array([probe_family(w, settings(n_permutations=0)).rows[0]["accuracy"] for w in worlds])
    error = ours.std(ddof=1) / np.sqrt(len(ours))
    assert abs(ours.mean() - 1 / 8) < 3.5 * error
    single = [
        probe_layers(w, "speaker", folds="leave-one-group-out", n_permutations=0, n_bootstrap=0) for w in worlds[:50]
    ]
    assert np.mean([result.rows[0]["accuracy"] for result in single]) < 0.09


def test_a_speaker_is_found():
    result = probe_family(world(0, speaker_sd=1.0, session_sd=1.0), settings(n_permutations=999))
    assert result.rows[0]["accuracy"] > 0.3 and result.rows[0]["p_value"] <= 0.01


def test_folds_never_share_a_session_and_test_every_speaker():
    family = world(0, 1.0, 1.0)
    speaker, session = family.label("speaker").values, family.groups
    folds = probe_family(family, settings(n_permutations=0)).folds
    assert folds is not None and len(folds) == 3 and folds.stratified
    for train, test in folds.pairs:
        assert not set(session[train]) & set(session[test])
        assert set(speaker[test]) == set(speaker[train]) == set(speaker)


def test_the_utterance_split_hears_the_session():
    """Without speakers, clips left out are recognised by their session: the leak that the column shows."""
    family = world(0, speaker_sd=0.0, session_sd=1.5)
    leaky = utterance_accuracy(family, settings())["layer 0"]
    assert leaky > 0.45  # chance 1/8
    assert probe_family(family, settings()).rows[0]["accuracy"] < 0.25


def tone(f0_hz: float, seed: int, seconds: float = 3.2) -> np.ndarray:
    t = np.arange(int(RATE_HZ * seconds)) / RATE_HZ
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * f0_hz * t) + 0.05 * noise).astype(np.float32)


def toy_corpus(sessions: dict[str, int], clips: int = 3) -> Corpus:
    made = []
    for s, (speaker, n) in enumerate(sessions.items()):
        for session in range(n):
            for i in range(clips):
                samples = tone(200 + 90 * s, 1000 * s + 100 * session + i, seconds=3.2 + 0.1 * i)
                made.append(
                    Clip(f"{speaker}-{session}-{i}", speaker, f"{speaker}-{session}",
                         lambda samples=samples: Audio(samples, RATE_HZ),
                         lambda samples=samples: digest(samples.tobytes()))
                )  # fmt: skip
    return Corpus("toy", tuple(made))


def test_the_table_is_complete(tmp_path: Path):
    result = speaker_probe(
        toy_corpus({"a": 3, "b": 3, "c": 3, "d": 3}), ToyCodec(), n_permutations=99, n_bootstrap=50, cache=tmp_path
    )
    assert [row["features"] for row in result.rows] == ["embedding"] * 3 + ["histogram"] * 3 + ["cumulative"] * 3 + [
        "baseline"
    ] * 3
    for row in result.rows:
        assert set(row) >= KEYS and row["n_items"] == 36 and row["n_groups"] == 12
        assert row["accuracy"] is not None and 0 < row["p_value"] <= row["p_adjusted"] <= 1
        assert row["ci_low"] <= row["accuracy"] <= row["ci_high"]
    added = [row["adds"] for row in result.rows if row["features"] == "cumulative" and "adds" in row]
    accuracy = [row["accuracy"] for row in result.rows if row["features"] == "cumulative"]
    np.testing.assert_allclose(added, np.diff(accuracy), atol=1e-12)
    assert len(result.tables["confusion"]) == 16
    again = speaker_probe(
        toy_corpus({"a": 3, "b": 3, "c": 3, "d": 3}), ToyCodec(), n_permutations=99, n_bootstrap=50, cache=tmp_path
    )
    assert again.to_json() == result.to_json()


def test_one_session_each_is_refused(tmp_path: Path):
    corpus = toy_corpus({"a": 1, "b": 1, "c": 1})
    with pytest.raises(DesignError, match="cannot be told apart: 3 of 3 speakers have one session"):
        speaker_probe(corpus, ToyCodec(), cache=tmp_path)
    result = speaker_probe(corpus, ToyCodec(), split="utterance", n_permutations=99, n_bootstrap=0, cache=tmp_path)
    for row in result.rows:
        assert row["p_value"] is None and row["p_adjusted"] is None and "no permutation test exists" in row["p_note"]
        assert row["accuracy"] is not None
    assert any("say 'speaker or session', not speaker" in note for note in result.notes)


def test_speakers_with_one_session_are_left_out_and_named(tmp_path: Path):
    result = speaker_probe(
        toy_corpus({"a": 2, "b": 2, "solo": 1, "d": 2, "e": 2}), ToyCodec(), n_permutations=0, n_bootstrap=0,
        cache=tmp_path,
    )  # fmt: skip
    assert any("1 speakers with one session cannot be tested and were left out: solo." in note for note in result.notes)
    assert {row["speaker"] for row in result.tables["confusion"]} == {"a", "b", "d", "e"}


def test_one_speaker_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="at least 2 speakers; got 1"):
        speaker_probe(toy_corpus({"a": 3}), ToyCodec(), cache=tmp_path)


def write_folder(root: Path) -> Path:
    for s, speaker in enumerate(["ann", "bob", "cid", "dot"]):
        for session in range(2):
            folder = root / speaker / f"day{session}"
            folder.mkdir(parents=True)
            for i in range(2):
                soundfile.write(
                    folder / f"{speaker}{session}{i}.wav", tone(200 + 90 * s, 10 * s + session + i), RATE_HZ
                )
    (root / "ann" / "day0" / "cut.flac").write_bytes(b"fLaC\x00\x00")
    (root / "bob" / "day0" / "text.wav").write_text("not audio")
    soundfile.write(root / "cid" / "day1" / "silent.wav", np.zeros(4 * RATE_HZ), RATE_HZ)
    soundfile.write(root / "dot" / "day1" / "nan.wav", np.full(100, np.nan), RATE_HZ, subtype="FLOAT")
    soundfile.write(root / "dot" / "day1" / "brief.wav", tone(300, 9, seconds=0.2), RATE_HZ)
    return root


def test_broken_files_are_named_and_never_scored(tmp_path: Path):
    folder = write_folder(tmp_path / "voices")
    result = speaker_probe(str(folder), ToyCodec(), n_permutations=0, n_bootstrap=0, cache=tmp_path / "cache")
    assert {row["n_items"] for row in result.rows} == {16}
    problems = {problem["name"]: problem["reason"] for problem in result.provenance["problems"]}
    assert len(problems) == 4
    assert {name.rsplit("/")[-1].partition(".")[0] for name in problems} == {"cut", "text", "silent", "nan"}
    assert any("4 could not be used" in note for note in result.notes)
    assert any("1 clips shorter than the window" in note and "brief" in note for note in result.notes)


def test_real_speech_recordings_leak(librispeech: Path):
    """MFCC on dev-clean, 218 windows: clips left out .96 and more, sessions left out .80 to .92; test-other refused."""
    result = speaker_probe(librispeech / "dev-clean", "embedded", n_permutations=199, n_bootstrap=0)
    mfcc = next(row for row in result.rows if row["layer"] == "MFCC")
    assert mfcc["n_items"] == 218 and mfcc["n_groups"] == 24
    assert mfcc["accuracy_utterance"] > 0.95 and 0.78 < mfcc["accuracy"] < 0.93
    assert mfcc["p_value"] == 1 / 200 and abs(mfcc["chance"] - 1 / 8) < 0.01
    assert any("22 clips shorter" in note for note in result.notes)


def test_one_chapter_per_reader_is_refused_by_the_command(librispeech: Path):
    arguments = ["speaker-probe", "--corpus", str(librispeech / "test-other"), "--quiet"]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1 and refused.output.count("\n") == 1
    assert refused.output.startswith("Error: speaker and session cannot be told apart: 10 of 10 speakers")
    shown = CliRunner().invoke(main, [*arguments, "--split", "utterance", "--bootstrap", "0", "--json"])
    assert shown.exit_code == 0
    rows = json.loads(shown.stdout)["rows"]
    assert all(row["p_value"] is None and row["p_note"] for row in rows)
    assert next(row for row in rows if row["layer"] == "MFCC")["accuracy"] > 0.95


def test_every_printed_column_exists(tmp_path: Path):
    result = speaker_probe(
        toy_corpus({"a": 2, "b": 2, "c": 2}), ToyCodec(), n_permutations=9, n_bootstrap=20, cache=tmp_path
    )
    assert set(COLUMNS) <= set().union(*result.rows)
