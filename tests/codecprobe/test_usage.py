"""codecprobe usage: known books, planted information, budgets, use in training, and what a row must carry."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from toy_codec import SIZES, ToyCodec, toy_clip, toy_corpus

from codecprobe.codebook_counts import Counts, CountsItsTraining, bit_rate_row, chosen_budget, layer_rows, training_rows
from codecprobe.corpora.corpus import Corpus
from codecprobe.layer_information import (
    Streams,
    chain_pairs,
    coarse_information,
    excess_information,
    information_rows,
    streams_of,
)
from codecprobe.usage import COLUMNS, codebook_usage
from probecli.codec import main
from probecore.errors import InputError

ROW = {"metric", "layer", "activity", "value", "estimator", "unit", "n_frames", "n_clips", "n_speakers", "detail"}


def counts_of(p, n_speakers=10, n_frames=2000, seed=0):
    return Counts("layer 0", "speech", np.random.default_rng(seed).multinomial(n_frames, p, n_speakers) * 1.0, 50)


def row(rows, metric):
    return next(r for r in rows if r["metric"] == metric)


def test_a_uniform_book_is_used_evenly_and_a_zipf_book_is_not():
    """20,000 frames of 256 codes: -log2 p of Zipf has a spread of 2 bits, the entropy one of .014; .05 allowed."""
    uniform, zipf = np.full(256, 1 / 256), 1 / np.arange(1, 257)
    zipf /= zipf.sum()
    for p in (uniform, zipf):
        rows = layer_rows(counts_of(p), 5000)
        truth = -(p * np.log2(p)).sum()
        entropy = row(rows, "entropy")
        assert entropy["estimator"] == "miller-madow" and entropy["most"] == 8
        assert entropy["value"] == pytest.approx(truth, abs=0.05)
        assert entropy["ci_low"] - 0.02 <= truth <= entropy["ci_high"] + 0.02
        assert row(rows, "perplexity")["value"] == pytest.approx(2 ** entropy["value"])
        assert row(rows, "efficiency")["value"] == pytest.approx(entropy["value"] / 8)
        expected = (1 - (1 - p) ** 5000).sum()
        assert row(rows, "codes used")["value"] == pytest.approx(expected, abs=3)
        assert row(rows, "codes not seen")["detection_limit"] == pytest.approx(3 / 20_000, rel=0.01)
        assert all(r["ci_high"] is None or r["ci_high"] <= max(r["most"], r["value"]) for r in rows)


def test_intervals_are_as_wide_as_speakers_differ():
    """Ten speakers who use the book alike, and ten who use parts of it: the same frames, another sample size."""
    alike = row(layer_rows(counts_of(np.full(64, 1 / 64)), 100), "entropy")
    rng = np.random.default_rng(1)
    own = np.stack([rng.multinomial(2000, rng.dirichlet(np.full(64, 0.1))) for _ in range(10)]) * 1.0
    apart = row(layer_rows(Counts("layer 0", "speech", own, 50), 100), "entropy")
    assert apart["ci_high"] - apart["ci_low"] > 20 * (alike["ci_high"] - alike["ci_low"])


def test_intervals_cover_what_other_speakers_would_give():
    """200 worlds of 8 speakers who use a book of 64 each in their own way: at .95, .90 to .99 hold the worlds' mean."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        own = np.stack([rng.multinomial(500, rng.dirichlet(np.full(64, 0.5))) for _ in range(8)]) * 1.0
        rows = layer_rows(Counts("layer 0", "speech", own, 8), 1000)
        found.append([[row(rows, m)[k] for k in ("value", "ci_low", "ci_high")] for m in ("entropy", "codes used")])
    for values in np.swapaxes(found, 0, 1):
        aim = values[:, 0].mean()
        assert 0.89 <= np.mean((values[:, 1] <= aim) & (aim <= values[:, 2])) <= 0.995


def test_two_speakers_have_no_interval_and_say_so():
    rows = layer_rows(counts_of(np.full(64, 1 / 64), n_speakers=2), 100)
    assert all(r["ci_low"] is None and r["ci_note"] for r in rows)


def test_the_budget_is_one_that_every_layer_and_jackknife_sample_has():
    counts = counts_of(np.full(64, 1 / 64), n_speakers=10, n_frames=700)
    assert chosen_budget(counts, None) == 5000
    assert chosen_budget(counts, 6300) == 6300
    with pytest.raises(InputError, match="at most the 6300 frames"):
        chosen_budget(counts, 6301)


