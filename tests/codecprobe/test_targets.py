"""codecprobe probe: planted answers, what is refused and why, the design of every label, and what a row carries."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from codecprobe import embedded_corpus, open_codec, probe_target, tokenize
from codecprobe.clip_labels import clip_label
from codecprobe.content import LAGS, lag_curve, read_phones
from codecprobe.content import _truth as phone_truth
from codecprobe.targets import COLUMNS
from probecli.codec import main
from probecore.errors import DesignError, InputError
from probecore.store import ArrayCache, cache_dir

PERMUTATIONS = 39


@pytest.fixture(scope="module")
def corpus():
    """Six voices x 2 sessions x 5 clips of the default recipe."""
    return embedded_corpus(speakers=6, sessions=2, clips=5)


@pytest.fixture(scope="module")
def probed(corpus):
    """Results by target, made once."""
    made = {}

    def get(target):
        if target not in made:
            made[target] = probe_target(target, corpus, "embedded", n_permutations=PERMUTATIONS, n_bootstrap=30)
        return made[target]

    return get


def rows_of(result, metric, features=None):
    return [r for r in result.rows if r["metric"] == metric and features in (None, r["features"])]


def test_phones_are_where_they_were_planted(probed):
    """Layer 0 names the phone of most frames (.8 to .9 of 29; a frame holds one to three) and layers 1 and 2, the
    voice, do not tell it: all three measures agree. The smallest p is 1 / 40."""
    result = probed("phone")
    accuracy = rows_of(result, "accuracy")
    assert accuracy[0]["value"] > 0.75 and accuracy[0]["p_adjusted"] == pytest.approx(1 / 40)
    assert accuracy[0]["ci_low"] > 0.6 and all(row["value"] < 0.4 for row in accuracy[1:])
    assert all(row["p_value"] > 0.05 for row in accuracy[1:3])
    pnmi = rows_of(result, "adjusted PNMI")
    assert 0.55 < pnmi[0]["value"] < 0.75 and all(abs(row["value"]) < 0.05 for row in pnmi[1:3])
    assert all(row["chance"] == 0 for row in pnmi) and all(row["chance"] > 0.02 for row in rows_of(result, "PNMI"))
    for features in ("code", "embedding"):
        for mode in ("within", "across"):
            error = rows_of(result, f"ABX error {mode}", features)
            assert error[0]["value"] < 0.25 and error[0]["p_adjusted"] < 0.01
            assert all(row["value"] > 0.35 for row in error[1:]) and 0.4 < error[0]["chance"] < 0.6


def test_the_lag_is_chosen_apart_and_measured_elsewhere(corpus, probed):
    """The embedded codec has no delay; codes moved by a frame are found to be late by one. Development clips, every
    fifth of 60 (2 of each speaker), are not measured."""
    result = probed("phone")
    lags = {row["lag"]: row["value"] for row in result.tables["lag"]}
    assert tuple(lags) == LAGS and max(lags, key=lags.get) == 0
    assert {row["n_items"] for row in rows_of(result, "accuracy")} == {48}
    tokenized = tokenize(corpus, open_codec("embedded"), cache=ArrayCache(cache_dir() / "codes"), quiet=True)
    late = replace(tokenized, codes=tuple(np.concatenate([c[:1], c[:-1]]) for c in tokenized.codes))
    moved = {row["lag"]: row["value"] for row in lag_curve(late, phone_truth(late, 0), range(12))}
    assert max(moved, key=moved.get) == 1


def test_pitch_is_in_the_voice_and_its_curve_is_not(probed):
    """Raw F0 differs by voice: layer 1 predicts it for new speakers, layer 0 does not. Relative to the speaker layer 1
    explains nothing, and the baseline is 0."""
    raw, relative = probed("f0"), probed("f0-normalised")
    values = {row["layer"]: row for row in raw.rows}
    assert values["layer 1"]["value"] > 0.5 > 0.1 > values["layer 0"]["value"]
    assert values["layer 1"]["chance"] > 0.4  # knowing speaker and session
    assert 0.8 < values["speaker mean"]["value"] < 1 and values["speaker mean"]["p_value"] is None
    assert all(row["speaker_mean_r2"] == values["speaker mean"]["value"] for row in raw.rows)
    values = {row["layer"]: row for row in relative.rows}
    assert values["speaker mean"]["value"] == pytest.approx(0, abs=1e-9)
    assert values["layer 1"]["value"] < 0.05 < values["layer 0"]["value"]


def test_level_follows_the_phones(probed):
    """Vowels are loud and consonants are not, so content tells the level and the voice does not."""
    values = {row["layer"]: row for row in probed("energy").rows}
    assert values["layer 0"]["value"] > 0.2 and values["layer 0"]["p_adjusted"] == pytest.approx(1 / 40)
    assert values["layer 1"]["value"] < 0.1


def test_labels_of_clips(probed):
    """Texts are in layer 0 alone; the sex of 6 speakers cannot reach .05 (20 ways, half of them mirrored)."""
    text = rows_of(probed("text"), "accuracy", "histogram")
    assert text[0]["value"] > 0.5 and text[0]["p_adjusted"] < 0.05 and text[1]["p_value"] > 0.05
    sex = probed("sex")
    assert {row["n_groups"] for row in sex.rows} == {6} and all(row["p_value"] is None for row in sex.rows)
    assert "smallest attainable" in sex.rows[0]["p_note"]
    layer_1 = next(row for row in sex.rows if row["features"] == "embedding" and row["layer"] == "layer 1")
    assert layer_1["value"] > 0.9


def test_a_session_is_its_channel_and_not_its_text(probed):
    """Texts are drawn anew for each session, channels are not: layer 0 does not know the session, layer 1 does, and its
    chance, clips exchanged between the sessions of one speaker, is that of knowing the voice."""
    rows = rows_of(probed("session"), "accuracy", "embedding")
    assert rows[1]["p_adjusted"] < 0.05 < rows[0]["p_value"] and rows[1]["chance"] > 1 / 12


@pytest.mark.parametrize("target", ["phone", "f0", "text"])
def test_every_row_carries_its_sizes_and_json_is_plain(probed, target):
    result = probed(target)
    for row in result.rows:
        assert set(COLUMNS) | {"p_note"} <= set(row)
        assert row["n_items"] > 0 and row["n_groups"] > 1 and row["n_frames"] > row["n_items"]
        assert row["value"] is not None and (row["p_value"] is not None or row["p_note"])
    assert json.loads(result.to_json())["rows"][0]["target"] == target


def test_the_same_seed_gives_the_same_bytes(corpus, probed):
    again = probe_target("phone", corpus, "embedded", n_permutations=PERMUTATIONS, n_bootstrap=30)
    assert again.to_json() == probed("phone").to_json()


def test_the_design_of_a_column(corpus):
    """Constant for speakers: speakers are left out. Constant for sessions: sessions, exchanged inside speakers. Varying
    inside sessions: clips are the units, speakers left out, exchanged inside sessions. Numbers are regressed on."""
    clips = [
        replace(c, labels={"accent": c.speaker[-1], "room": c.session[-1], "mood": str(i % 3), "rate": str(1 + i / 7)})
        for i, c in enumerate(corpus.clips)
    ]
    accent, room, mood, rate = (clip_label(name, clips) for name in ("accent", "room", "mood", "rate"))
    speaker, session, name = (np.array([getattr(c, k) for c in clips]) for k in ("speaker", "session", "clip_id"))
    assert (accent.groups == speaker).all() and (accent.units == speaker).all() and accent.blocks is None
    assert (room.groups == session).all() and (room.units == session).all() and (room.blocks == speaker).all()
    assert (mood.groups == speaker).all() and (mood.units == name).all() and (mood.blocks == session).all()
    assert rate.real and not mood.real and "number" in rate.notes[-1]
    partly = [replace(c, labels={} if i == 3 else c.labels) for i, c in enumerate(clips)]
    assert len(clip_label("mood", partly).kept) == len(clips) - 1 and "1 clips" in clip_label("mood", partly).notes[0]


def test_a_number_is_regressed_on(corpus):
    """A column that is the pitch of the clip's voice: layer 1 predicts it for new speakers."""
    pitch = [float(np.log(c.f0_hz[c.f0_hz > 0]).mean()) for c in corpus.clips]
    clips = tuple(replace(c, labels={"pitch": f"{p:.4f}"}) for c, p in zip(corpus.clips, pitch, strict=True))
    result = probe_target("pitch", replace(corpus, clips=clips), n_permutations=19, n_bootstrap=0)
    values = {row["layer"]: row["value"] for row in rows_of(result, "R2", "embedding")}
    assert values["layer 1"] > 0.5 > values["layer 0"]


