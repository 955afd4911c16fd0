"""codecprobe timescales: planted pace per layer, the ladder's refusals as rows, speech and all frames, real speech."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from toy_codec import SIZES, ToyCodec, toy_clip, toy_corpus

from codecprobe.corpora.corpus import Corpus
from codecprobe.dynamics import COLUMNS, code_timescales, time_rows
from codecprobe.ladder import read_ladder
from codecprobe.pace import far_frames, in_time, measure_pace, shuffle_frames
from codecprobe.tokenization import TokenizedCorpus, tokenize
from probecli.codec import main
from probecore.errors import InputError
from probecore.results import Result
from probecore.stats.bootstrap import cluster_weights, expanded_interval

ROW = {
    "metric", "layer", "activity", "value", "ci_low", "ci_high", "estimator", "n_frames", "n_clips", "n_speakers",
    "detail",
}  # fmt: skip


def chain(n_frames, stay, size, rng):
    fresh = rng.random(n_frames) >= stay
    fresh[0] = True
    return rng.integers(0, size, n_frames)[np.maximum.accumulate(np.where(fresh, np.arange(n_frames), 0))]


def planted(speakers=8, sessions=2, clips=5, n_frames=150, seed=0) -> TokenizedCorpus:
    """Layer 0 white, layer 1 a chain that stays with .8, layer 2 white with 6 codes of the speaker's own in half."""
    rng = np.random.default_rng(seed)
    template = tokenize(Corpus("toy", (toy_clip(0),)), ToyCodec(), cache=None, quiet=True)
    names, codes = [], []
    for s in range(speakers):
        own = rng.permutation(16)[:6]
        for r in range(sessions):
            for i in range(clips):
                voice = np.where(rng.random(n_frames) < 0.5, rng.choice(own, n_frames), rng.integers(0, 16, n_frames))
                codes.append(np.stack([rng.integers(0, 16, n_frames), chain(n_frames, 0.8, 32, rng), voice], axis=1))
                names.append(toy_clip(len(names), clip_id=f"{s}-{r}-{i}", speaker=f"s{s}", session=f"s{s}-{r}"))
    return TokenizedCorpus(
        "planted", tuple(names), tuple(codes), (n_frames * 80,) * len(codes), (n_frames / 100,) * len(codes), (),
        template.codec, template.certificate,
    )  # fmt: skip


def all_frames(tokenized):
    return [np.ones(len(codes), dtype=bool) for codes in tokenized.codes]


def rows_of(tokenized, masks=None, far=25):
    masks = all_frames(tokenized) if masks is None else masks
    speaker = np.array([int(clip.speaker[1:]) for clip in tokenized.clips])
    pace = measure_pace(tokenized.codes, masks, speaker, far)
    mixed = [measure_pace(shuffle_frames(tokenized.codes, masks, np.random.default_rng(1)), masks, speaker, far)]
    rows = time_rows(pace, mixed, tokenized.codec, "speech", far=far, n_bootstrap=400, seed=0)
    return {(row["metric"], row["layer"]): row for row in rows}, pace


def test_each_layer_shows_the_pace_that_was_planted():
    """100 Hz: the chain has tau = .5 + .8/.2 = 4.5 frames = 45 ms, e-fold 4.5 frames, runs that end with h = .19375 a
    frame (median 4 frames); white codes half a frame. 12,000 frames: 15 % of tau is more than three of its spreads.
    """
    found, _ = rows_of(planted())
    tau = found["integrated time", "layer 1"]
    assert tau["value"] == pytest.approx(45, rel=0.15) and tau["in_frames"] == pytest.approx(tau["value"] / 10)
    assert (
        tau["ci_low"] < tau["value"] < tau["ci_high"]
        and tau["note"] == ""
        and tau["shuffled"] == pytest.approx(5, abs=0.7)
    )
    assert found["e-fold time", "layer 1"]["value"] == pytest.approx(45, rel=0.15)
    assert found["run length", "layer 1"]["in_frames"] == 4 and found["run length", "layer 1"]["shuffled"] == 10
    assert found["repeat rate", "layer 1"]["value"] == pytest.approx(0.80625, abs=0.02)
    assert found["mean run from repeats", "layer 1"]["in_frames"] == pytest.approx(1 / 0.19375, rel=0.1)
    for layer in ("layer 0", "layer 2"):
        white = found["integrated time", layer]
        assert white["value"] == pytest.approx(5, abs=0.5) and white["note"] == "< 1 frame"
        e_fold = found["e-fold time", layer]
        assert e_fold["value"] is None and e_fold["note"] == "< 1 frame" and "below 1/e" in e_fold["value_note"]