def test_the_bit_rate_is_the_sum_of_entropies_times_frames_per_second():
    codec = ToyCodec()
    arm = [Counts(f"layer {k}", "speech", np.full((4, size), 1000.0), 9) for k, size in enumerate(SIZES)]
    found = bit_rate_row(arm, codec.info)
    assert found["most"] == pytest.approx(100 * (4 + 5 + 4))
    assert found["value"] == pytest.approx(found["most"], rel=1e-3)


class Trained(ToyCodec):
    """A codec whose checkpoint counts its training: layer 0 as observed, layer 1 all equal, layer 2 other codes."""

    def training_usage(self, layer):
        usage = [np.arange(1, 17), np.ones(32), np.r_[np.zeros(8), np.full(8, 5.0)]][layer]
        return usage.astype(np.float32)


def test_use_in_training_stands_beside_what_was_seen():
    first = np.arange(1, 17) * 100.0
    arm = [
        Counts("layer 0", "speech", np.tile(first, (4, 1)), 9),
        Counts("layer 1", "speech", np.full((4, 32), 50.0), 9),
        Counts("layer 2", "speech", np.tile(np.r_[np.full(12, 100.0), np.zeros(4)], (4, 1)), 9),
    ]
    rows, note = training_rows(arm, Trained())
    of = {(r["layer"], r["metric"]): r for r in rows}
    p = np.arange(1, 17) / 136
    assert of["layer 0", "training perplexity"]["value"] == pytest.approx(2 ** -(p * np.log2(p)).sum())
    assert of["layer 0", "divergence from training"]["value"] == pytest.approx(0, abs=0.01)
    assert of["layer 1", "training perplexity"]["value"] is None
    assert "all entries" in of["layer 1", "training perplexity"]["value_note"] and "1 of 3 layers" in note
    assert of["layer 2", "rare in training"]["value"] == 8
    assert of["layer 2", "used in training, not seen"]["value"] == 4
    assert of["layer 2", "divergence from training"]["value"] > 1
    assert training_rows(arm, ToyCodec())[0] == [] and "holds no counts" in training_rows(arm, ToyCodec())[1]


def test_the_qwen_adapter_offers_its_training():
    from codecprobe.codecs.qwen3_tts import Qwen3TTSCodec

    assert issubclass(Qwen3TTSCodec, CountsItsTraining) and not issubclass(ToyCodec, CountsItsTraining)