def test_a_dead_layer_and_two_speakers(corpus):
    """A layer of one code tells nothing by any measure (accuracy is the share of the commonest phone); two speakers
    have no interval and ABX no p, and say so; one speaker cannot be left out."""
    tokenized = tokenize(corpus, open_codec("embedded"), cache=ArrayCache(cache_dir() / "codes"), quiet=True)
    dead = replace(tokenized, codes=tuple(np.where(np.arange(8) == 2, 5, codes) for codes in tokenized.codes))
    options = {"lag": 0, "n_shifts": 19, "seed": 0, "device": "cpu", "quiet": True}
    rows = {
        (r["metric"], r["features"]): r
        for r in read_phones(dead, open_codec("embedded"), **options).rows
        if r["layer"] == "layer 2"
    }
    assert rows["PNMI", "code"]["value"] == pytest.approx(0, abs=1e-12) and rows["PNMI", "code"]["p_value"] == 1
    assert rows["accuracy", "embedding"]["value"] < 0.2 and rows["ABX error across", "code"]["value"] == 0.5
    assert rows["ABX error across", "code"]["p_value"] is None and rows["ABX error across", "code"]["p_note"]
    few = probe_target("phone", embedded_corpus(speakers=2, sessions=1, clips=2), n_permutations=19)
    assert all(row["ci_low"] is None for row in few.rows)
    assert all("fewer than 3" in row["p_note"] for row in few.rows if row["metric"].startswith("ABX"))
    with pytest.raises(InputError, match="at least 2 of them"):
        probe_target("phone", embedded_corpus(speakers=1, sessions=1, clips=2), n_permutations=19)


