"""Data sets of codes: every column, ragged codes, a round trip, and nothing overwritten that is not ours."""

import json
from dataclasses import replace

import numpy as np
import pytest
from toy_codec import ToyCodec, toy_clip, toy_corpus

from codecprobe.corpora.corpus import Corpus, Phone, Problem
from codecprobe.dataset import load_tokenized, save_tokenized, to_dataset
from codecprobe.tokenization import tokenize
from probecore.errors import InputError


@pytest.fixture
def tokenized(tmp_path):
    clips = (
        toy_clip(0, text="hello", labels={"sex": "F"}, phones=(Phone("h", 0.0, 0.1), Phone("ə", 0.1, 0.25))),
        toy_clip(1, seconds=0.9, f0_hz=np.array([0.0, 120.5, 121.0])),
        toy_clip(2, text="", labels={"sex": "M", "style": "calm"}, phones=()),
    )
    corpus = Corpus("three", clips, problems=(Problem("x.wav", "cut off"),), notes=("a note",), facts={"part": "dev"})
    return tokenize(corpus, ToyCodec(), cache=tmp_path / "cache", quiet=True)


def test_columns_hold_what_the_corpus_knows(tokenized):
    data = to_dataset(tokenized)
    assert data.column_names == [
        *("clip_id", "speaker", "session", "text", "duration_s", "n_samples", "codes", "phones", "f0_hz"),
        *("sex", "style"),
    ]
    assert data["text"] == ["hello", None, ""]
    assert data["sex"] == ["F", None, "M"] and data["style"] == [None, None, "calm"]
    assert data["duration_s"] == [0.5, 0.9, 0.5]
    for row, codes in zip(data, tokenized.codes, strict=True):
        np.testing.assert_array_equal(np.array(row["codes"]), codes)
    assert data[0]["phones"][1] == {"name": "ə", "start_s": 0.1, "end_s": 0.25}
    assert data[1]["phones"] is None and data[2]["phones"] == []
    assert data[1]["f0_hz"] == [0.0, 120.5, 121.0] and data[0]["f0_hz"] is None


def test_round_trip_keeps_everything_but_the_audio(tokenized, tmp_path):
    loaded = load_tokenized(save_tokenized(tokenized, tmp_path / "out"))
    for name in (
        "corpus",
        "n_samples",
        "durations_s",
        "problems",
        "codec",
        "certificate",
        "notes",
        "synthetic",
        "facts",
    ):
        assert getattr(loaded, name) == getattr(tokenized, name), name
    for before, after, codes, found in zip(tokenized.clips, loaded.clips, tokenized.codes, loaded.codes, strict=True):
        for name in ("clip_id", "speaker", "session", "text", "phones", "labels"):
            assert getattr(after, name) == getattr(before, name), name
        assert (before.f0_hz is None) == (after.f0_hz is None)
        np.testing.assert_array_equal(codes, found)
        assert found.dtype == np.int64
        with pytest.raises(InputError, match="holds no audio"):
            after.read()
    np.testing.assert_array_equal(loaded.clips[1].f0_hz, tokenized.clips[1].f0_hz)


def test_the_folder_is_a_data_set_that_others_can_read(tokenized, tmp_path):
    from datasets import load_from_disk

    folder = save_tokenized(tokenized, tmp_path / "out")
    assert load_from_disk(str(folder))["clip_id"][:] == ["clip 0", "clip 1", "clip 2"]
    record = json.loads((folder / "provenance.json").read_text())
    assert record["problems"] == [{"name": "x.wav", "reason": "cut off"}]
    assert record["codec"]["weights_hash"] == tokenized.codec.weights_hash
    assert str(tmp_path) not in (folder / "provenance.json").read_text()


def test_the_same_corpus_gives_the_same_bytes(tokenized, tmp_path):
    first, second = (save_tokenized(tokenized, tmp_path / name) for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_an_earlier_data_set_is_replaced_and_nothing_else_is(tokenized, tmp_path):
    folder = save_tokenized(tokenized, tmp_path / "out")
    other = tokenize(toy_corpus(2), ToyCodec(), cache=tmp_path / "cache", quiet=True)
    assert len(load_tokenized(save_tokenized(other, folder)).clips) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="must be empty, new or an earlier data set"):
        save_tokenized(tokenized, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_the_same_data_set_is_left_as_it_is_and_a_harmed_one_is_written_again(tokenized, tmp_path):
    folder = save_tokenized(tokenized, tmp_path / "out")
    (arrow,) = folder.glob("*.arrow")
    first, written = arrow.read_bytes(), arrow.stat().st_mtime_ns
    save_tokenized(tokenized, folder)
    assert arrow.stat().st_mtime_ns == written
    arrow.write_bytes(first[:-8])
    assert save_tokenized(tokenized, folder) == folder
    assert arrow.read_bytes() == first
    codes = (tokenized.codes[0] * 0, *tokenized.codes[1:])
    other = load_tokenized(save_tokenized(replace(tokenized, codes=codes), folder))
    assert not other.codes[0].any()


def test_refusals_name_the_rule(tokenized, tmp_path):
    with pytest.raises(InputError, match="holds no tokenized corpus"):
        load_tokenized(tmp_path / "nowhere")
    clash = replace(tokenized, clips=(replace(tokenized.clips[0], labels={"speaker": "x"}), *tokenized.clips[1:]))
    with pytest.raises(InputError, match="must not have the name of a column; got speaker"):
        to_dataset(clash)
