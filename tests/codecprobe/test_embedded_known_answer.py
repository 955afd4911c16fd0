"""The known answer: on the embedded corpus, layer 0 does not know the speaker, layers 1 and 2 do, later ones add
little, sessions leak under a split by clip, and the flat codec knows nobody.

Windows are the first 37 frames (2.96 s) of every clip; accuracy is leave-one-session-out; p from exchanging the
sessions between speakers.
"""

import numpy as np
import pytest
from scipy.stats import combine_pvalues

from codecprobe.codecs.embedded import open_embedded
from codecprobe.corpora.embedded import embedded_corpus
from probecore import Activations, Label, probe_layers

FRAMES = 37


def windows(codec, corpus):
    codes = codec.encode([clip.read().samples for clip in corpus.clips])
    return np.stack([clip.values[:FRAMES] for clip in codes])


def histograms(codec, codes):
    sizes = codec.info.codebook_sizes
    return {
        f"layer {k}": np.sqrt(np.stack([np.bincount(w, minlength=sizes[k]) for w in codes[:, :, k]]) / FRAMES)
        for k in range(8)
    }


def embeddings(codec, codes):
    vectors = [codec.codebook(k)[codes[:, :, k]].astype(np.float64) for k in range(8)]
    return {f"layer {k}": np.concatenate([v.mean(axis=1), v.std(axis=1)], axis=1) for k, v in enumerate(vectors)}


def standardised(values):
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 1e-9, spread, 1)


def probed(values, corpus, **how):
    speakers = [clip.speaker for clip in corpus.clips]
    sessions = [clip.session for clip in corpus.clips]
    how = {"n_bootstrap": 0, "n_permutations": 999, **how}
    acts = Activations.from_arrays(values, sessions, {"speaker": Label(speakers, units=sessions)})
    return list(probe_layers(acts, "speaker", **how).rows)


@pytest.fixture(scope="module")
def corpus():
    return embedded_corpus()


@pytest.fixture(scope="module")
def planted():
    return open_embedded("embedded")


@pytest.fixture(scope="module")
def codes(planted, corpus):
    return windows(planted, corpus)


@pytest.mark.parametrize("features", [histograms, embeddings])
def test_layer_0_is_at_chance_and_layers_1_and_2_identify_the_speaker(features, planted, corpus, codes):
    rows = probed(features(planted, codes), corpus)
    assert rows[0]["p_value"] > 0.1 and rows[0]["accuracy"] < rows[0]["nominal_chance"]
    assert all(row["p_adjusted"] < 0.01 for row in rows[1:3])
    assert rows[1]["accuracy"] > 0.6 and rows[2]["accuracy"] > 0.25
    assert max(row["accuracy"] for row in rows[3:]) < rows[2]["accuracy"]


def test_later_layers_add_nothing_to_the_first_three(planted, corpus, codes):
    layers = [standardised(values) for values in embeddings(planted, codes).values()]
    stacked = {f"0-{k}": np.concatenate(layers[: k + 1], axis=1) for k in range(8)}
    accuracy = [row["accuracy"] for row in probed(stacked, corpus, n_permutations=0)]
    assert accuracy[2] > accuracy[0] + 0.5
    assert max(accuracy[3:]) - accuracy[2] < 0.05


def test_sessions_leak_under_a_split_by_clip(planted, corpus, codes):
    """The detail layers hear the channel: a clip's own session in training raises them by more than 0.15 on average.

    Every layer but the content gains; one difference of 180 windows has a standard error of about .04.
    """
    values = embeddings(planted, codes)
    by_session = np.array([row["accuracy"] for row in probed(values, corpus, n_permutations=0)])
    by_clip = np.array([row["accuracy"] for row in probed(values, corpus, n_permutations=0, folds="item")])
    assert (by_clip - by_session)[1:].min() > 0.04
    assert (by_clip - by_session)[3:].mean() > 0.15


@pytest.mark.parametrize("features", [histograms, embeddings])
def test_the_flat_codec_shows_nobody(features, corpus):
    flat = open_embedded("embedded-flat")
    rows = probed(features(flat, windows(flat, corpus)), corpus)
    assert min(row["p_adjusted"] for row in rows) > 0.05
    assert max(row["accuracy"] for row in rows) < 0.15


def test_the_answer_holds_for_other_voices(planted):
    """Four further corpora of 6 speakers x 3 sessions x 4 clips. Were layer 0 to know the speaker, its p-values would
    pile up at 0; combined (Fisher) they must stay above .01. Layers 1 and 2 are found in every one."""
    p = []
    for seed in (21, 22, 23, 24):
        other = embedded_corpus(seed, speakers=6, sessions=3, clips=4)
        rows = probed(dict(list(histograms(planted, windows(planted, other)).items())[:3]), other)
        p.append(rows[0]["p_value"])
        assert all(row["p_value"] < 0.01 for row in rows[1:])
    assert combine_pvalues(p).pvalue > 0.01
