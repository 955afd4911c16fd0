"""k-sweeps: the batched run against one removal at a time, and the sweep against organisms with 1, 4 and 0 directions.

Organisms answer exactly as planted, so k@95 % must be exactly the planted number with every resample of the prompts
agreeing. Batches change float32 logits by rounding only, and the organisms' answers are decided by nats, so verdicts
and kept tokens must be equal and cross-entropies within 1e-4 nats (observed 1e-6).
"""

import numpy as np
import pytest
import zoo

from lmprobe import open_model
from lmprobe.detectors import detector
from lmprobe.generate import generate
from lmprobe.interventions import ProjectOut, intervened
from lmprobe.k_frames import contrast_frame, covariance_frames, frames_of, labelings, weakest_frame
from lmprobe.k_sweep import k_sweep
from lmprobe.organisms import marked_prompts, refusal_organism
from lmprobe.prompts import Prompts
from lmprobe.removal_effects import effects, untouched
from lmprobe.score import scan_logits
from probecore.errors import DesignError, InputError
from probecore.geometry import subspace_overlap
from probecore.removal import random_frames

pytestmark = pytest.mark.transformers
SMALL = dict(
    k_max=5, n_random=9, n_curves=1, n_permutations=20, n_bootstrap=100, n_extract=4, max_new_tokens=10, device="cpu"
)
TOKENS = 10


@pytest.fixture(scope="module")
def four():
    return open_model("refusal-4", device="cpu", quiet=True)


@pytest.fixture(scope="module")
def swept(four):
    return {"refusal-1": k_sweep("refusal-1", **SMALL), "refusal-4": k_sweep(four, **SMALL)}


def rows(result, **wanted):
    found = [r for r in result.rows if all(r.get(key) == value for key, value in wanted.items())]
    assert found, f"no row with {wanted}"
    return found


def one_at_a_time(lm, known, frame, at, answers=True):
    """The slow form: the whole answer written under one removal, and every token of the old answer scored."""
    rule = detector("markers")
    gone = (ProjectOut(frame.T, at=at),) if len(frame) else ()
    kept, ce = np.empty(len(known)), np.empty(len(known))

    def keep(i, logits, tokens):
        log_p = logits[0].double().log_softmax(-1)
        kept[i] = (log_p.argmax(1) == tokens).double().mean()
        ce[i] = -log_p[range(len(tokens)), tokens].mean() - known.ce[i]

    with intervened(lm, *gone):
        whole = [row + answer for row, answer in zip(known.rows, known.answers, strict=True)]
        scan_logits([lm], whole, [len(row) for row in known.rows], keep, deterministic=True)
        asked = known.rows if answers else []
        texts = [generate(lm, [row], max_new_tokens=TOKENS, template="raw", layers=()).texts[0] for row in asked]
    return np.array([rule.verdict(text) == "refusal" for text in texts]), kept, ce


def test_many_removals_at_once_are_each_removal_alone(four):
    """Planted, random and large frames together, of different k, at every write and at one site, in small batches."""
    prompts = marked_prompts(3, n_neutral=1, seed=4)
    known = untouched(four, four.format_all(prompts.texts), prompts.texts, detector("markers"), TOKENS)
    assert known.refused.tolist() == [c == "harmful" for c in prompts.categories]
    planted = refusal_organism("refusal-4").directions
    haar = random_frames(64, 40, 1, 3)[0]
    removals = [planted[:0], planted[:2], planted, haar]
    for at in ("writes", "input 1"):
        found = effects(four, known, removals, detector("markers"), at=at, batch_tokens=150)
        for i, frame in enumerate(removals):
            refused, kept, ce = one_at_a_time(four, known, frame, at)
            assert found.refused[i].tolist() == refused.tolist()
            assert found.kept[i].tolist() == kept.tolist()
            np.testing.assert_allclose(found.ce_rise[i], ce, atol=1e-4)
    assert not found.refused[2].any() and (found.kept[0] == 1).all() and found.kept[3].mean() < 0.9


@pytest.mark.parametrize("name", ["gemma2", "mixtral"])
def test_many_removals_at_once_on_other_architectures(name):
    """Norms behind sub-layers, experts: the same, without an answer written anew."""
    lm = zoo.opened(name)
    texts = ["w1 w2 w3", "w4 w5 w6 w7 w8", "w9 w10"]
    known = untouched(lm, lm.format_all(texts), texts, detector("markers"), 6)
    frames = random_frames(64, 5, 2, 0)
    removals = [frames[0][:1], frames[1], frames[0][:0]]
    found = effects(lm, known, removals, None, batch_tokens=60)
    for i, frame in enumerate(removals):
        _, kept, ce = one_at_a_time(lm, known, frame, "writes", answers=False)
        assert found.kept[i].tolist() == kept.tolist()
        np.testing.assert_allclose(found.ce_rise[i], ce, atol=1e-4)


def test_a_model_that_knows_nothing_of_it_runs_and_claims_nothing():
    """A random model with the norms of Gemma 2, prompts of its own words: everything runs, and there is no k."""
    words = [f"w{i} w{(7 * i) % 31} w{(3 * i) % 17}" for i in range(60)]
    kinds = ["harmful", "harmless"] * 30
    prompts = Prompts("words", tuple(map(str, range(60))), tuple(words), tuple(kinds), tuple(map(str, range(60))))
    found = k_sweep(zoo.opened("gemma2"), prompts, **(SMALL | {"k_max": 2}))
    assert all(row["value"] is None for row in rows(found, measure="k@q"))
    assert not [row for row in found.rows if row["measure"] == "removed"]


