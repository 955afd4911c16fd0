"""probe_layers: the whole call against explicit loops, its rows, refusals, and what must not change a number."""

import numpy as np
import pytest
from reference import ridge_reference

from probecore.activations import Activations, Label
from probecore.errors import DesignError, InputError
from probecore.probes import runner
from probecore.probes.layers import probe_layers
from probecore.probes.permutation import draw_labelings
from probecore.probes.solvers import ProbeSpec
from probecore.seeds import generator
from probecore.splits import group_folds, stratified_folds

SPEAKER = np.repeat(np.arange(10), 5)
ROW_KEYS = {
    *("layer", "accuracy", "balanced_accuracy", "ci_low", "ci_high", "chance", "nominal_chance", "margin", "p_value"),
    *("p_adjusted", "q_value", "selectivity", "smallest_p", "n_permutations", "n_items", "n_groups", "n_classes"),
    "p_note",
}


def clips(n_layers=3, d=40, n_classes=2, seed=0):
    rng = generator(seed, "probe layers", d)
    y = np.concatenate([rng.permutation(np.arange(5) % n_classes) for _ in range(10)])
    x = rng.normal(size=(n_layers, 50, d)) + 0.5 * rng.normal(size=(n_layers, 10, d))[:, SPEAKER]
    x[-1] += 1.5 * y[:, None] * rng.normal(size=d) / np.sqrt(d) * 2
    return x, y


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("standardize", ["fold", "none"])
def test_the_whole_call_equals_explicit_loops(n_classes, standardize):
    """Accuracy, balanced accuracy, margin, chance and p of every layer from refits by other algebra."""
    x, y = clips(n_classes=n_classes)
    result = probe_layers(x, y, groups=SPEAKER, n_permutations=29, n_bootstrap=0, standardize=standardize, alpha=9.0)
    folds = group_folds(SPEAKER, 5).pairs
    labels = draw_labelings(result.design, 29).values
    rows = np.concatenate([test for _, test in folds])
    for i, row in enumerate(result.rows):
        f = np.concatenate(ridge_reference.decisions(x[i], folds, labels, n_classes, 9.0, standardize))
        scores = np.array([ridge_reference.scores(f[:, p], labels[rows, p], n_classes) for p in range(30)])
        found = [row["accuracy"], row["balanced_accuracy"], row["margin"], row["chance"]]
        assert found == pytest.approx([*scores[0], scores[1:, 0].mean()], abs=1e-10)
        assert row["p_value"] == (1 + (scores[1:, 2] >= scores[0, 2] - 1e-9).sum()) / 30
        assert row["selectivity"] == pytest.approx(scores[0, 0] - scores[1:, 0].mean())
        np.testing.assert_allclose(result.null["margin"][i], scores[:, 2], atol=1e-10)
        np.testing.assert_allclose(result.oof[row["layer"]][rows], f[:, 0], atol=1e-10)


def test_rows_carry_everything_an_estimate_needs():
    x, y = clips()
    result = probe_layers(x, y, groups=SPEAKER, n_permutations=99, n_bootstrap=50)
    for row in result.rows:
        assert ROW_KEYS <= set(row)
        assert row["ci_low"] <= row["accuracy"] <= row["ci_high"] and row["p_adjusted"] >= row["p_value"] >= 0.01
        assert (row["n_items"], row["n_groups"], row["n_classes"]) == (50, 10, 2)
        assert row["smallest_p"] == 0.01 and row["n_permutations"] == 99 and row["p_note"] == ""
    confusion = result.confusion("layer 2")
    assert confusion.sum() == 50 and np.trace(confusion) / 50 == pytest.approx(result.row("layer 2")["accuracy"])
    shown = result.to_result("speaker-probe", title="Speakers")
    assert shown.rows == result.rows and shown.figures[0].chart == "layer_profile" and "layer 2" in str(shown)


