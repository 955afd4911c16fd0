"""Ridge engine: equal to refits by other algebra and by scikit-learn, operator identities, numerical safeguards."""

import numpy as np
import pytest
import torch
from reference import ridge_reference
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probecore.errors import DesignError, InputError
from probecore.probes.ridge import gram_of_features, ridge_decisions, ridge_operator, trace_alpha
from probecore.probes.solvers import ProbeSpec, decide
from probecore.seeds import generator
from probecore.splits import group_folds, item_folds, leave_one_group_out, leave_one_group_per_class_out

SHAPES = [(40, 96), (60, 20), (120, 60)]


def problem(n, d, n_classes, *, seed=0, labelings=3):
    """Return features with unequal scales, offsets and a constant column, groups and labelings."""
    rng = generator(seed, "engine", n, d, n_classes)
    groups = np.arange(n) % 8
    x = rng.normal(size=(n, d)) * rng.exponential(size=d) + rng.normal(size=(8, d))[groups] + rng.normal(size=d)
    x[:, 3] = 7.0
    x[:, 5] = np.where(groups == 0, rng.normal(size=n), 2.0)  # constant in the training set that leaves group 0 out
    y = np.stack([rng.permutation(np.arange(n) % n_classes) for _ in range(labelings)], 1)
    return x, groups, y


def engine(x, folds, labels, n_classes, **options):
    parts = ridge_decisions(torch.tensor(x), folds, torch.tensor(labels), n_classes, **options)
    return [part.numpy() for part in parts]


@pytest.mark.parametrize("n, d", SHAPES)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("standardize", ["none", "fold"])
@pytest.mark.parametrize("alpha", [0.1, 30.0])
def test_decisions_equal_explicit_refits(n, d, n_classes, standardize, alpha):
    """Tolerance 1e-10: both sides are float64 solves of systems with condition numbers below 1e5 (1e5 * 1e-16 * 10)."""
    x, groups, y = problem(n, d, n_classes)
    folds = group_folds(groups, 4).pairs
    expected = ridge_reference.decisions(x, folds, y, n_classes, alpha, standardize)
    for ours, theirs in zip(
        engine(x, folds, y, n_classes, alpha=alpha, standardize=standardize), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("n, d", SHAPES)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("standardize", ["none", "fold", "global"])
def test_decisions_equal_scikit_learn_and_no_label_flips(n, d, n_classes, standardize):
    """Float64 decisions within 1e-10 of RidgeClassifier over four alphas, and every predicted class the same."""
    x, groups, y = problem(n, d, n_classes, labelings=2)
    folds = group_folds(groups, 4).pairs
    scaled = StandardScaler().fit_transform(x) if standardize == "global" else x
    for alpha in (0.01, 1.0, 100.0, 1e4):
        ours = engine(x, folds, y, n_classes, alpha=alpha, standardize=standardize)
        for (train, test), decisions in zip(folds, ours, strict=True):
            for p in range(y.shape[1]):
                model = RidgeClassifier(alpha=alpha)
                model = make_pipeline(StandardScaler(), model) if standardize == "fold" else model
                model.fit(scaled[train], y[train, p])
                np.testing.assert_allclose(decisions[:, p], model.decision_function(scaled[test]), atol=1e-10)
                f = decisions[:, p]
                predicted = (f > 0).astype(int) if n_classes == 2 else f.argmax(1)
                assert (predicted == model.predict(scaled[test])).all()


def test_massive_dimension_and_offset_cost_no_digits():
    """One dimension 300 times larger with offset 500, as in language models: still within 1e-9 of scikit-learn.

    The condition number of the unscaled training Gram is about 1e7 here, so 1e-9 is what float64 leaves.
    """
    rng = generator(0, "massive")
    x = rng.normal(size=(300, 80))
    x[:, 7] = x[:, 7] * 300 + 500
    y, folds = rng.integers(2, size=(300, 1)), item_folds(300, 5).pairs
    for standardize in ("none", "fold"):
        ours = engine(x, folds, y, 2, alpha=10.0, standardize=standardize)
        for (train, test), decisions in zip(folds, ours, strict=True):
            model = RidgeClassifier(alpha=10.0)
            model = make_pipeline(StandardScaler(), model) if standardize == "fold" else model
            expected = model.fit(x[train], y[train, 0]).decision_function(x[test])
            np.testing.assert_allclose(decisions[:, 0], expected, atol=1e-9)


def test_overlapping_and_incomplete_folds_equal_refits():
    """Leave two groups out (overlapping tests) and training sets that drop further items: all forms, 1e-10."""
    for n, d in SHAPES[:2]:
        x, groups, y = problem(n, d, 2, labelings=2)
        pairs = list(leave_one_group_per_class_out(groups).pairs[::5])
        dropped = [(train[5:], test) for train, test in pairs]
        for folds in (pairs, dropped):
            for standardize in ("none", "fold"):
                expected = ridge_reference.decisions(x, folds, y, 2, 3.0, standardize)
                ours = engine(x, folds, y, 2, alpha=3.0, standardize=standardize)
                for a, b in zip(ours, expected, strict=True):
                    np.testing.assert_allclose(a, b, atol=1e-10)


def test_primal_through_weights_and_through_operator_agree():
    """n > d has two routes, chosen by cost: many labelings take the operator, few take the weights."""
    x, groups, y = problem(120, 60, 2, labelings=2)
    folds = group_folds(groups, 4).pairs
    few = engine(x, folds, y, 2, alpha=1.0)
    many = engine(x, folds, np.tile(y, (1, 400)), 2, alpha=1.0)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a, b[:, :2], atol=1e-12)