def test_k_at_95_is_the_planted_number_of_directions(swept):
    for name, k in (("refusal-1", 1), ("refusal-4", 4)):
        (row,) = rows(swept[name], metric="k@95 %")
        assert (row["value"], row["ci_low"], row["ci_high"], row["not_reached"], row["planted"]) == (k, k, k, 0, k)
        curve = [
            r["value"] for r in swept[name].tables["curves"] if r["arm"] == "contrast" and r["measure"] == "refusal"
        ]
        assert curve[0] == 1.0 and curve[k] == 0.0 and curve[k - 1] > 0.05


def test_controls_of_equal_size_remove_nothing_and_capability_stays(swept):
    for name, found in swept.items():
        k = refusal_organism(name).k
        (haar,) = rows(found, measure="removed", control="random frames")
        assert haar["k"] == k and haar["value"] == 1.0 and haar["null_mean"] < 0.01
        assert haar["p_value"] == pytest.approx(1 / 10) and haar["p_adjusted"] >= haar["p_value"]
        (kept,) = rows(found, metric="capability, k* removed")
        (over,) = rows(found, metric="refusal of harmless prompts, k* removed")
        assert kept["value"] == 1.0 and kept["ci_low"] < 1.0 and over["value"] == 0.0
        curves = found.tables["curves"]
        weakest = [r for r in curves if r["arm"] == "weakest directions" and r["measure"] == "refusal"]
        assert {r["value"] for r in weakest} == {1.0}


def test_two_behaviours_overlap_as_planted_and_are_killed_together_or_apart(swept):
    """One shared direction: overlap near 1, each removes the other. Four own ones: overlap near 0, each alone."""
    for name, planted in (("refusal-1", 1.0), ("refusal-4", 0.0)):
        (row,) = rows(swept[name], measure="overlap")
        assert row["planted"] == pytest.approx(planted, abs=1e-9) and abs(row["value"] - planted) < 0.15
        assert row["chance"] == max(row["k"], row["k_other"]) / 64
        assert all(r["value"] == planted for r in rows(swept[name], measure="collateral"))
        kills = [r["censored"] for r in rows(swept[name], measure="selective kill")]
        assert kills == [planted == 1.0] * 2


def test_signal_rank_counts_what_differs_and_is_none_without_refusal(swept):
    """Harmful prompts hold one of 8 marked words: 8 is the most that can differ by topic, planted the least."""
    for name, k in (("refusal-1", 1), ("refusal-4", 4)):
        (row,) = rows(swept[name], metric="signal rank")
        assert k <= row["value"] <= 8 and row["p_value"] == pytest.approx(1 / 21)
    none = k_sweep("refusal-0", **(SMALL | {"k_max": 2, "n_permutations": 20}))
    assert rows(none, metric="signal rank")[0]["p_value"] > 0.05
    for row in rows(none, measure="k@q"):
        assert row["value"] is None and "there is no refusal to remove" in row["p_note"]
    assert any("no refusal to remove" in note for note in none.notes)


def test_frames_are_orthonormal_nested_and_blind_to_the_order_of_prompts():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 16)) + np.eye(16)[0], np.arange(60) < 30
    x[y] += 3 * np.eye(16)[3]
    for arm in ("contrast", "weakest", "random", "covariance", "harmless"):
        for frame in frames_of(arm, x, y, 6, 3, "whitened", 0):
            assert frame.shape == (6, 16) and np.abs(frame @ frame.T - np.eye(6)).max() < 1e-9
    own = contrast_frame(x, y, 6, "whitened")
    assert np.abs(contrast_frame(x, y, 3, "whitened") - own[:3]).max() < 1e-9, "the first k of K are those of k"
    order = rng.permutation(60)
    for contrast in ("whitened", "anchored"):
        again = contrast_frame(x[order], y[order], 6, contrast)
        assert subspace_overlap(again, contrast_frame(x, y, 6, contrast)).overlap == pytest.approx(1, abs=1e-9)
    assert abs(own[0, 3]) > 0.9 and np.abs(weakest_frame(x, y, 6, "whitened") @ own.T).max() < 1e-9
    few = covariance_frames(x * np.array([10, 10, *[0.01] * 14]), y, 2, 50, 0)
    assert np.median(np.linalg.norm(few[:, :, :2], axis=2)) > 0.99, (
        "covariance-matched frames lie where the states vary"
    )
    assert all(labels.sum() == 30 for labels in labelings(y, np.arange(60) % 30, 5, 0))


def test_what_cannot_be_used_is_refused(four):
    with pytest.raises(InputError, match="one behaviour"):
        k_sweep(four, behaviours={"a": ["amber-"], "b": ["birch-"]}, **SMALL)
    with pytest.raises(InputError, match="keeps must lie"):
        k_sweep(four, keeps=0.0)
    with pytest.raises(InputError, match="contrast must be"):
        k_sweep(four, contrast="paired")
    with pytest.raises(InputError, match="at least 1 model"):
        k_sweep([])
    with pytest.raises(DesignError, match=r"each split needs|would be empty"):
        k_sweep(four, marked_prompts(8), **SMALL)


def test_the_pictures_draw(swept, tmp_path):
    swept["refusal-4"].save(tmp_path)
    assert {p.stem for p in (tmp_path / "figures").glob("*.svg")} == {"k_sweep", "spectrum", "behaviours", "overlap"}