def test_activations_mapping_and_stack_are_the_same():
    x, y = clips()
    from_stack = probe_layers(x, y, groups=SPEAKER, n_permutations=49, n_bootstrap=20)
    acts = Activations.from_arrays(x, SPEAKER, {"word": Label(y)})
    assert probe_layers(acts, "word", n_permutations=49, n_bootstrap=20).rows == from_stack.rows
    named = probe_layers({f"layer {i}": x[i] for i in range(3)}, y, groups=SPEAKER, n_permutations=49, n_bootstrap=20)
    assert named.rows == from_stack.rows
    single = probe_layers(x[0], y, groups=SPEAKER, n_permutations=49, n_bootstrap=20)
    assert single.rows[0]["p_value"] == from_stack.rows[0]["p_value"] and len(single.rows) == 1


def test_same_seed_same_rows_and_any_chunking_gives_the_same_p(monkeypatch):
    x, y = clips(d=80)
    first = probe_layers(x, y, groups=SPEAKER, n_permutations=199, n_bootstrap=30, seed=3)
    assert probe_layers(x, y, groups=SPEAKER, n_permutations=199, n_bootstrap=30, seed=3).rows == first.rows
    other = probe_layers(x, y, groups=SPEAKER, n_permutations=199, n_bootstrap=30, seed=4)
    assert other.rows != first.rows and other.rows[0]["accuracy"] == first.rows[0]["accuracy"]
    monkeypatch.setattr(runner, "COLUMNS", 50 * 7)
    chunked = probe_layers(x, y, groups=SPEAKER, n_permutations=199, n_bootstrap=30, seed=3)
    for a, b in zip(first.rows, chunked.rows, strict=True):
        assert (a["p_value"], a["p_adjusted"], a["accuracy"]) == (b["p_value"], b["p_adjusted"], b["accuracy"])
        assert a["margin"] == pytest.approx(b["margin"], abs=1e-13)


def test_every_labelling_of_a_small_design_is_tried():
    """8 items, 4 v 4: p equals the share of all 70 labelings, by hand, that reach the observed margin."""
    from itertools import combinations

    rng = generator(5, "small")
    x, y = rng.normal(size=(8, 12)), np.arange(8) % 2
    x += 1.5 * y[:, None]
    folds = group_folds(np.arange(8), 4)
    result = probe_layers(x, y, folds=folds, alpha=4.0, standardize="none", n_bootstrap=0)
    labels = np.zeros((8, 70), dtype=int)
    for p, ones in enumerate(combinations(range(8), 4)):
        labels[list(ones), p] = 1
    rows = np.concatenate(folds.tests())
    f = np.concatenate(ridge_reference.decisions(x, folds.pairs, labels, 2, 4.0))
    margins = np.array([ridge_reference.scores(f[:, p], labels[rows, p], 2)[2] for p in range(70)])
    observed = margins[(labels == y[:, None]).all(0)][0]
    assert result.rows[0]["n_permutations"] == 34 and result.rows[0]["smallest_p"] == pytest.approx(1 / 35)
    assert result.rows[0]["p_value"] == pytest.approx((margins >= observed - 1e-9).mean())


def test_sex_of_10_speakers_is_tested_exhaustively_by_leaving_one_of_each_out():
    x, _ = clips()
    sex = np.where(SPEAKER % 2, "m", "f")
    row = probe_layers(x, sex, groups=SPEAKER, n_bootstrap=30).rows[0]
    assert row["folds"] == "leave one group per class out" and row["n_permutations"] == 125
    assert row["smallest_p"] == pytest.approx(2 / 252) and 0.45 < row["chance"] < 0.55


def test_one_session_per_speaker_is_refused_with_the_reason():
    """Group folds cannot train, the leaky split can but has no p: voice and session cannot be told apart."""
    x, _ = clips()
    refused = probe_layers(x, SPEAKER, groups=SPEAKER)
    for row in refused.rows:
        assert row["accuracy"] is None and row["p_value"] is None
        assert "label and group cannot be told apart" in row["p_note"]
    leaky = probe_layers(x, SPEAKER, groups=SPEAKER, folds="item", n_bootstrap=20)
    row = leaky.rows[0]
    assert row["accuracy"] > 0.1 and row["p_value"] is None and row["p_adjusted"] is None
    assert "only renames classes" in row["p_note"] and "Chance is the nominal 1/10" in row["p_note"]
    assert row["chance"] == row["nominal_chance"] == 0.1 and "leak" in row["folds"]
    assert any("says nothing about new groups" in note for note in leaky.notes)
    assert leaky.best_layer()["p_value"] is None