class Books:
    """Code vectors in 16 clusters for every layer."""

    def codebook(self, layer):
        rng = np.random.default_rng(layer)
        return 10 * np.eye(16)[np.arange(64) // 4] + 0.1 * rng.standard_normal((64, 16))


def planted_streams(n_clips=60, n_frames=100):
    """Layer 1 repeats the cluster of layer 0 in half of the frames, layer 2 is independent."""
    rng = np.random.default_rng(0)
    codes = []
    for _ in range(n_clips):
        a, c = rng.integers(0, 64, (2, n_frames))
        b = np.where(
            rng.random(n_frames) < 0.5, a // 4 * 4 + rng.integers(0, 4, n_frames), rng.integers(0, 64, n_frames)
        )
        codes.append(np.stack([a, b, c], axis=1))
    masks = [np.ones(n_frames, dtype=bool)] * n_clips
    return streams_of(codes, masks, np.arange(n_clips) % 6, ("layer 0", "layer 1", "layer 2"), 12.5)


def test_coarse_information_is_a_lower_bound_that_finds_what_was_planted():
    """Half of the frames agree on one of 16 clusters: 1.28 bits (3,000 frames a half, so 16 groups); 0 elsewhere."""
    joint = 0.5 / 256 + np.diag(np.full(16, 0.5 / 16))
    truth = (joint * np.log2(joint * 256)).sum()
    found = coarse_information(planted_streams(), Books())
    assert found[0, 1]["n_groups"] == 16
    assert truth - 0.35 < found[0, 1]["value"] < truth + 0.05  # k-means with one start may join two of the clusters
    assert found[0, 1]["ci_low"] < found[0, 1]["value"] < found[0, 1]["ci_high"]
    for pair in ((0, 2), (1, 2)):
        assert abs(found[pair]["value"]) < 0.03 and found[pair]["ci_low"] < 0.03


def test_excess_information_has_a_p_for_what_was_planted_alone():
    found = excess_information(planted_streams(), chain_pairs(3), n_shifts=199, seed=0)
    assert list(found) == [(0, 1), (1, 2), (0, 2)]
    assert found[0, 1]["p_value"] == found[0, 1]["p_adjusted"] == 1 / 200 and found[0, 1]["ci_low"] > 0.3
    assert found[0, 1]["min_shift_frames"] == 25
    for pair in ((1, 2), (0, 2)):
        assert found[pair]["p_adjusted"] > 0.05 and abs(found[pair]["value"]) < 0.05


def test_counted_information_is_refused_and_conditional_entropy_bounded():
    rows = information_rows(planted_streams(), Books(), n_shifts=19, seed=0, quiet=True)
    counted = row(rows, "counted information")
    assert counted["value"] is None and "6000 frames are fewer than 10 x 64 x 64" in counted["value_note"]
    left = row(rows, "conditional entropy")
    shared = row(rows, "shared information")
    assert left["value"] == pytest.approx(left["most"] - shared["value"]) and "upper bound" in left["estimator"]
    assert left["most"] == pytest.approx(6, abs=0.02)
    assert sum(r["metric"] == "shared information" and not r["detail"] for r in rows) == 2


def test_too_few_frames_refuse_the_coarse_estimate_too():
    found = coarse_information(planted_streams(n_clips=3, n_frames=50), Books())
    assert all(r["value"] is None and "do not support 4 groups" in r["value_note"] for r in found.values())


def test_streams_keep_clips_whole_and_count_those_left_out():
    codes = [np.arange(2 * n).reshape(n, 2) % 5 for n in (3, 8, 5)]
    masks = [np.ones(3, dtype=bool), np.arange(8) % 2 == 0, np.ones(5, dtype=bool)]
    streams = streams_of(codes, masks, np.array([0, 0, 1]), ("a", "b"), 10.0)
    assert isinstance(streams, Streams) and streams.n_too_short == 1 and streams.lengths.tolist() == [4, 5]
    np.testing.assert_array_equal(streams.codes[:4], codes[1][::2])
    assert streams.of_frame.tolist() == [0] * 4 + [1] * 5


def test_the_table_is_complete_and_the_same_again(tmp_path):
    result = codebook_usage(toy_corpus(9), ToyCodec(), n_permutations=19, cache=tmp_path)
    assert all(set(r) >= ROW for r in result.rows if r["activity"] != "training")
    assert {r["activity"] for r in result.rows} == {"speech", "all"}
    assert set(COLUMNS) >= set(result.columns)
    for r in result.rows:
        assert r["value"] is not None or r["value_note"], r
        assert (
            r.get("ci_low") is not None or r.get("ci_note") or r["metric"].split()[0] in ("counted", "conditional")
        ), r
    assert result.to_json() == codebook_usage(toy_corpus(9), ToyCodec(), n_permutations=19, cache=tmp_path).to_json()
    assert sum(r["count"] for r in result.tables["codes"] if (r["layer"], r["activity"]) == ("layer 1", "all")) == (
        next(r["n_frames"] for r in result.rows if r["activity"] == "all")
    )


def test_one_brief_clip_is_no_crash(tmp_path):
    result = codebook_usage(Corpus("one", (toy_clip(0, seconds=0.03),)), ToyCodec(), n_permutations=19, cache=tmp_path)
    assert row(result.rows, "entropy")["n_frames"] == 3
    assert not any(r["metric"] == "shared information" for r in result.rows)
    assert any("left out: 1" in note for note in result.notes)


def test_the_command_gives_one_json_object(tmp_path):
    done = CliRunner().invoke(
        main,
        [
            "usage",
            "--speakers",
            "4",
            "--clips",
            "3",
            "--permutations",
            "19",
            "--json",
            "--quiet",
            "--out",
            str(tmp_path),
        ],
    )
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["kind"] == "usage" and record["provenance"]["command"] == "codecprobe usage"
    assert {p.name for p in (tmp_path / "figures").iterdir()} >= {
        "codes-used.png", "efficiency-by-layer.png", "shared-information.png",
    }  # fmt: skip
    refused = CliRunner().invoke(main, ["usage", "--speakers", "4", "--clips", "3", "--budget", "99999", "--quiet"])
    assert refused.exit_code == 1 and refused.output.startswith("Error: --budget must be at most")
