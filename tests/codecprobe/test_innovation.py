"""The cross-entropy bound against streams whose information is known, and against a slow count."""

import numpy as np
import pytest
from toy_codec import ToyCodec

from codecprobe import innovation
from codecprobe.innovation import BY_LAYERS, IN_TIME, innovation_rows, past_bound
from codecprobe.layer_information import Streams

K = 8


class TableCodec:
    """Code vectors only, for layers of K entries."""

    def __init__(self, n_layers: int, dim: int = 12) -> None:
        rng = np.random.default_rng(5)
        self.tables = [rng.standard_normal((K, dim)).astype(np.float32) for _ in range(n_layers)]
        self.info = type("Info", (), {"codebook_sizes": (K,) * n_layers})

    def codebook(self, layer: int) -> np.ndarray:
        return self.tables[layer]


def streams(codes: np.ndarray, n_clips: int = 40, n_speakers: int = 8) -> Streams:
    lengths = np.full(n_clips, len(codes) // n_clips)
    layers = tuple(f"layer {k}" for k in range(codes.shape[1]))
    return Streams(codes, lengths, np.arange(n_clips) % n_speakers, layers, 12.5, 0)


def noisy_copy(code: np.ndarray, keep: float, rng: np.random.Generator) -> np.ndarray:
    """Keep each code with probability `keep`, else draw any: I = log2 K - H(p, q, ..., q) in closed form."""
    return np.where(rng.random(len(code)) < keep, code, rng.integers(0, K, len(code)))


def information_of_noisy_copy(keep: float) -> float:
    p = np.full(K, (1 - keep) / K)
    p[0] += keep
    return float(np.log2(K) + (p * np.log2(p)).sum())


@pytest.fixture(scope="module")
def chain():
    """Layer 1 copies layer 0 with noise, layer 2 is new, layer 3 repeats layer 0 or layer 2 with noise of its own."""
    rng = np.random.default_rng(0)
    n = 8000
    a, c = rng.integers(0, K, n), rng.integers(0, K, n)
    return streams(np.stack([a, noisy_copy(a, 0.7, rng), c, noisy_copy(a, 0.4, rng)], axis=1)), TableCodec(4)


def test_the_bound_lies_below_the_truth_and_near_to_it(chain):
    """4,000 frames a half: the error is about sqrt(var(loss) / n) < .03 bit, and the bound errs low by overfitting."""
    world, codec = chain
    for layer, keep in ((1, 0.7), (3, 0.4)):
        truth = information_of_noisy_copy(keep)
        bound = past_bound(world, codec, layer, (0,), K, in_time=False, seed=0)
        assert 0.85 * truth - 0.03 < bound.value < truth + 0.05, (layer, truth, bound)
        assert bound.low < bound.value < bound.high and bound.low < truth


def test_streams_that_know_nothing_of_each_other_give_nothing(chain):
    world, codec = chain
    for pasts, in_time in (((0, 1), False), ((2,), True)):
        bound = past_bound(world, codec, 2, pasts, K, in_time=in_time, seed=0)
        assert -0.05 < bound.value < 0.02 and bound.low < 0.02


def test_a_layer_that_follows_from_the_one_before_is_told_whole():
    rng = np.random.default_rng(1)
    a = rng.integers(0, K, 4000)
    world = streams(np.stack([a, rng.permutation(K)[a]], axis=1))
    bound = past_bound(world, TableCodec(2), 1, (0,), K, in_time=False, seed=0)
    assert 2.8 < bound.value <= 3.0


def test_time_is_read_inside_clips_only():
    """Codes that stand still in a clip and are random between clips: I in time is H of the clips' codes, no more.

    Were the border of clips crossed, every first frame (1 of 4 here) would be foretold by another clip.
    """
    rng = np.random.default_rng(2)
    still = np.repeat(rng.integers(0, K, 1000), 4)
    world = streams(still[:, None], n_clips=1000)
    bound = past_bound(world, TableCodec(1), 0, (0,), K, in_time=True, seed=0)
    assert 2.85 < bound.value <= 3.0


def test_each_half_is_predicted_by_the_other(chain, monkeypatch):
    """The frames that teach and those that are tested share all speakers and no clip; each frame is tested once."""
    world, codec = chain
    seen = []
    whole = innovation._cross_entropy

    def watched(vectors, target, learn, try_on, clip, n_classes):
        assert not set(clip[learn]) & set(clip[try_on])
        assert set(world.of_frame[learn]) == set(world.of_frame[try_on]) == set(range(8))
        seen.append(try_on)
        return whole(vectors, target, learn, try_on, clip, n_classes)

    monkeypatch.setattr(innovation, "_cross_entropy", watched)
    past_bound(world, codec, 1, (0,), K, in_time=False, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(world.codes)))


def test_rows_carry_bound_entropy_left_and_share(chain):
    world, codec = chain
    rows = innovation_rows(world, codec, seed=0)
    found = {(row["metric"], row["layer"]): row for row in rows}
    assert (BY_LAYERS, "layer 0") not in found and (IN_TIME, "layer 0") in found
    own = found[BY_LAYERS, "layer 1"]
    left = found["conditional entropy given layers before", "layer 1"]
    assert (
        left["value"] == pytest.approx(own["most"] - own["value"]) and left["ci_low"] < left["value"] < left["ci_high"]
    )
    assert found["innovation share given layers before", "layer 1"]["value"] == pytest.approx(
        left["value"] / own["most"]
    )
    assert not own["detail"] and left["detail"] and own["n_frames"] == 8000 and own["n_speakers"] == 8
    assert found["innovation share given layers before", "layer 2"]["value"] <= 1
    again = innovation_rows(world, codec, seed=0)
    assert again == rows


def test_what_is_shared_by_way_of_the_speaker_is_shared():
    """Both layers name the speaker, each with a code of its own: I = log2 of 8 speakers, in no one of them."""
    speaker = np.repeat(np.arange(40) % 8, 100)
    world = streams(np.stack([speaker, (speaker * 3 + 1) % K], axis=1))
    bound = past_bound(world, TableCodec(2), 1, (0,), K, in_time=False, seed=0)
    assert 2.9 < bound.value <= 3.0


def test_too_few_frames_say_so():
    world = streams(np.zeros((80, 2), dtype=np.int64) + np.arange(80)[:, None] % K)
    rows = innovation_rows(world, TableCodec(2), seed=0)
    assert rows and all(row["value"] is None and "80 needed" in row["value_note"] for row in rows)


def test_wide_tables_and_codes_that_are_rare_cost_no_crash():
    codec = ToyCodec()
    rng = np.random.default_rng(3)
    codes = np.stack([rng.integers(0, size, 800) for size in codec.info.codebook_sizes], axis=1)
    codes[:, 0] = 0  # one code only
    rows = innovation_rows(streams(codes, n_clips=20), codec, seed=0)
    assert all(row["value"] is None or np.isfinite(row["value"]) for row in rows)
