"""Splits without near-duplicates, on constructed texts and on the public sets whose figures are known."""

import csv

import numpy as np
import pytest
from conftest import REAL_DATA

from lmprobe.near_duplicates import clusters, jaccard, neighbours, overlap_report, refuse_overlap
from lmprobe.partition import SPLITS, TestOpenings, partition
from probecore import DesignError, InputError

REFUSAL = REAL_DATA / "refusal"


def random_texts(n: int, n_words: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.integers(0, n_words, rng.integers(3, 9))) for _ in range(n)]


def behaviors(name: str, standard: bool = True) -> list[str]:
    path = REFUSAL / "harmbench" / f"{name}.csv"
    if not path.is_file():
        pytest.skip(f"no public prompt sets at {REFUSAL}: set CODECPROBE_DATA to a folder that holds refusal/")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [r["Behavior"] for r in rows if not standard or r.get("FunctionalCategory", "standard") == "standard"]


def test_neighbours_are_those_of_every_pair() -> None:
    texts = random_texts(60, 9)
    graph = neighbours(texts).toarray()
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            expected = jaccard(a, b) if i != j and jaccard(a, b) >= 0.5 else 0.0
            assert graph[i, j] == pytest.approx(expected, abs=1e-15)  # one division each


def test_curly_apostrophes_and_case_make_no_difference() -> None:
    assert jaccard("Don\u2019t STOP", "don't stop") == 1.0
    assert jaccard("?!", "...") == 1.0 and jaccard("?!", "word") == 0.0


def test_complete_clusters_hold_neighbours_only_and_cannot_be_joined() -> None:
    """The definition: every pair inside is a neighbour; of any two clusters at least one pair is none (maximality)."""
    texts = random_texts(80, 8, seed=1)
    code, graph = clusters(texts), neighbours(texts).toarray() > 0
    np.fill_diagonal(graph, True)
    members = [np.flatnonzero(code == c) for c in range(code.max() + 1)]
    assert max(map(len, members)) > 2
    assert all(graph[np.ix_(m, m)].all() for m in members)
    for i, a in enumerate(members):
        for b in members[i + 1 :]:
            assert not graph[np.ix_(a, b)].all()


def test_single_clusters_are_connected_components() -> None:
    chain = ["a b c d", "b c d e", "c d e f", "d e f g", "x y z w"]
    assert clusters(chain, linkage="single").tolist() == [0, 0, 0, 0, 1]
    assert len(set(clusters(chain)[:4].tolist())) == 2, "the ends of a chain are not alike"


@pytest.mark.parametrize("linkage", ["complete", "single"])
@pytest.mark.parametrize("seed", range(3))
def test_no_near_duplicates_across_splits(linkage: str, seed: int) -> None:
    texts = random_texts(150, 25, seed)
    kinds = ["a" if i % 3 else "b" for i in range(150)]
    found = partition(texts, kinds, linkage=linkage, seed=seed)  # type: ignore[arg-type]
    for one in SPLITS:
        for other in SPLITS:
            if one != other:
                left, right = ([texts[i] for i in found.index(s)] for s in (one, other))
                assert neighbours(left, right).nnz == 0
    if linkage == "single":
        assert not found.left_out
    assert sum(found.sizes.values()) == 150
    assert [s == "" for s in found.split] == [i in found.left_out for i in range(150)]


def test_categories_keep_their_shares() -> None:
    """Texts without neighbours: quotas are met up to one text."""
    texts = [f"u{i} v{i} w{i}" for i in range(100)]
    kinds = np.array(["a"] * 60 + ["b"] * 40)
    found = partition(texts, kinds.tolist())
    for kind, n in (("a", 60), ("b", 40)):
        got = [int((kinds[found.index(s)] == kind).sum()) for s in SPLITS]
        assert np.abs(np.array(got) - n * np.array([0.5, 0.2, 0.3])).max() <= 1
    assert found.n_clusters == 100 and found.largest_cluster == 1
    assert partition(texts, kinds.tolist()).split == found.split
    assert partition(texts, kinds.tolist(), seed=1).split != found.split


def test_families_share_a_split() -> None:
    texts = [f"u{i} v{i} w{i}" for i in range(40)] + [f"x{i} y{i} z{i}" for i in range(40)]
    families = [f"f{i}" for i in range(40)] * 2
    found = partition(texts, ["a"] * 40 + ["b"] * 40, families=families)
    assert found.split[:40] == found.split[40:]
    assert found.n_clusters == 80, "twins are no near-duplicates"


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DesignError, match="every split needs prompts of each category"):
        partition(["a b c"] * 20)
    with pytest.raises(InputError, match="shares must be three positive numbers"):
        partition(["a", "b", "c"], shares=(0.5, 0.5))
    with pytest.raises(InputError, match=r"threshold of near-duplicates must lie in \(0, 1\]"):
        neighbours(["a"], threshold=0)


def test_scoring_what_was_selected_on_is_refused() -> None:
    refuse_overlap(["how to bake bread at home"], ["where do eagles sleep"])
    with pytest.raises(DesignError, match=r"test prompts must be new.*there are 1, prompts 1"):
        refuse_overlap(["how to bake bread at home"], ["where do eagles sleep", "How to bake good bread at home?"])


def test_openings_are_counted_over_runs(tmp_path) -> None:
    texts = [f"u{i} v{i} w{i}" for i in range(30)]
    first, other = partition(texts), partition(texts, seed=1)
    path = tmp_path / "runs" / "openings.jsonl"
    assert TestOpenings(path).open(first, "main") == 1
    assert TestOpenings(path).open(first, "again") == 2
    assert TestOpenings(path).open(other, "other split") == 1
    assert TestOpenings(path).count(first) == 2 and TestOpenings().count(first) == 0


def test_advbench_figures() -> None:
    """Published facts of the set: 149 of 520 chained by single linkage (283 clusters), 41-59 leaks in random splits.

    The number of leaks depends on the random split; the bounds are those of the 12 splits measured with a margin of 4.
    """
    texts = behaviors("advbench_behaviors", standard=False)
    single = clusters(texts, linkage="single")
    assert (int(single.max()) + 1, int(np.bincount(single).max())) == (283, 149)
    complete = clusters(texts)
    assert (int(complete.max()) + 1, int(np.bincount(complete).max())) == (382, 9)
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(520)
        test, train = [texts[i] for i in order[:104]], [texts[i] for i in order[104:]]
        assert 37 <= overlap_report(train, {"test": test})[0]["near_duplicates"] <= 63
    found = partition(texts)
    train = [texts[i] for s in ("extract", "select") for i in found.index(s)]
    assert overlap_report(train, {"test": [texts[i] for i in found.index("test")]})[0]["near_duplicates"] == 0
    assert len(found.left_out) <= 26, "no more than one in twenty is left out"


def test_harmbench_overlaps() -> None:
    """Known facts: of 159 HarmBench-test prompts, 13 have a neighbour in HarmBench-val and 7 in AdvBench."""
    test = behaviors("harmbench_behaviors_text_test")
    val, adv = behaviors("harmbench_behaviors_text_val"), behaviors("advbench_behaviors", standard=False)
    assert (len(test), len(val)) == (159, 41)
    assert overlap_report(val, {"test": test})[0]["near_duplicates"] == 13
    assert overlap_report(adv, {"test": test})[0]["near_duplicates"] == 7
