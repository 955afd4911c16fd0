"""Designs and their labelings: counts against brute force, defaults, refusals, what an exchange must keep."""

from itertools import permutations

import numpy as np
import pytest

from probecore.errors import DesignError, InputError
from probecore.probes.design import Design
from probecore.probes.permutation import draw_labelings, permutation_test
from probecore.splits import group_folds, stratified_folds


def brute_force(design):
    """Return the distinct partitions of units that any exchange inside blocks reaches, by trying all orders."""
    labels, blocks = design.unit_labels, design.unit_blocks
    seen = set()
    for order in permutations(range(len(labels))):
        if (blocks[list(order)] == blocks).all():
            names = {}
            seen.add(tuple(names.setdefault(v, len(names)) for v in labels[list(order)].tolist()))
    return seen


@pytest.mark.parametrize(
    "y, blocks, count",
    [
        ("aabb", None, 3),
        ("aabbcc", None, 15),
        ("aaabbb", None, 10),
        ("aaabb", None, 10),
        ("aabbccd", None, 105),
        ("abababab", "11223344", 8),
        ("aababb", "111222", 9),
        ("abcabc", "111222", 6),
        ("aabaab", "111222", 9),
    ],
)
def test_number_of_labelings_equals_brute_force(y, blocks, count):
    design = Design.of(list(y), blocks=None if blocks is None else list(blocks))
    partitions = brute_force(design)
    assert design.n_labelings == len(partitions) == count
    labelings = draw_labelings(design, 99, level=1.0)
    assert labelings.exhaustive and labelings.values.shape == (len(y), count)
    found = set()
    for column in labelings.values.T.tolist():
        names = {}
        found.add(tuple(names.setdefault(v, len(names)) for v in column))
    assert found == partitions
    assert (labelings.values[:, 0] == design.y).all()


def test_counts_of_the_research_document():
    """codec-probing 2.5: sessions to speakers; probe-statistics 6: sex on the two parts of LibriSpeech."""
    for speakers, sessions, count in ((2, 2, 3), (3, 2, 15), (4, 2, 105), (2, 3, 10), (3, 3, 280)):
        y = np.repeat(np.arange(speakers), sessions)
        assert Design.of(y).n_labelings == count
    eight = Design.of(np.repeat(np.arange(8), 3))
    assert eight.n_labelings == pytest.approx(9.2e12, rel=0.01)
    assert Design.of(list("ffffmmmm")).smallest_p == pytest.approx(2 / 70)
    assert Design.of(list("fffffmmmmm")).smallest_p == pytest.approx(2 / 252)
    both = Design.of(list("ffffmmmmfffffmmmmm"), blocks=[0] * 8 + [1] * 10)
    assert both.smallest_p == pytest.approx(2 / 17640)
    assert "smallest attainable p is 0.1" in Design.of(list("fffmmm")).refusal(0.05)


def test_defaults_of_units_and_blocks():
    """D1 to D4 of the research document, and rows when nothing is given."""
    speaker = np.repeat(np.arange(4), 6)
    sex = Design.of(np.where(speaker < 2, "f", "m"), speaker)
    assert sex.n_units == 4 and len(np.unique(sex.blocks)) == 1
    chapter = np.repeat(np.arange(8), 3)
    style = Design.of(chapter % 2, speaker, chapter)
    assert style.n_units == 8 and (style.blocks == speaker).all()
    clip = Design.of(np.arange(24) % 2, speaker)
    assert clip.n_units == 24 and (clip.blocks == speaker).all()
    item, template = np.tile(np.arange(6), 4), np.repeat(np.arange(4), 6)
    risky = Design.of(item % 2, item)
    assert risky.n_units == 6 and len(np.unique(risky.blocks)) == 1
    crossed = Design.of(item % 2, template, item)
    assert crossed.n_units == 6 and len(np.unique(crossed.blocks)) == 1
    assert Design.of([0, 1, 0, 1]).n_units == 4


def test_designs_without_a_test_say_why_in_one_sentence():
    speaker = np.repeat(np.arange(6), 4)
    one_session = Design.of(speaker, speaker)
    assert one_session.n_labelings == 1
    assert "each of the 6 classes has one unit only" in one_session.refusal(0.05)
    within = Design.of(speaker % 2, speaker, units=np.arange(24), blocks=speaker)
    assert "constant inside every block" in within.refusal(0.05)
    for design in (one_session, within):
        labelings = draw_labelings(design, 999)
        assert labelings.n_others == 0 and labelings.reason == design.refusal(0.05)
    assert draw_labelings(Design.of(np.arange(40) % 2), 9).reason.startswith("9 permutations cannot give a p below 0.1")
    assert draw_labelings(Design.of(np.arange(40) % 2), 0).reason.startswith("no permutations were asked for")


