"""Codes of a corpus: aligned, cached by content, resumed after a kill, with every unusable clip named."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_codec import ToyCodec, toy_clip, toy_corpus

from codecprobe import tokenization
from codecprobe.audio import resample
from codecprobe.corpora.corpus import Audio, Corpus, Problem
from codecprobe.tokenization import describe, summarise, tokenize
from probecore.errors import InputError
from probecore.store import ArrayCache


def fails(message):
    def read():
        raise InputError(message)

    return read


def same(a, b):
    """Whether two tokenized corpora hold the same clips and codes."""
    return (
        [clip.clip_id for clip in a.clips] == [clip.clip_id for clip in b.clips]
        and all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a.codes, b.codes, strict=True))
        and (a.n_samples, a.durations_s, a.problems, a.facts) == (b.n_samples, b.durations_s, b.problems, b.facts)
    )


def test_codes_are_those_of_each_clip_alone_at_the_codecs_rate(tmp_path):
    """Order, lengths and codes equal a loop over clips, although clips are sorted by length and encoded in batches."""
    corpus, codec = toy_corpus(), ToyCodec()
    tokenized = tokenize(corpus, codec, cache=tmp_path, quiet=True)
    assert tokenized.clips == corpus.clips
    for clip, codes, n, duration in zip(
        tokenized.clips, tokenized.codes, tokenized.n_samples, tokenized.durations_s, strict=True
    ):
        audio = clip.read()
        wave = resample(audio.samples, audio.sample_rate_hz, 8000)
        expected = ToyCodec().encode([wave])[0]
        np.testing.assert_array_equal(codes, expected.values)
        assert codes.dtype == np.int64
        assert n == len(wave)
        assert duration == len(audio.samples) / audio.sample_rate_hz
    assert tokenized.synthetic and tokenized.codec == codec.info


@pytest.mark.parametrize("seconds", [0.01, 1.0, 2.0, 100.0])
def test_batches_hold_all_clips_once_and_respect_the_budget(tmp_path, monkeypatch, seconds):
    """Whatever the budget; a clip longer than the budget is encoded alone. Padded length = clips x longest."""
    calls = []

    class Watched(ToyCodec):
        def encode(self, waveforms):
            calls.append([len(wave) for wave in waveforms])
            return super().encode(waveforms)

    monkeypatch.setattr(tokenization, "BATCH_SECONDS", seconds)
    monkeypatch.setattr(tokenization, "AHEAD_SECONDS", 2.5)
    tokenized = tokenize(toy_corpus(9), Watched(), cache=tmp_path, quiet=True)
    assert sorted(n for call in calls for n in call) == sorted(tokenized.n_samples)
    assert all(len(call) == 1 or len(call) * max(call) <= seconds * 8000 for call in calls)
    assert same(tokenized, tokenize(toy_corpus(9), ToyCodec(), cache=tmp_path / "other", quiet=True))


def test_the_second_run_encodes_nothing_and_reads_no_audio(tmp_path):
    corpus = toy_corpus()
    first = tokenize(corpus, ToyCodec(), cache=tmp_path, quiet=True)
    unreadable = replace(corpus, clips=tuple(replace(clip, read=fails("audio was read")) for clip in corpus.clips))
    codec = ToyCodec()
    second = tokenize(unreadable, codec, cache=ArrayCache(tmp_path), quiet=True)
    assert codec.encoded == []
    assert (first.n_encoded, first.n_cached, second.n_encoded, second.n_cached) == (8, 0, 0, 8)
    assert same(first, second)


def test_the_default_cache_is_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CODECPROBE_CACHE", str(tmp_path))
    assert tokenize(toy_corpus(2), ToyCodec(), quiet=True).n_encoded == 2
    assert tokenize(toy_corpus(2), ToyCodec(), quiet=True).n_cached == 2
    assert (tmp_path / "codes").is_dir()


def test_only_what_is_new_is_encoded_and_other_weights_or_versions_share_nothing(tmp_path):
    tokenize(toy_corpus(5), ToyCodec(), cache=tmp_path, quiet=True)
    assert tokenize(toy_corpus(8), ToyCodec(), cache=tmp_path, quiet=True).n_encoded == 3
    assert tokenize(toy_corpus(8), ToyCodec(seed=1), cache=tmp_path, quiet=True).n_encoded == 8
    newer = ToyCodec()
    newer.info = replace(newer.info, versions={"transformers": "other"})
    assert tokenize(toy_corpus(8), newer, cache=tmp_path, quiet=True).n_encoded == 8
    elsewhere = ToyCodec()
    elsewhere.certificate = {"device": "cuda"}
    assert tokenize(toy_corpus(8), elsewhere, cache=tmp_path, quiet=True).n_encoded == 8


@pytest.mark.parametrize("damage", ["garbage", "one bit", "cut off", "empty"])
def test_a_damaged_cache_entry_is_encoded_again(tmp_path, damage):
    first = tokenize(toy_corpus(), ToyCodec(), cache=tmp_path, quiet=True)
    path = sorted(tmp_path.rglob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-1] ^= 1
    path.write_bytes({"garbage": b"x" * 64, "cut off": bytes(data[:-7]), "empty": b""}.get(damage, bytes(data)))
    again = tokenize(toy_corpus(), ToyCodec(), cache=tmp_path, quiet=True)
    assert again.n_encoded == 1 and same(first, again)
    assert tokenize(toy_corpus(), ToyCodec(), cache=tmp_path, quiet=True).n_encoded == 0


KILLED = """
import os, signal, sys
from toy_codec import ToyCodec, toy_corpus
from codecprobe import tokenization

class Killed(ToyCodec):
    def encode(self, waveforms):
        if len(self.encoded) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(waveforms)