def test_intervals_of_times_cover():
    """60 worlds of 8 speakers x 3 clips: the interval holds 4.5 frames in at least 48 (of 57 expected at .95).

    The window cut off at 5 tau and the baseline cost tau about 2 %, a small part of the interval.
    """
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        codes = [chain(200, 0.8, 32, rng)[:, None] for _ in range(24)]
        pace = measure_pace(codes, [np.ones(200, dtype=bool)] * 24, np.arange(24) % 8, 40)
        spread = in_time(pace, cluster_weights(np.arange(8), 600, seed=seed)).integrated[:, 0]
        low, high = expanded_interval(spread, 8)
        held += low <= 4.5 <= high
    assert held >= 48


def test_a_voice_in_a_layer_is_in_its_ladder_and_not_in_its_times():
    tokenized = planted()
    ladder = read_ladder(tokenized, all_frames(tokenized), 25, "speech", n_permutations=999, seed=0)
    speaker = {row["layer"]: row for row in ladder.rows if row["metric"] == "G speaker"}
    assert speaker["layer 2"]["p_adjusted"] == 0.001 and speaker["layer 2"]["ci_low"] > 0.1
    assert all(speaker[layer]["p_adjusted"] > 0.05 for layer in ("layer 0", "layer 1"))
    for rung in ("G clip", "G session"):
        for row in ladder.rows:
            if row["metric"] == rung:
                assert row["ci_low"] < 0.02 and abs(row["value"]) < 0.1


def test_too_few_deals_leave_the_value_and_give_the_reason_for_no_p():
    tokenized = planted(speakers=3)
    ladder = read_ladder(tokenized, all_frames(tokenized), 25, "speech", n_permutations=99, seed=0)
    rows = [row for row in ladder.rows if row["metric"] == "G speaker"]
    assert all(row["value"] is not None and row["p_value"] is None and "15 ways" in row["p_note"] for row in rows)
    shown = Result("timescales", tuple(rows), columns=("layer", "value", "p_value"))
    assert "15 ways" in str(shown)


def test_frames_that_do_not_count_change_nothing_of_what_does():
    """Silence is one code: with it, repeats and collisions are those of silence; without it, those of the codes."""
    tokenized = planted(speakers=4)
    silent = [np.concatenate([np.zeros((60, 3), dtype=np.int64), codes]) for codes in tokenized.codes]
    with_silence = TokenizedCorpus(**{**tokenized.__dict__, "codes": tuple(silent)})
    masks = [np.arange(len(codes)) >= 60 for codes in silent]
    clean, _ = rows_of(tokenized)
    masked, _ = rows_of(with_silence, masks)
    everything, _ = rows_of(with_silence)
    for key, row in clean.items():
        assert masked[key]["value"] == row["value"]
    assert everything["repeat rate", "layer 0"]["value"] > 0.3 > 0.1 > clean["repeat rate", "layer 0"]["value"]


def test_shuffled_frames_keep_what_is_masked_and_every_histogram():
    tokenized = planted(speakers=2, clips=1)
    masks = [np.arange(len(codes)) % 3 > 0 for codes in tokenized.codes]
    before = [codes.copy() for codes in tokenized.codes]
    mixed = shuffle_frames(tokenized.codes, masks, np.random.default_rng(0))
    for old, new, mask, kept in zip(tokenized.codes, mixed, masks, before, strict=True):
        np.testing.assert_array_equal(old, kept)
        np.testing.assert_array_equal(new[~mask], old[~mask])
        assert sorted(map(tuple, new[mask].tolist())) == sorted(map(tuple, old[mask].tolist()))
        assert not np.array_equal(new, old)


def test_resampled_speakers_are_the_pace_of_those_speakers():
    """A weight of 2 for one speaker and 0 for the others gives what that speaker's clips alone give."""
    tokenized = planted(speakers=3)
    _, pace = rows_of(tokenized)
    alone = [i for i, clip in enumerate(tokenized.clips) if clip.speaker == "s1"]
    part = measure_pace([tokenized.codes[i] for i in alone], [all_frames(tokenized)[i] for i in alone],
                        np.zeros(len(alone), dtype=int), 25)  # fmt: skip
    weighted, own = in_time(pace, np.array([0.0, 2.0, 0.0])), in_time(part, np.ones(1))
    for name in ("repeat_rate", "median", "integrated", "e_fold"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(own, name), rtol=1e-12)


def test_times_that_outlast_far_say_so():
    """A chain of 4.5 frames with far pairs from 7 frames on: what is left of the correlation is the baseline's."""
    found, _ = rows_of(planted(), far=6)
    row = found["integrated time", "layer 1"]
    assert row["note"] == "at least" and row["value"] < 45
    short = planted(n_frames=20, clips=2)
    found, _ = rows_of(short, far=25)
    assert found["integrated time", "layer 1"]["value"] is None
    assert "--far" in found["integrated time", "layer 1"]["value_note"]


