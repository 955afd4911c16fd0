"""The two cheap forms of a resample's precision matrix against the dense one, and that against its definition."""

import numpy as np
import pytest
import torch

from probecore import DesignError
from probecore.probes.design import Design
from probecore.probes.intervals import plan_resampling, resampled_scores
from probecore.probes.resample_inverse import ByDrawnItems, ByFeatures, DensePrecision, WithoutMean, cheapest_precision
from probecore.probes.solvers import ProbeSpec
from probecore.seeds import generator
from probecore.splits import group_folds

N, RESAMPLES = 40, 12


def case(d):
    """Return x, its kernel and the roots of bootstrap weights of 20 clusters of two items, not all of them drawn."""
    rng = generator(0, "resample inverse", d)
    x = torch.tensor(rng.normal(size=(N, d)))
    counts = rng.multinomial(20, [1 / 20] * 20, size=RESAMPLES).repeat(2, axis=1)
    return x, x @ x.T, torch.tensor(counts, dtype=torch.float64).sqrt()


def by_definition(kernel, alpha, root):
    """Return G of every resample, one at a time with numpy."""
    out = []
    for r in root.numpy():
        a = np.linalg.inv(np.diag(r) @ kernel.numpy() @ np.diag(r) + alpha * np.eye(N))
        out.append(a - np.outer(a @ r, a @ r) / (r @ a @ r))
    return torch.tensor(np.array(out))


@pytest.mark.parametrize("form", ["features", "drawn items", "dense"])
@pytest.mark.parametrize("d", [5, 60])
def test_products_and_blocks_are_those_of_the_definition(form, d):
    """Float64, condition below 1e3: 1e-11 of entries of order 1. Of blocks the rows of drawn items are compared, and
    that the others are decoupled from them.
    """
    x, kernel, root = case(d)
    alpha = float(d)
    g = {
        "features": lambda: WithoutMean(ByFeatures(x, alpha, root), root),
        "drawn items": lambda: WithoutMean(ByDrawnItems(kernel, alpha, root), root),
        "dense": lambda: DensePrecision(kernel, alpha, root),
    }[form]()
    whole = by_definition(kernel, alpha, root)
    columns = torch.cat([root[:, :, None], root[:, :, None] * x[:, :3]], dim=2)
    assert torch.allclose(g.times(columns), whole @ columns, rtol=0, atol=1e-11)
    for items in (torch.arange(0, N, 5), torch.tensor([3, 1, 38])):
        block, drawn = g.block(items), root[:, items] > 0
        both = drawn[:, :, None] & drawn[:, None, :]
        assert both.any() and not both.all()
        assert torch.allclose(block[both], whole[:, items[:, None], items][both], rtol=0, atol=1e-11)
        one = drawn[:, :, None] ^ drawn[:, None, :]
        assert (block[one].abs() < 1e-12).all()
        assert (torch.linalg.cholesky_ex(block).info == 0).all()


def test_few_features_are_inverted_by_features_unless_alpha_is_tiny():
    x, kernel, root = case(5)
    assert isinstance(cheapest_precision(x, kernel, 5.0, root).a, ByFeatures)
    assert isinstance(cheapest_precision(x, kernel, 1e-7 * float(kernel.trace()), root).a, ByDrawnItems)
    x, kernel, root = case(60)
    assert isinstance(cheapest_precision(x, kernel, 5.0, root).a, ByDrawnItems)


def test_what_is_not_positive_definite_is_refused():
    _, kernel, root = case(5)
    with pytest.raises(DesignError, match="raise alpha"):
        ByDrawnItems(kernel - 1000 * torch.eye(N, dtype=torch.float64), 1.0, root)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_ties_are_broken_as_the_dense_form_breaks_them(n_classes, monkeypatch):
    """Twins of different classes with the same features: every decision between them is a tie, up to rounding.

    Which form is the cheapest must not show in the score, to the last bit.
    """
    rng = generator(1, "ties", n_classes)
    x = torch.tensor(rng.normal(size=(20, 4))).repeat_interleave(2, 0)
    y, pairs = np.arange(N) % 2, np.arange(N) // 2
    if n_classes == 3:
        y[pairs % 4 == 0] = 2
    design, folds, spec = Design.of(y, pairs), group_folds(pairs, 5), ProbeSpec("ridge", 4.0, "none")
    plan = plan_resampling(design, folds, None, spec, 30, 1)
    assert plan.method == "bootstrap"
    got = resampled_scores(x, design, folds, spec, plan)
    dense = lambda x, kernel, alpha, root: DensePrecision(kernel, alpha, root)  # noqa: E731
    monkeypatch.setattr("probecore.probes.intervals.cheapest_precision", dense)
    assert np.array_equal(got, resampled_scores(x, design, folds, spec, plan))