def test_real_labels_equal_refits():
    x, groups, _ = problem(60, 20, 2)
    y = generator(1, "real").normal(size=(60, 2))
    folds = leave_one_group_out(groups).pairs
    for a, b in zip(
        engine(x, folds, y, 0, alpha=2.0, standardize="fold"),
        ridge_reference.decisions(x, folds, y, 0, 2.0, "fold"),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("standardize", ["none", "fold", "global"])
def test_operator_identities(standardize):
    """Rows sum to 1, test blocks are zero, shift and rotation change nothing, layers do not mix."""
    x, groups, _ = problem(40, 96, 2)
    folds = group_folds(groups, 4)
    stack = torch.tensor(np.stack([x, x[::-1].copy()]))
    m = ridge_operator(stack, folds.pairs, alpha=5.0, standardize=standardize)
    torch.testing.assert_close(m.sum(-1), torch.ones(2, 40, dtype=torch.float64), atol=1e-11, rtol=0)
    start = 0
    for _, test in folds.pairs:
        assert (m[:, start : start + len(test)][..., test] == 0).all()
        start += len(test)
    alone = ridge_operator(stack[1], folds.pairs, alpha=5.0, standardize=standardize)
    torch.testing.assert_close(m[1], alone, atol=1e-12, rtol=0)
    shifted = ridge_operator(stack + 3.0, folds.pairs, alpha=5.0, standardize=standardize)
    torch.testing.assert_close(m, shifted, atol=1e-10, rtol=0)
    if standardize == "none":
        turn, _ = torch.linalg.qr(torch.tensor(generator(2, "turn").normal(size=(96, 96))))
        torch.testing.assert_close(m, ridge_operator(stack @ turn, folds.pairs, alpha=5.0, standardize="none"))


def test_leave_one_out_is_press_and_large_alpha_is_the_mean_difference():
    """LOO residual e / (1 - h) of the hat matrix; for alpha -> infinity f - ybar ~ x_c' (X_c' y_c) / alpha."""
    x, _, y = problem(40, 96, 2)
    folds = leave_one_group_out(np.arange(40)).pairs
    target = 2.0 * y[:, :1] - 1
    loo = np.concatenate(engine(x, folds, y[:, :1], 2, alpha=4.0, standardize="none"))
    centred = x - x.mean(0)
    k = centred @ centred.T
    hat = np.ones((40, 40)) / 40 + k @ np.linalg.inv(k + 4.0 * np.eye(40))
    press = target - (target - hat @ target) / (1 - np.diag(hat))[:, None]
    np.testing.assert_allclose(loo, press, atol=1e-9)
    train, test = group_folds(np.arange(40) % 8, 4).pairs[0]
    alpha = 1e12
    f = engine(x, [(train, test)], y[:, :1], 2, alpha=alpha, standardize="none")[0][:, 0]
    x_train, y_train = x[train] - x[train].mean(0), target[train, 0] - target[train, 0].mean()
    expected = (x[test] - x[train].mean(0)) @ (x_train.T @ y_train)
    got = alpha * (f - target[train, 0].mean())
    assert np.corrcoef(got, expected)[0, 1] > 0.999


def test_trace_alpha_is_label_free_and_on_the_scale_of_the_kernel():
    x, _, _ = problem(40, 96, 2)
    centred = torch.tensor(x - x.mean(0))
    expected = centred.square().sum(1).mean()
    torch.testing.assert_close(trace_alpha(centred @ centred.T).squeeze(), expected)
    folds = group_folds(np.arange(40) % 8, 4).pairs
    y = np.arange(40)[:, None] % 2
    for a, b in zip(
        engine(x, folds, y, 2, alpha="trace", standardize="none"),
        engine(x, folds, y, 2, alpha=float(expected), standardize="none"),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_blocked_gram_has_the_right_lower_triangle():
    x = torch.tensor(generator(0, "gram").normal(size=(30, 301)))
    torch.testing.assert_close(gram_of_features(x).tril(), (x.T @ x).tril())


def test_constant_layer_predicts_the_training_mean():
    """No varying feature: every decision is the mean label of the training set, and nothing fails."""
    y = (np.arange(24) < 10).astype(int)[:, None]
    folds = item_folds(24, 4).pairs
    for d in (5, 50):
        for (train, _), f in zip(folds, engine(np.ones((24, d)), folds, y, 2), strict=True):
            np.testing.assert_allclose(f, (2.0 * y[train] - 1).mean(), atol=1e-12)


def test_wrong_requests_are_refused():
    with pytest.raises(InputError, match="alpha must be positive"):
        ProbeSpec("ridge", alpha=0.0)
    with pytest.raises(InputError, match="the probe must be one of"):
        ProbeSpec("forest")
    x, y = torch.ones(6, 2, dtype=torch.float64), torch.zeros(6, 1, dtype=torch.int64)
    with pytest.raises(InputError, match="takes no options"):
        decide(ProbeSpec("ridge", options={"depth": 3}), x, item_folds(6, 2).pairs, y, 2, torch.arange(6))
    bad = -torch.eye(4, dtype=torch.float64)
    with pytest.raises(DesignError, match="not positive definite"):
        from probecore.probes.ridge import factor

        factor(bad)