def test_far_is_more_than_a_frame():
    assert far_frames(1.0, 12.5) == 12 and far_frames(1.0, 75.0) == 75 and far_frames(0.08, 12.5) == 1
    with pytest.raises(InputError, match="at least 1 frame"):
        far_frames(0.05, 12.5)


def test_one_session_each_keeps_the_table_and_says_what_cannot_be_told(tmp_path):
    clips = tuple(toy_clip(i, seconds=0.6, speaker=f"s{i % 4}", session=f"s{i % 4}-x") for i in range(8))
    result = code_timescales(Corpus("toy", clips), ToyCodec(), far_s=0.2, n_permutations=99, cache=tmp_path)
    for row in result.rows:
        if row["metric"] in ("G session", "G speaker"):
            assert row["value"] is None and "cannot be told" in row["value_note"]
        if row["metric"] == "G speaker":
            assert row["p_value"] is None and "speaker and session cannot be told apart" in row["p_note"]
    assert any(row["metric"] == "G clip" and row["value"] is not None for row in result.rows)
    assert "cannot be told apart" in str(result)


def test_the_table_is_complete_and_the_same_again(tmp_path):
    result = code_timescales(toy_corpus(12), ToyCodec(), far_s=0.1, n_permutations=99, cache=tmp_path)
    assert {row["activity"] for row in result.rows} == {"speech", "all"}
    assert set(COLUMNS) >= set(result.columns)
    for row in result.rows:
        assert set(row) >= ROW - {"ci_low", "ci_high"}, row
        assert row["value"] is not None or row["value_note"], row
        assert row["value"] is None or row.get("ci_low") is not None or row["ci_note"], row
        assert "p_value" not in row or row["p_value"] is not None or row["p_note"], row
    again = code_timescales(toy_corpus(12), ToyCodec(), far_s=0.1, n_permutations=99, cache=tmp_path)
    assert result.to_json() == again.to_json()
    assert len(SIZES) * 2 == sum(row["metric"] == "repeat rate" for row in result.rows)


def test_clips_of_a_few_frames_are_no_crash(tmp_path):
    clips = tuple(toy_clip(i, seconds=0.02 + 0.01 * i, speaker="s0", session="s0-0") for i in range(2))
    result = code_timescales(Corpus("brief", clips), ToyCodec(), n_permutations=0, cache=tmp_path)
    tau = next(row for row in result.rows if row["metric"] == "integrated time")
    assert tau["value"] is None and "lower it" in tau["value_note"]
    speaker = next(row for row in result.rows if row["metric"] == "G speaker")
    assert speaker["value"] is None and speaker["p_note"]


def test_the_embedded_pair_shows_its_plant(tmp_path):
    """Layer 0 content, layers 1 and 2 the voice: the voice stays longer and is of the speaker; content is of nobody."""
    result = code_timescales(n_permutations=999)
    found = {(r["metric"], r["layer"]): r for r in result.shown}
    assert found["G speaker", "layer 0"]["p_adjusted"] > 0.05 and abs(found["G speaker", "layer 0"]["value"]) < 0.05
    for layer in ("layer 1", "layer 2"):
        assert found["G speaker", layer]["p_adjusted"] < 0.01 and found["G speaker", layer]["ci_low"] > 0
        voice, content = found["integrated time", layer], found["integrated time", "layer 0"]
        assert voice["ci_low"] > content["ci_high"] and content["note"] == "< 1 frame"
    flat = code_timescales(codec="embedded-flat", n_permutations=999)
    assert all(r["p_adjusted"] > 0.01 for r in flat.shown if r["metric"] == "G speaker")
    folder = result.save(tmp_path / "report")
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {
        "integrated-time", "autocorrelation", "run-lengths", "ladder",
    }  # fmt: skip


def test_real_chapters_and_the_refusal_of_one_chapter_each(librispeech):
    """dev-clean has readers with several chapters, test-other one each: there the speaker's rung is a reason."""
    arguments = ["timescales", "--corpus", str(librispeech / "test-other"), "--json", "--quiet", "--permutations", "99"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    speaker = [row for row in rows if row["metric"] == "G speaker"]
    assert speaker and all(row["value"] is None and row["p_note"] for row in speaker)
    result = code_timescales(librispeech / "dev-clean", "embedded", n_permutations=199)
    found = {(r["metric"], r["layer"]): r for r in result.shown}
    assert found["G speaker", "layer 1"]["n_clips"] == 240 and found["G speaker", "layer 1"]["n_speakers"] == 8
    assert found["G speaker", "layer 1"]["p_value"] is not None