def test_three_against_three_has_no_test_at_05():
    x, _ = clips()
    sex = np.where(SPEAKER[:30] % 2, "m", "f")
    row = probe_layers(x[:, :30], sex, groups=SPEAKER[:30], n_bootstrap=0).rows[0]
    assert row["p_value"] is None and "smallest attainable p is 0.1" in row["p_note"] and row["accuracy"] is not None
    assert probe_layers(x[:, :30], sex, groups=SPEAKER[:30], n_bootstrap=0, alpha_level=0.1).rows[0]["p_value"] >= 0.1


def test_dead_layers_are_named_and_leave_the_family():
    x, y = clips(n_layers=4)
    whole = probe_layers(x[[0, 3]], y, groups=SPEAKER, n_permutations=99, n_bootstrap=20)
    x[1] = 2.5
    x[2, 7, 3] = np.nan
    result = probe_layers(x, y, groups=SPEAKER, n_permutations=99, n_bootstrap=20)
    assert "every feature is constant" in result.rows[1]["p_note"] and result.rows[1]["accuracy"] is None
    assert "NaN or infinity in 1 of 50 items" in result.rows[2]["p_note"] and result.rows[2]["p_value"] is None
    for i, j in ((0, 0), (3, 1)):
        assert result.rows[i]["p_adjusted"] == whole.rows[j]["p_adjusted"]
        assert result.rows[i]["q_value"] == whole.rows[j]["q_value"]
    assert result.compare("layer 1", "layer 0")["p_note"] == result.rows[1]["p_note"]
    assert result.best_layer()["n_layers"] == 2


def test_stratified_folds_confine_the_exchange_or_raise():
    x, y = clips()
    result = probe_layers(x, y, folds="stratified", n_permutations=99, n_bootstrap=0)
    fold = result.folds.fold_of(50)
    values = result.labelings.values
    for i in range(5):
        assert (values[fold == i].sum(0) == y[fold == i].sum()).all()
    with pytest.raises(DesignError, match="inside folds only"):
        probe_layers(x, y, folds=stratified_folds(y), n_permutations=99)


def test_real_labels_give_r2_and_pearson():
    rng = generator(6, "real labels")
    y = 120 + 20 * rng.normal(size=50)
    x = rng.normal(size=(2, 50, 30))
    x[1] += (y - 120)[:, None] / 20
    result = probe_layers(x, y, groups=SPEAKER, n_permutations=199, n_bootstrap=50)
    noise, signal = result.rows
    assert signal["r2"] > 0.8 and signal["pearson"] > 0.9 and signal["p_value"] == 1 / 200
    assert signal["ci_low"] < signal["r2"] < signal["ci_high"] and noise["p_value"] > 0.02 and noise["chance"] < 0.05
    shifted = probe_layers(x, 3 * y - 7, groups=SPEAKER, n_permutations=199, n_bootstrap=50)
    assert shifted.rows[1]["r2"] == pytest.approx(signal["r2"], abs=1e-10)
    assert shifted.rows[1]["margin"] == pytest.approx(signal["margin"], abs=1e-10)


def test_layers_are_compared_by_the_same_resamples():
    x, y = clips()
    result = probe_layers(x, y, groups=SPEAKER, n_permutations=19, n_bootstrap=100)
    row = result.compare("layer 2", "layer 0")
    assert row["difference"] == pytest.approx(result.rows[2]["accuracy"] - result.rows[0]["accuracy"])
    assert row["ci_low"] < row["difference"] < row["ci_high"]
    assert (row["p_value"] <= 0.05) == (row["ci_low"] > 0 or row["ci_high"] < 0)
    assert result.compare("layer 0", "layer 2")["difference"] == pytest.approx(-row["difference"])
    assert result.compare("layer 0", "layer 0")["p_value"] == 1.0