def test_what_cannot_be_probed_is_refused(corpus):
    with pytest.raises(InputError, match="speaker-probe"):
        clip_label("speaker", corpus.clips)
    with pytest.raises(InputError, match="columns are sex, text_id"):
        clip_label("age", corpus.clips)
    with pytest.raises(DesignError, match="one value only"):
        clip_label("sex", [c for c in corpus.clips if c.labels["sex"] == "F"])
    with pytest.raises(DesignError, match="2 or more speakers say"):
        clip_label("text", corpus.clips[:10])
    with pytest.raises(DesignError, match="no speaker has 2 sessions"):
        clip_label("session", corpus.clips[::5])


def test_real_speech(librispeech):
    """LibriSpeech knows no phones and no parallel texts: one line with the next step. Its pitch is tracked."""
    where = str(librispeech / "dev-clean")
    for target, said in (("phone", "align the clips"), ("text", "take parallel recordings")):
        done = CliRunner().invoke(
            main, ["probe", "--target", target, "--corpus", where, "--speakers", "2", "--clips", "2", "--quiet"]
        )
        assert done.exit_code == 1 and said in done.output and len(done.output.strip().splitlines()) == 1
    done = CliRunner().invoke(
        main,
        ["probe", "--target", "f0", "--corpus", where, "--speakers", "3", "--clips", "2", "--permutations", "19",
         "--quiet", "--json"],
    )  # fmt: skip
    result = json.loads(done.output)
    assert done.exit_code == 0 and any("YIN" in note for note in result["notes"])
    assert all("8 ways" in row["p_note"] for row in result["rows"][:-1])  # 2! exchanges of 3 speakers


def test_the_command_writes_a_report(corpus, tmp_path):
    done = CliRunner().invoke(
        main,
        ["probe", "--target", "phone", "--speakers", "3", "--clips", "6", "--permutations", "19", "--lag", "1",
         "--out", str(tmp_path / "run"), "--quiet"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "lag +1 frames: as asked for" in done.output
    pictures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert pictures == {"phone-by-layer", "phone-information", "phone-abx"}
