"""Codecs side by side: the same clips and seconds for each, the numbers of the speaker probe, paired differences."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_codecs import LAYERS, build_tiny_codec
from toy_codec import ToyCodec, toy_clip

from codecprobe.codecs.codec import Codes
from codecprobe.comparison import ALL, COLUMNS, compare_codecs, labels_of
from codecprobe.corpora.corpus import Corpus
from codecprobe.speaker import speaker_probe
from probecli.codec import main
from probecore.errors import DesignError, InputError

SMALL = {"speakers": 4, "clips": 6, "n_permutations": 39, "n_bootstrap": 40, "device": "cpu"}


class HalfRate(ToyCodec):
    """The toy codec with frames of twice the length; it refuses clips that start loud."""

    def __init__(self, refuse_above: float = np.inf) -> None:
        super().__init__(seed=1)
        self.refuse_above = refuse_above
        self.tables = [np.repeat(table, 2, axis=1) for table in self.tables]
        self.info = replace(self.info, name="half", hop_samples=160, weights_hash=f"half {refuse_above}")

    def group_inputs(self, clip):
        return (np.pad(clip, (0, -len(clip) % 160)).reshape(-1, 160),)

    def encode(self, waveforms):
        if any(abs(float(wave[0])) > self.refuse_above for wave in waveforms):
            raise InputError("this codec cannot take clips that start loud")
        return [Codes(self._codes(np.asarray(wave)), len(wave)) for wave in waveforms]


def toy_voices(n: int = 36, seconds: float = 0.6) -> Corpus:
    """3 speakers, 2 sessions each."""
    return Corpus("toy voices", tuple(toy_clip(i, seconds=seconds, rate_hz=8000) for i in range(n)))


@pytest.fixture(scope="module")
def planted():
    return compare_codecs(("embedded", "embedded-flat"), "embedded", **SMALL)


def test_the_numbers_are_those_of_the_speaker_probe(planted):
    """Each codec's rows equal what `speaker_probe` gives alone, to the last bit: clips, folds, exchanges, resamples."""
    for codec in ("embedded", "embedded-flat"):
        alone = speaker_probe("embedded", codec, **SMALL)
        for features, wanted in (("embedding", ("accuracy", "ci_low", "ci_high", "chance", "p_value", "p_adjusted")),):
            reference = [row for row in alone.rows if row["features"] == features]
            rows = [row for row in planted.rows if row["codec"] == codec and row["layer"] != ALL]
            assert [row["layer"] for row in rows] == [f"layer {k}" for k in range(8)]
            for row, expected in zip(rows, reference, strict=True):
                assert {name: row[name] for name in wanted} == {name: expected[name] for name in wanted}
        steps = [row for row in alone.rows if row["features"] == "cumulative"]
        for row, expected in zip(rows, steps, strict=True):
            assert row["accuracy_so_far"] == expected["accuracy"]
            assert [row.get(name) for name in ("adds", "adds_low", "adds_high")] == [
                expected.get(name) for name in ("adds", "adds_low", "adds_high")
            ]
        total = next(row for row in planted.rows if row["codec"] == codec and row["layer"] == ALL)
        assert total["accuracy"] == steps[-1]["accuracy"]
        floor = {row["layer"]: row["accuracy"] for row in alone.rows if row["features"] == "baseline"}
        assert {row["layer"]: row["accuracy"] for row in planted.rows if row["codec"] == "no codec"} == floor


def test_the_plant_shows_and_the_difference_is_paired(planted):
    """embedded holds the voice, embedded-flat does not: the difference is negative and its interval leaves out 0.

    Given the other way round it is the same with the other sign.
    """
    first, second = (row for row in planted.rows if row["layer"] == ALL)
    assert first["codec"] == "embedded" and first.get("difference") is None
    assert second["difference"] == pytest.approx(second["accuracy"] - first["accuracy"])
    assert second["difference_low"] <= second["difference"] <= second["difference_high"] < 0
    assert second["against"] == "embedded" and second["difference_p_value"] < 0.05
    turned = compare_codecs(("embedded-flat", "embedded"), "embedded", **SMALL)
    back = next(row for row in turned.rows if row["layer"] == ALL and row["codec"] == "embedded")
    assert back["difference"] == pytest.approx(-second["difference"])
    assert back["difference_low"] == pytest.approx(-second["difference_high"])