tokenization.BATCH_SECONDS = 0.1
tokenization.tokenize(toy_corpus(), Killed(), cache=sys.argv[1], quiet=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    """Killed (signal 9) before the fourth of eight clips: the next run encodes five; its result is the whole one."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    codec = ToyCodec()
    resumed = tokenize(toy_corpus(), codec, cache=tmp_path, quiet=True)
    assert (resumed.n_cached, resumed.n_encoded, len(codec.encoded)) == (3, 5, 5)
    assert same(resumed, tokenize(toy_corpus(), ToyCodec(), cache=tmp_path / "fresh", quiet=True))
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".safetensors"]


def test_threads_do_not_change_the_result(tmp_path):
    one = tokenize(toy_corpus(20), ToyCodec(), cache=tmp_path / "1", jobs=1, quiet=True)
    four = tokenize(toy_corpus(20), ToyCodec(), cache=tmp_path / "4", jobs=4, quiet=True)
    assert same(one, four)
    with pytest.raises(InputError, match="jobs must be an int of at least 1"):
        tokenize(toy_corpus(2), ToyCodec(), cache=tmp_path, jobs=0)


def test_equal_audio_is_encoded_once(tmp_path):
    twin = replace(toy_clip(0), clip_id="twin", speaker="other")
    codec = ToyCodec()
    tokenized = tokenize(Corpus("twins", (toy_clip(0), twin, toy_clip(1))), codec, cache=tmp_path, quiet=True)
    assert [clip.clip_id for clip in tokenized.clips] == ["clip 0", "twin", "clip 1"]
    assert len(codec.encoded) == 2
    np.testing.assert_array_equal(tokenized.codes[0], tokenized.codes[1])


def test_unusable_clips_are_named_with_the_reason_and_never_coded(tmp_path):
    """Cut off, unreadable, NaN, and one the codec refuses: four problems beside the corpus's own."""

    class Choosy(ToyCodec):
        def encode(self, waveforms):
            if any(len(wave) > 8000 for wave in waveforms):
                raise InputError("a clip of more than 1 s does not fit")
            return super().encode(waveforms)

    def gone():
        raise OSError("no such device")

    good = [toy_clip(i) for i in range(3)]
    bad = [
        toy_clip(10, read=fails("cut off at 0.3 s")),
        toy_clip(11, content_hash=gone),
        toy_clip(12, read=lambda: Audio(np.full(9000, np.nan, np.float32), 8000)),
        toy_clip(13, seconds=2),
    ]
    clips = (good[0], bad[0], good[1], *bad[1:], good[2])
    corpus = Corpus("mixed", clips, problems=(Problem("readme.flac", "not audio"),))
    tokenized = tokenize(corpus, Choosy(), cache=tmp_path, quiet=True)
    assert [clip.clip_id for clip in tokenized.clips] == ["clip 0", "clip 1", "clip 2"]
    assert {problem.name: problem.reason for problem in tokenized.problems} == {
        "readme.flac": "not audio",
        "clip 10": "cut off at 0.3 s",
        "clip 11": "no such device",
        "clip 12": "clip 12: samples must be finite; got NaN or infinity",
        "clip 13": "a clip of more than 1 s does not fit",
    }
    assert any("5 could not be used" in note and "cut off at 0.3 s" in note for note in describe(tokenized))
    alone = tokenize(Corpus("good", tuple(good)), ToyCodec(), cache=tmp_path / "other", quiet=True)
    assert all(np.array_equal(a, b) for a, b in zip(tokenized.codes, alone.codes, strict=True))


def test_a_corpus_without_one_usable_clip_is_refused(tmp_path):
    corpus = Corpus("broken", tuple(toy_clip(i, read=fails("cut off")) for i in range(3)))
    with pytest.raises(InputError, match=r"broken: none of its 3 files can be used; the first is clip 0: cut off"):
        tokenize(corpus, ToyCodec(), cache=tmp_path, quiet=True)
    with pytest.raises(InputError, match="nothing holds no clips"):
        tokenize(Corpus("nothing", ()), ToyCodec(), cache=tmp_path, quiet=True)


def test_facts_are_the_same_in_every_run_and_name_the_audio_not_the_codec(tmp_path):
    first = tokenize(toy_corpus(4), ToyCodec(), cache=tmp_path, quiet=True)
    second = tokenize(toy_corpus(4), ToyCodec(), cache=tmp_path, quiet=True)
    other = tokenize(toy_corpus(4), ToyCodec(seed=1), cache=tmp_path, quiet=True)
    assert first.facts == second.facts
    assert first.facts["data_hash"] == other.facts["data_hash"]
    assert first.facts["made_by"] != other.facts["made_by"]


def test_summary_counts_each_speaker_and_says_what_is_synthetic(tmp_path, monkeypatch):
    monkeypatch.setenv("CODECPROBE_CACHE", str(tmp_path))
    result = summarise(toy_corpus(6), ToyCodec(), out=tmp_path / "out", quiet=True)
    assert [row["speaker"] for row in result.rows] == ["s0", "s1", "s2"]
    assert [row["clips"] for row in result.rows] == [2, 2, 2]
    seconds = [0.5 + 0.07 * i for i in range(6)]
    assert [row["seconds"] for row in result.rows] == [round(seconds[i] + seconds[i + 3], 2) for i in range(3)]
    assert any("codec toy is synthetic" in note for note in result.notes)
    assert json.loads(result.to_json())["provenance"]["codec"]["name"] == "toy"
    assert Path(tmp_path / "out" / "provenance.json").is_file()
    assert result.to_json() == summarise(toy_corpus(6), ToyCodec(), quiet=True).to_json()
