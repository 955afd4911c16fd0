"""Windows and features: what they are, what they cannot know, what is left out and named."""

import numpy as np
import pytest
from toy_codec import SIZES, ToyCodec

from codecprobe.codecs.codec import CodecInfo
from codecprobe.corpora.corpus import Audio, Clip
from codecprobe.representation import FEATURES, Windows, baselines, cut_windows, embedding, histogram, represent
from codecprobe.tokenization import TokenizedCorpus
from probecore.errors import InputError


def clip(name: str, speaker: str, session: str) -> Clip:
    return Clip(name, speaker, session, lambda: Audio(np.ones(1, np.float32), 8000), lambda: name, labels={"sex": "F"})


def tokenized(lengths: tuple[int, ...], info: CodecInfo, seed: int = 0) -> TokenizedCorpus:
    rng = np.random.default_rng(seed)
    codes = tuple(np.stack([rng.integers(0, k, n) for k in SIZES], axis=1) for n in lengths)
    clips = tuple(clip(f"c{i}", f"s{i % 2}", f"s{i % 2}-{i // 2 % 2}") for i in range(len(lengths)))
    return TokenizedCorpus(
        "toy", clips, codes, tuple(80 * n for n in lengths), tuple(n / 100 for n in lengths), (), info, {}
    )


def test_windows_have_one_length_and_the_short_are_named():
    windows = cut_windows(tokenized((300, 299, 301, 500), ToyCodec().info), 3.0)
    assert {w.shape for w in windows.codes} == {(300, 3)}
    assert windows.too_short == ("c1",) and windows.frames == 300
    assert [c.clip_id for c in windows.clips] == ["c0", "c2", "c3"]


def test_a_window_of_whole_frames_has_all_of_them():
    """0.58 s at 50 Hz are 29 frames, although 0.58 x 50 is 28.999999999999996 in binary."""
    info = CodecInfo("c", 16_000, 320, SIZES, ((0, 1, 2),), True, True, "w")
    for window_s, frames in ((0.58, 29), (1.14, 57), (0.57, 28), (0.59, 29)):
        assert cut_windows(tokenized((200, 200), info), window_s).frames == frames


def test_no_clip_long_enough_and_no_frame_are_refused():
    with pytest.raises(InputError, match=r"--window 9 s is longer than every clip; the longest has 3.01 s"):
        cut_windows(tokenized((300, 301), ToyCodec().info), 9.0)
    with pytest.raises(InputError, match=r"at least 1 frame of 0.01 s; got 0.001 s"):
        cut_windows(tokenized((300,), ToyCodec().info), 0.001)


@pytest.mark.parametrize("features", FEATURES)
def test_no_feature_knows_the_order_of_frames(features: str):
    """Shuffled in time, a layer looks the same: bit for bit as counts, to the rounding of a mean as vectors."""
    codec = ToyCodec()
    windows = cut_windows(tokenized((300,) * 8, codec.info), 3.0)
    rng = np.random.default_rng(1)
    shuffled = Windows(
        windows.clips, tuple(rng.permutation(w) for w in windows.codes), windows.durations_s, 3.0, codec.info
    )
    one, other = (represent(w, codec, features) for w in (windows, shuffled))
    for layer in one.layers:
        if features == "histogram":
            np.testing.assert_array_equal(one.values(layer), other.values(layer))
        else:
            np.testing.assert_allclose(one.values(layer), other.values(layer), atol=1e-9)


def test_histograms_and_embeddings_against_loops():
    codec = ToyCodec()
    windows = cut_windows(tokenized((20, 20), codec.info), 0.2)
    for k, size in enumerate(SIZES):
        for i, codes in enumerate(windows.codes):
            counts = np.array([sum(int(c) == v for c in codes[:, k]) for v in range(size)])
            np.testing.assert_allclose(histogram(windows.codes, k, size)[i], np.sqrt(counts / 20), rtol=1e-15)
            vectors = np.array([codec.tables[k][c] for c in codes[:, k]], dtype=np.float64)
            expected = np.r_[vectors.mean(0), vectors.std(0)]
            np.testing.assert_allclose(embedding(windows.codes, k, codec.tables[k])[i], expected, rtol=1e-12)


def test_cumulative_holds_the_layers_before():
    codec = ToyCodec()
    acts = represent(cut_windows(tokenized((30,) * 6, codec.info), 0.3), codec, "cumulative")
    assert acts.layers == ("layer 0", "layers 0-1", "layers 0-2")
    whole = acts.values("layers 0-2")
    for k, layer in enumerate(acts.layers):
        np.testing.assert_array_equal(acts.values(layer), whole[:, : 160 * (k + 1)])


def test_groups_are_sessions_and_labels_say_their_units():
    codec = ToyCodec()
    acts = represent(cut_windows(tokenized((30,) * 8, codec.info), 0.3), codec)
    assert acts.n_groups == 4 and set(acts.labels) == {"speaker", "session", "sex"}
    np.testing.assert_array_equal(acts.label("speaker").units, acts.groups)
    np.testing.assert_array_equal(acts.label("sex").units, acts.label("speaker").values)
    with pytest.raises(InputError, match="features must be one of embedding, histogram, cumulative; got 'words'"):
        represent(cut_windows(tokenized((30,) * 4, codec.info), 0.3), codec, "words")


def test_codes_are_left_as_they_are():
    codec = ToyCodec()
    source = tokenized((30,) * 4, codec.info)
    before = [codes.copy() for codes in source.codes]
    for features in FEATURES:
        acts = represent(cut_windows(source, 0.3), codec, features)
        [acts.values(layer) for layer in acts.layers]
    for old, new in zip(before, source.codes, strict=True):
        np.testing.assert_array_equal(old, new)


def test_baselines_are_the_clips_own():
    windows = cut_windows(tokenized((30, 60), ToyCodec().info), 0.3)
    acts = baselines(windows, np.arange(4.0).reshape(2, 2), np.arange(76.0).reshape(2, 38))
    np.testing.assert_allclose(acts.values("clip length")[:, 0], np.log([0.3, 0.6]))
    assert acts.values("energy").shape == (2, 2) and acts.values("MFCC").shape == (2, 38)