def test_exchanges_keep_units_whole_and_class_counts_of_each_block():
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(5), 12)
    unit = np.repeat(np.arange(20), 3)
    labels = rng.integers(3, size=20)[unit]
    design = Design.of(labels, block, unit, block)
    labelings = draw_labelings(design, 200).values
    for column in labelings.T:
        for b in range(5):
            assert (np.bincount(column[block == b], minlength=3) == np.bincount(labels[block == b], minlength=3)).all()
        assert (column.reshape(20, 3) == column.reshape(20, 3)[:, :1]).all()
    assert len(np.unique(labelings.T, axis=0)) > 190


def test_random_labelling_i_depends_on_the_seed_and_i_alone():
    design = Design.of(np.arange(60) % 2)
    few, many = draw_labelings(design, 50, seed=4).values, draw_labelings(design, 500, seed=4).values
    assert (few == many[:, :51]).all()
    assert (few != draw_labelings(design, 50, seed=5).values).any()


def test_random_labelings_are_uniform():
    """120 labelings of 3 + 3 + 2 ... each unit gets each class equally often: binomial z below 4 for 60 cells."""
    design = Design.of(list("aaaabbbbcc"))
    values = draw_labelings(design, 4000, enumerate_up_to=1).values[:, 1:]
    for k, share in enumerate((0.4, 0.4, 0.2)):
        z = ((values == k).mean(1) - share) / np.sqrt(share * (1 - share) / 4000)
        assert np.abs(z).max() < 4


def test_real_labels_are_exchanged_with_their_mirror_counted_once():
    assert Design.of([1.0, 2.0, 4.0, 8.0], real=True).n_labelings == 24
    assert Design.of([1.0, 2.0, 3.0, 4.0], real=True).n_labelings == 12
    labelings = draw_labelings(Design.of([1.5, 2.0, 4.0, 8.0], real=True), 99, level=1.0)
    assert (
        labelings.exhaustive and labelings.values.shape == (4, 24) and labelings.values[:, 0].tolist() == [1.5, 2, 4, 8]
    )


def test_frozen_stratified_folds_with_a_free_exchange_raise():
    """Trap 5: false-positive rates up to .44 at .05."""
    y = np.arange(60) % 2
    folds = stratified_folds(y, n_folds=5)
    with pytest.raises(DesignError, match="inside folds only"):
        draw_labelings(Design.of(y), 99, folds=folds)
    inside = Design.of(y, blocks=folds.fold_of(60))
    values = draw_labelings(inside, 99, folds=folds).values
    for _, test in folds.pairs:
        assert (values[test].sum(0) == y[test].sum()).all()
    assert draw_labelings(Design.of(y), 99, folds=group_folds(np.arange(60), 5)).n_others == 99


def test_wrong_designs_are_refused():
    with pytest.raises(InputError, match="constant inside each unit"):
        Design.of([0, 1, 0, 1], units=[0, 0, 1, 1])
    with pytest.raises(InputError, match="each unit must lie in one block"):
        Design.of([0, 0, 1, 1], units=[0, 0, 1, 1], blocks=[0, 1, 0, 1])
    with pytest.raises(InputError, match="at least 2 different values"):
        Design.of([1, 1, 1])
    with pytest.raises(InputError, match="groups must have one entry per item"):
        Design.of([0, 1, 0], groups=[1, 2])


def test_permutation_test_of_any_statistic():
    """Signed difference of means against all 252 arrangements by hand; a classifier's score has half as many."""
    from itertools import combinations

    x = np.random.default_rng(1).normal(size=10) + np.arange(10) % 2
    y = np.arange(10) % 2
    gap = lambda labels: x[labels == 1].mean() - x[labels == 0].mean()  # noqa: E731
    every = [x[list(ones)].mean() - np.delete(x, ones).mean() for ones in combinations(range(10), 5)]
    expected = np.mean(np.array(every) >= gap(y) - 1e-9)
    test = permutation_test(gap, y, names_matter=True)
    assert test.exhaustive and len(test.null) == 251 and test.p_value == pytest.approx(expected)
    unsigned = permutation_test(lambda labels: abs(gap(labels)), y)
    assert len(unsigned.null) == 125
    assert unsigned.p_value == pytest.approx(np.mean(np.abs(every) >= abs(gap(y)) - 1e-9))
    many = permutation_test(lambda labels: (labels == y.repeat(6)).mean(), y.repeat(6), n_permutations=199)
    assert not many.exhaustive and many.p_value == 1 / 200 and many.smallest_p == 1 / 200
    refused = permutation_test(gap, y, groups=np.arange(10), blocks=y)
    assert refused.p_value is None and "constant inside every block" in refused.reason
    few = permutation_test(lambda labels: 0.0, y.repeat(6), n_permutations=9)
    assert few.p_value is None and "9 permutations cannot" in few.reason
    words = permutation_test(lambda labels: float((labels == "longer name").sum()), ["a", "longer name"] * 6)
    assert words.p_value == 1.0
