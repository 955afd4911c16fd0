"""Folds: groups never shared, none empty, balanced, label-blind unless they say so; trap 15 refused."""

import numpy as np
import pytest

from probecore.errors import DesignError, InputError
from probecore.seeds import generator
from probecore.splits import (
    check_training_classes,
    group_folds,
    item_folds,
    leave_one_group_out,
    leave_one_group_per_class_out,
    stratified_folds,
)


@pytest.mark.parametrize("make", [group_folds, leave_one_group_out])
def test_no_group_is_in_train_and_test_and_every_item_is_tested_once(make):
    groups = generator(0, "groups").integers(9, size=70)
    folds = make(groups)
    for train, test in folds.pairs:
        assert len(test) and not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(70))
    assert (folds.fold_of(70) >= 0).all() and not folds.stratified and not folds.leaky


def test_group_folds_are_balanced_and_deterministic():
    """Greedy by size: no fold is larger than the mean plus the largest group."""
    sizes = generator(1, "sizes").integers(1, 30, size=23)
    groups = np.repeat(np.arange(23), sizes)
    folds = group_folds(groups, 5)
    lengths = [len(test) for test in folds.tests()]
    assert max(lengths) - min(lengths) <= sizes.min() + 5
    again = group_folds(groups, 5)
    assert all((a == b).all() for a, b in zip(folds.tests(), again.tests(), strict=True))


def test_too_few_groups_for_the_folds_is_refused():
    with pytest.raises(DesignError, match="4 folds need at least 4 groups; got 3"):
        group_folds([0, 0, 1, 2], 4)
    with pytest.raises(DesignError, match="at least 2 groups"):
        leave_one_group_out(["a", "a"])


def test_leave_one_group_per_class_out_has_all_pairs_inside_blocks():
    groups = np.repeat(np.arange(6), 3)
    folds = leave_one_group_per_class_out(groups)
    assert len(folds) == 15 and folds.by_class
    assert {tuple(np.unique(groups[test])) for test in folds.tests()} == {
        (a, b) for a in range(6) for b in range(a + 1, 6)
    }
    confined = leave_one_group_per_class_out(groups, 2, blocks=groups // 3)
    assert len(confined) == 6
    with pytest.raises(DesignError, match="more than 1000"):
        leave_one_group_per_class_out(np.arange(60))
    with pytest.raises(DesignError, match="more than 2 groups"):
        leave_one_group_per_class_out([0, 1])


def test_item_folds_say_that_they_leak_and_depend_on_the_seed_only():
    folds = item_folds(23, 5, seed=3)
    assert folds.leaky and sorted(np.concatenate(folds.tests())) == list(range(23))
    assert max(map(len, folds.tests())) - min(map(len, folds.tests())) == 1
    assert (np.concatenate(folds.tests()) == np.concatenate(item_folds(23, 5, seed=3).tests())).all()
    assert (np.concatenate(folds.tests()) != np.concatenate(item_folds(23, 5, seed=4).tests())).any()


def test_stratified_folds_balance_classes_and_say_so():
    y = np.repeat(["a", "b", "c"], [20, 11, 9])
    folds = stratified_folds(y, n_folds=5)
    assert folds.stratified
    for value, count in (("a", 20), ("b", 11), ("c", 9)):
        shares = [int((y[test] == value).sum()) for test in folds.tests()]
        assert sum(shares) == count and max(shares) - min(shares) <= 1
    with pytest.raises(DesignError, match="constant inside each group"):
        stratified_folds(y, np.arange(40) % 4)


def test_no_fold_of_ours_is_empty_or_one_class_without_an_error():
    """Trap 15: 6 groups of 5 with labels constant in groups, where StratifiedGroupKFold fails 35 times in 1000."""
    refused = 0
    for seed in range(300):
        classes = generator(seed, "trap15").permutation([0, 0, 0, 1, 1, 1])
        groups, y = np.repeat(np.arange(6), 5), np.repeat(classes, 5)
        for folds in (group_folds(groups, 2), group_folds(groups, 5), leave_one_group_out(groups)):
            degenerate = any(len(np.unique(y[train])) < 2 or not len(test) for train, test in folds.pairs)
            try:
                check_training_classes(folds, y, ["a", "b"])
            except DesignError as error:
                refused += 1
                assert "holds only class" in str(error)
                assert degenerate
            else:
                assert not degenerate
    assert refused > 0


def test_classes_with_one_group_cannot_be_tested():
    y = np.repeat(np.arange(4), 3)
    with pytest.raises(DesignError, match="every class is in one group only"):
        check_training_classes(leave_one_group_out(y), y, list("abcd"))
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    note = check_training_classes(leave_one_group_out(groups), y, list("abc"))
    assert note == "no training set holds class c when its group is left out"


def test_overlapping_or_missing_tests_have_no_fold_per_item():
    with pytest.raises(InputError, match="overlap"):
        leave_one_group_per_class_out([0, 0, 1, 1, 2, 2]).fold_of(6)
    with pytest.raises(InputError, match="are in no test set"):
        group_folds([0, 0, 1, 1], 2).fold_of(5)