@pytest.mark.parametrize("kind", ["lda", "logistic"])
def test_other_probes_take_the_same_route(kind):
    x, y = clips()
    result = probe_layers(x, y, groups=SPEAKER, probe=ProbeSpec(kind), n_permutations=39, n_bootstrap=1)
    assert result.rows[2]["accuracy"] > 0.7 and result.rows[2]["interval"] == "jackknife"
    assert result.rows[0]["n_permutations"] == 39 and result.best_layer()["layer"] == "layer 2"


def test_layers_are_read_one_at_a_time_and_progress_is_told():
    x, y = clips()
    acts = Activations.from_arrays(x, SPEAKER, {"word": Label(y)})
    seen, told = [], []
    stream = Activations(
        acts.layers, lambda name: seen.append(name) or acts.values(name), acts.groups, acts.labels, acts.items
    )
    probe_layers(stream, "word", n_permutations=19, n_bootstrap=0, progress=lambda i, n: told.append((i, n, len(seen))))
    assert told == [(1, 3, 1), (2, 3, 2), (3, 3, 3)]


def test_wrong_requests_are_refused_with_the_next_step():
    x, y = clips()
    with pytest.raises(InputError, match="arrays carry no labels"):
        probe_layers(x, "word")
    with pytest.raises(InputError, match="one value per item, 50; got 49"):
        probe_layers(x, y[:49])
    with pytest.raises(InputError, match="folds must be one of"):
        probe_layers(x, y, folds="random")
    with pytest.raises(InputError, match="n_permutations must be an int of at least 0"):
        probe_layers(x, y, n_permutations=-1)
    with pytest.raises(InputError, match="at least 1 layer"):
        probe_layers({}, y)
    with pytest.raises(InputError, match="a layer must have shape"):
        probe_layers({"a": x[0], "b": x[0, :40]}, y)


def test_two_parts_are_blocks_and_pairs_stay_inside_a_part():
    """Sex in two parts of 4 and 6 speakers: 6 * 20 / 2 labelings, held-out pairs never mix parts."""
    x, _ = clips()
    part = np.where(SPEAKER < 4, "dev", "test")
    sex = np.where(SPEAKER % 2, "m", "f")
    result = probe_layers(x, sex, groups=SPEAKER, blocks=part, n_bootstrap=20)
    assert result.design.n_labelings == 6 * 20 // 2 and result.rows[0]["n_permutations"] == 59
    assert len(result.folds) == 6 + 15
    assert all(len(np.unique(part[test])) == 1 for test in result.folds.tests())
    assert 0.4 < result.rows[0]["chance"] < 0.6


def test_identity_labels_get_a_group_of_each_class_per_fold_where_that_leaves_a_test():
    x, _ = clips(n_layers=1)
    session = np.arange(50) // 2  # 25 sessions of 2 clips
    dealt = probe_layers(x, session // 5, groups=session, n_permutations=49, n_bootstrap=0)
    assert dealt.folds.stratified and len(dealt.folds) == 5 and dealt.rows[0]["p_value"] is not None
    fold = dealt.folds.fold_of(50)
    for labels in dealt.labelings.values.T:
        assert all(sorted(set(labels[fold == i])) == [0, 1, 2, 3, 4] for i in range(5))
    # 4 speakers of 2 sessions: exchange inside folds leaves 24 labelings (smallest p .042), free exchange 105;
    # 3 speakers of 2 sessions: 6 against 15, no test at .1 inside folds but one when a session is left out
    small = probe_layers(x[:, :12], session[:12] // 2, groups=session[:12], n_bootstrap=0, alpha_level=0.1)
    assert small.rows[0]["folds"] == "leave one group out" and small.rows[0]["smallest_p"] == pytest.approx(1 / 15)


def test_rounding_is_no_evidence():
    """Pairs of equal features and opposite labels: every margin is 0 but for rounding, so p is 1."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(20, 8)), 2, axis=0)
    for seed in range(5):
        y = rng.permuted(np.tile([0, 1], (20, 1)), axis=1).ravel()
        result = probe_layers([x], y, groups=np.repeat(np.arange(20), 2), n_permutations=199, n_bootstrap=0, seed=seed)
        assert result.rows[0]["p_value"] == 1.0 and result.rows[0]["p_adjusted"] == 1.0
