"""Scores of many labelings equal explicit loops; ties, weights, missing classes, AUC per fold."""

import numpy as np
import pytest
import torch
from reference import ridge_reference
from sklearn.metrics import r2_score, roc_auc_score

from probecore.probes.scores import confusion, mean_auc, score
from probecore.seeds import generator


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_scores_equal_explicit_loops(n_classes):
    rng = generator(0, "scores", n_classes)
    y = np.stack([rng.permutation(np.arange(31) % n_classes) for _ in range(6)], 1)
    f = rng.normal(size=(31, 6) if n_classes == 2 else (31, 6, n_classes))
    f[:4] = 0.0  # ties count their fraction
    got = score(torch.tensor(f), torch.tensor(y), n_classes)
    for p in range(6):
        accuracy, balanced, margin = ridge_reference.scores(f[:, p], y[:, p], n_classes)
        assert float(got.value[p]) == pytest.approx(accuracy, abs=1e-12)
        assert float(got.second[p]) == pytest.approx(balanced, abs=1e-12)
        assert float(got.margin[p]) == pytest.approx(margin, abs=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_weights_of_zero_leave_rows_out(n_classes):
    rng = generator(1, "weights", n_classes)
    y = np.stack([rng.permutation(np.arange(30) % n_classes) for _ in range(4)], 1)
    f = rng.normal(size=(30, 4) if n_classes == 2 else (30, 4, n_classes))
    kept = np.stack([rng.permutation(30) < 21 for _ in range(4)], 1)
    got = score(torch.tensor(f), torch.tensor(y), n_classes, torch.tensor(kept.astype(float)))
    for p in range(4):
        expected = ridge_reference.scores(f[kept[:, p], p], y[kept[:, p], p], n_classes)
        found = [float(part[p]) for part in (got.value, got.second, got.margin)]
        assert found == pytest.approx(expected, abs=1e-12)


def test_layers_are_scored_together_as_apart():
    rng = generator(2, "batch")
    f, y = torch.tensor(rng.normal(size=(3, 20, 5))), torch.tensor(rng.integers(2, size=(20, 5)))
    y[:2] = torch.tensor([[0], [1]])
    together = score(f, y, 2)
    for i in range(3):
        alone = score(f[i], y, 2)
        for field in ("value", "second", "margin"):
            torch.testing.assert_close(getattr(together, field)[i], getattr(alone, field))


def test_a_class_that_was_not_trained_on_is_never_predicted():
    f = torch.tensor([[[0.2, -torch.inf, 0.1]], [[-0.3, -torch.inf, 0.4]]], dtype=torch.float64)
    got = score(f, torch.tensor([[1], [2]]), 3)
    assert float(got.value[0]) == 0.5
    assert confusion(f[:, 0].numpy(), np.array([1, 2]), 3)[:, 1].sum() == 0


def test_real_labels():
    rng = generator(3, "real")
    y, f = rng.normal(size=(25, 3)), rng.normal(size=(25, 3))
    f += 0.5 * y
    got = score(torch.tensor(f), torch.tensor(y), 0)
    for p in range(3):
        assert float(got.value[p]) == pytest.approx(r2_score(y[:, p], f[:, p]), abs=1e-12)
        assert float(got.second[p]) == pytest.approx(np.corrcoef(y[:, p], f[:, p])[0, 1], abs=1e-12)
        assert float(got.margin[p]) == pytest.approx(
            np.cov(y[:, p], f[:, p])[0, 1] / np.var(y[:, p], ddof=1), abs=1e-12
        )


def test_auc_is_computed_inside_each_fold():
    """Fold offsets of 100 leave the mean of the fold AUCs alone and would ruin a pooled one (trap 7)."""
    rng = generator(4, "auc")
    y = np.tile([0, 1], 20)
    tests = [np.arange(i * 10, (i + 1) * 10) for i in range(4)]
    f = rng.normal(size=40) + y
    expected = np.mean([roc_auc_score(y[test], f[test]) for test in tests])
    assert mean_auc(f, y, tests) == pytest.approx(expected)
    assert mean_auc(f + np.repeat([0, 100, 300, 50], 10), y, tests) == pytest.approx(expected)
    assert np.isnan(mean_auc(f, np.zeros(40, dtype=int), tests))


def test_confusion_counts():
    assert confusion(np.array([-1.0, 2.0, 3.0]), np.array([0, 0, 1]), 2).tolist() == [[1, 1], [0, 1]]
    f = np.array([[1.0, 0, 0], [0, 0, 2], [0, 3, 0]])
    assert confusion(f, np.array([0, 1, 1]), 3).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