def test_the_facts_of_each_codec_stand_beside_it(planted):
    rows = {row["codec"]: row for row in planted.tables["codecs"]}
    assert rows["embedded"]["groups"] == "0-7" and rows["embedded"]["frame_rate_hz"] == 12.5
    assert rows["embedded"]["window_frames"] == 37 and rows["embedded"]["window_s"] == 2.96
    bits = 12.5 * (np.log2(30) + 7 * 6)
    assert rows["embedded"]["bit_rate"] == pytest.approx(bits)
    layers = [row for row in planted.rows if row["codec"] == "embedded" and row["layer"] != ALL]
    assert sum(row["bit_rate"] for row in layers) == pytest.approx(bits)
    assert sum("a window has 37 frames, 2.96 s" in note for note in planted.notes) == 2
    assert any("synthetic" in note for note in planted.notes)
    assert set(planted.provenance["codecs"]) == {"embedded", "embedded-flat"}


def test_every_row_has_every_column_or_none(planted):
    assert set(COLUMNS) <= set().union(*planted.rows)
    assert {figure.table for figure in planted.figures} <= set(planted.tables)
    json.loads(planted.to_json())


def test_frame_rates_may_differ_and_windows_are_the_same_seconds():
    """100 and 50 frames a second: 0.55 s are 55 frames and 27 of 20 ms."""
    result = compare_codecs([ToyCodec(), HalfRate()], toy_voices(), window_s=0.55, n_permutations=19, n_bootstrap=0)
    toy, half = result.tables["codecs"]
    assert (toy["window_frames"], half["window_frames"]) == (55, 27)
    assert (toy["window_s"], half["window_s"]) == (0.55, 0.54)
    assert (toy["n_items"], half["n_items"]) == (36, 36)


def test_only_clips_that_all_codecs_can_encode_are_used():
    corpus = toy_voices()
    loud = [clip.clip_id for clip in corpus.clips if abs(float(clip.read().samples[0])) > 0.2]
    assert 0 < len(loud) < 6
    picky = HalfRate(refuse_above=0.2)
    result = compare_codecs([ToyCodec(), picky], corpus, window_s=0.5, n_permutations=19, n_bootstrap=0)
    assert {row["n_items"] for row in result.rows} == {36 - len(loud)}
    assert any(f"{len(loud)} could not be used: {loud[0]} (this codec cannot" in note for note in result.notes)
    with pytest.raises(InputError, match="none of its 36 files can be used"):
        compare_codecs([ToyCodec(), HalfRate(refuse_above=-1.0)], corpus, window_s=0.5)


def test_codecs_are_told_apart_in_the_table():
    toy, other = ToyCodec(), HalfRate()
    assert labels_of([toy, other]) == ["toy", "half"]
    cut, elsewhere = ToyCodec(), ToyCodec(seed=3)
    cut.info = replace(cut.info, codebook_sizes=(16, 32))
    elsewhere.info = replace(elsewhere.info, source="folder b")
    assert labels_of([toy, other, cut]) == ["toy (3 layers)", "half", "toy (2 layers)"]
    assert labels_of([toy, elsewhere]) == ["toy ()", "toy (folder b)"]
    assert labels_of([toy, cut, elsewhere])[1:] == ["toy (, 2 layers)", "toy (folder b, 3 layers)"]
    assert len(set(labels_of([toy, ToyCodec(seed=5)]))) == 2
    with pytest.raises(InputError, match="codecs must differ; got toy twice"):
        labels_of([toy, other, ToyCodec()])


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="needs at least 2 codecs; got 1"):
        compare_codecs(["embedded"])
    alone = Corpus("one session each", tuple(replace(c, session=c.speaker) for c in toy_voices().clips))
    with pytest.raises(DesignError, match="speaker and session cannot be told apart"):
        compare_codecs([ToyCodec(), HalfRate()], alone, window_s=0.5)
    leaky = compare_codecs([ToyCodec(), HalfRate()], alone, window_s=0.5, split="utterance", n_bootstrap=0)
    assert all(row["p_value"] is None and row["p_note"] for row in leaky.rows)
    assert any("speaker or session" in note for note in leaky.notes)


@pytest.mark.transformers
def test_four_real_classes_on_real_speech_by_the_command(librispeech, tmp_path):
    """Random weights, real loading, real recordings: one JSON object, a report, nothing on stderr."""
    folders = [build_tiny_codec(name, tmp_path / name) for name in LAYERS]
    arguments = [word for folder in folders for word in ("--codec", str(folder))]
    arguments += ["--corpus", str(librispeech / "dev-clean"), "--speakers", "3", "--clips", "4", "--window", "2"]
    arguments += ["--permutations", "19", "--bootstrap", "0", "--json", "--quiet", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["compare", *arguments])
    assert done.exit_code == 0 and done.stderr == "", done.output
    rows = json.loads(done.stdout)["rows"]
    for name, n_layers in LAYERS.items():
        own = [row for row in rows if row["codec"] == name]
        assert [row["layer"] for row in own] == [*(f"layer {k}" for k in range(n_layers)), ALL]
        assert {row["n_items"] for row in own} == {12}
    assert (tmp_path / "out" / "report.html").is_file() and (tmp_path / "out" / "codecs.csv").is_file()
