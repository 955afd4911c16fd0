"""LDA, logistic and nested-ridge solvers against scikit-learn fitted fold by fold and labelling by labelling.

Data: speaker offsets, unequal feature scales (log-normal), a mean of 5, observed and permuted labels, grouped folds.
"""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from probecore.errors import DesignError, InputError
from probecore.probes.coordinates import coordinates
from probecore.probes.layers import probe_layers
from probecore.probes.lda import lda_decisions
from probecore.probes.logistic import fit_logistic, logistic_decisions
from probecore.probes.nested import nested_ridge, nested_ridge_decisions
from probecore.probes.solvers import ProbeSpec


def data(n, d, classes, n_labelings, seed=0, groups=10):
    rng = np.random.default_rng(seed)
    g, y = np.arange(n) % groups, rng.integers(0, classes, n)
    x = rng.normal(size=(n, d)) + rng.normal(size=(groups, d))[g] + 0.3 * rng.normal(size=(classes, d))[y] + 5
    labels = np.stack([y] + [rng.permutation(y) for _ in range(n_labelings - 1)], 1)
    folds = list(GroupKFold(5).split(x, y, g))
    return x * np.exp(rng.normal(size=d)), labels, g, folds


def tensors(*arrays):
    return tuple(torch.as_tensor(a) for a in arrays)


def scaler(standardize):
    return StandardScaler() if standardize else FunctionTransformer()


@pytest.mark.parametrize(("n", "d", "classes"), [(60, 200, 2), (150, 40, 3), (120, 300, 4)])
@pytest.mark.parametrize("standardize", ["fold", "none"])
@pytest.mark.parametrize("alpha", [1e-2, 50.0])
def test_lda_is_that_of_scikit_learn_with_matched_shrinkage(n, d, classes, standardize, alpha):
    """scikit-learn's shrinkage gamma depends on the labels (mu = tr(S_w) / n d), so it is computed per fit.

    It weights the class covariances by the priors, so the oracle keeps the empirical ones: its discriminant is ours
    with equal priors / (1 - gamma) + log prior. Budget: relative 1e-10 of the largest discriminant times the digits
    that the condition number of S_w + alpha I costs as alpha falls (1 / alpha below 1).
    """
    x, labels, _, folds = data(n, d, classes, 3)
    ours = lda_decisions(
        *tensors(x), folds, *tensors(labels), classes, alpha=alpha, standardize=standardize, priors="equal"
    )
    for (train, test), decision in zip(folds, ours, strict=True):
        scale = scaler(standardize == "fold").fit(x[train])
        xr, xt = scale.transform(x[train]), scale.transform(x[test])
        for p in range(labels.shape[1]):
            y = labels[train, p]
            within = sum(((xr[y == k] - xr[y == k].mean(0)) ** 2).sum() for k in range(classes))
            ratio = alpha / len(train) / (within / len(train) / d)
            gamma = ratio / (1 + ratio)
            model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=gamma).fit(xr, y)
            log_prior = np.log(np.bincount(y) / len(y))
            reference, mine = model.decision_function(xt), decision[:, p].numpy() / (1 - gamma)
            if classes > 2:
                mine = mine + log_prior
                np.testing.assert_array_equal(model.classes_[mine.argmax(1)], model.predict(xt))
                mine, reference = (f - f.mean(1, keepdims=True) for f in (mine, reference))
            else:
                mine = mine + log_prior[1] - log_prior[0]
                np.testing.assert_array_equal((mine > 0).astype(int), model.predict(xt))
            np.testing.assert_allclose(mine, reference, atol=1e-10 * np.abs(reference).max() * max(1, 1 / alpha))


def test_lda_priors_shift_the_discriminants_by_their_logarithm():
    x, labels, _, folds = data(80, 30, 3, 2)
    kw = dict(alpha="trace", standardize="fold")
    equal = lda_decisions(*tensors(x), folds, *tensors(labels), 3, priors="equal", **kw)[0]
    given = lda_decisions(*tensors(x), folds, *tensors(labels), 3, priors=[0.2, 0.3, 0.5], **kw)[0]
    torch.testing.assert_close(given - equal, torch.log(torch.tensor([0.2, 0.3, 0.5])).double().expand_as(equal))
    own = lda_decisions(*tensors(x), folds, *tensors(labels), 3, **kw)[0]
    share = np.log(np.bincount(labels[folds[0][0], 1], minlength=3) / len(folds[0][0]))
    torch.testing.assert_close((own - equal)[:, 1], torch.tensor(share).expand(len(own), 3))
    with pytest.raises(InputError, match="priors"):
        lda_decisions(*tensors(x), folds, *tensors(labels), 3, priors=[0.2, 0.8], **kw)


def test_a_class_missing_from_a_training_fold_is_never_predicted():
    x, labels, _, folds = data(60, 20, 3, 1)
    labels[folds[0][0]] = np.where(labels[folds[0][0]] == 2, 0, labels[folds[0][0]])
    for solver in (lda_decisions, logistic_decisions):
        decision = solver(*tensors(x), folds[:1], *tensors(labels), 3, alpha="trace", standardize="fold")[0]
        assert torch.isneginf(decision[..., 2]).all() and torch.isfinite(decision[..., :2]).all()
        two = solver(*tensors(x), folds[:1], torch.ones(60, 1).long(), 2, alpha="trace", standardize="fold")[0]
        assert torch.isfinite(two).all() and (two > 0).all()
        with pytest.raises(InputError, match="ridge"):
            solver(*tensors(x), folds, *tensors(labels * 1.0), 0, alpha="trace", standardize="fold")


@pytest.mark.parametrize(("n", "d"), [(50, 512), (200, 60), (300, 400)])
@pytest.mark.parametrize("c_value", [1e-3, 1.0, 100.0])
def test_logistic_is_the_optimum_of_scikit_learn(n, d, c_value):
    """LogisticRegression at tol 1e-12 is itself within about 1e-5 of the optimum (scale 5); budget 1e-4 and 1e-3."""
    x, labels, _, folds = data(n, d, 2, 2)
    folds = folds[:2]
    ours = logistic_decisions(*tensors(x), folds, *tensors(labels), 2, alpha=1 / c_value, standardize="fold", tol=1e-9)
    for (train, test), decision in zip(folds, ours, strict=True):
        scale = StandardScaler().fit(x[train])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=c_value, tol=1e-12, max_iter=20_000)
            model.fit(scale.transform(x[train]), labels[train, 1])
        reference = model.decision_function(scale.transform(x[test]))
        np.testing.assert_allclose(decision[:, 1].numpy(), reference, atol=1e-3 if c_value > 1 else 1e-4)
        np.testing.assert_array_equal(decision[:, 1].numpy() > 0, reference > 0)
        fold = coordinates(torch.as_tensor(x[train]), True)
        w, b = fit_logistic(fold.train, torch.as_tensor(labels[train, 1:]), 2, 1 / c_value, tol=1e-10)
        raw = fold.weights(w[:, :, 0])
        np.testing.assert_allclose(raw[:, 0].numpy() * scale.scale_, model.coef_[0], atol=1e-4)
        # the raw weights and offset give the same decisions: coefficients are in units of the features
        np.testing.assert_allclose(
            (x[test] - fold.mean.numpy()) @ raw.numpy() + b[:, 0].numpy(), decision[:, 1:].numpy(), atol=1e-6
        )


@pytest.mark.parametrize(("n", "d", "classes"), [(120, 300, 3), (300, 60, 5)])
def test_softmax_is_the_optimum_of_scikit_learn(n, d, classes):
    """Published agreement of coefficients: 7e-7 at C = 1; budget 1e-5."""
    x, labels, _, _ = data(n, d, classes, 2)
    x = StandardScaler().fit_transform(x)
    fold = coordinates(torch.as_tensor(x), False)
    for c_value in (0.01, 1.0):
        w, b = fit_logistic(fold.train, torch.as_tensor(labels), classes, 1 / c_value, tol=1e-9)
        for p in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = LogisticRegression(C=c_value, tol=1e-12, max_iter=20_000).fit(x, labels[:, p])
            np.testing.assert_allclose(fold.weights(w[:, p]).T.numpy(), model.coef_, atol=1e-5)
            np.testing.assert_allclose(
                (b[p] - b[p].mean()).numpy(), model.intercept_ - model.intercept_.mean(), atol=1e-5
            )


def test_item_weights_are_repetitions_of_items():
    x, labels, _, _ = data(60, 20, 3, 2)
    times = np.random.default_rng(0).integers(0, 3, 60)
    repeated = np.repeat(np.arange(60), times)
    for classes in (2, 3):
        y = np.minimum(labels, classes - 1)
        weighted = fit_logistic(*tensors(x, y), classes, 1.0, weights=torch.as_tensor(times), tol=1e-10)
        reference = fit_logistic(*tensors(x[repeated], y[repeated]), classes, 1.0, tol=1e-10)
        torch.testing.assert_close(weighted[0], reference[0], atol=1e-7, rtol=0)


def test_first_newton_step_of_logistic_is_ridge():
    """With the penalty of 1e6 traces both probes are the class-mean difference: decisions correlate beyond 1 - 1e-8."""
    x, *_ = data(100, 30, 2, 1)
    y = np.tile([0, 1], 50)[:, None]
    fold = coordinates(torch.as_tensor(x), True)
    alpha = 1e6 * fold.penalty("trace")
    w, _ = fit_logistic(fold.train, torch.as_tensor(y), 2, alpha / 4, tol=1e-12)
    z = fold.left.T @ torch.as_tensor(2.0 * y - 1)
    ridge = fold.strength.sqrt()[:, None] / (fold.strength[:, None] + alpha) * z
    torch.testing.assert_close(w[..., 0], 2 * ridge, rtol=1e-4, atol=1e-14)


@pytest.mark.parametrize(("n", "d"), [(60, 200), (150, 40)])
@pytest.mark.parametrize("standardize", ["fold", "none"])
@pytest.mark.parametrize("criterion", ["loo", "group-loo"])
def test_nested_penalty_is_that_of_an_explicit_inner_search(n, d, standardize, criterion):
    """Oracles: RidgeCV (its closed-form LOO) and GridSearchCV(LeaveOneGroupOut). The same penalty every time.

    RidgeClassifierCV(scoring="accuracy") is no oracle: on two classes it scores 1.0 and takes the first alpha.
    GridSearchCV averages over groups and ours over items: groups have equal size here, so both are the same.
    """
    x, labels, g, folds = data(n, d, 2, 2)
    alphas = np.logspace(-2, 5, 8)
    ours, chosen = nested_ridge(
        *tensors(x), folds, *tensors(labels), 2, criterion, standardize, torch.as_tensor(g), alphas
    )
    for k, (train, test) in enumerate(folds):
        scale = scaler(standardize == "fold").fit(x[train])
        xr, xt = scale.transform(x[train]), scale.transform(x[test])
        for p in range(2):
            y = 2.0 * labels[train, p] - 1
            if criterion == "loo":
                model = RidgeCV(alphas).fit(xr, y)
                alpha = model.alpha_
            else:
                # inside the training fold the scaling is fixed before the inner search, as in ours
                model = GridSearchCV(
                    Ridge(), {"alpha": alphas}, scoring="neg_mean_squared_error", cv=LeaveOneGroupOut()
                )
                alpha = model.fit(xr, y, groups=g[train]).best_params_["alpha"]
            assert chosen[k, p] == pytest.approx(alpha)
            np.testing.assert_allclose(ours[k][:, p].numpy(), model.predict(xt), atol=1e-9)


def test_gcv_and_many_classes_equal_explicit_hat_matrices():
    """Three classes share one penalty: the criterion of a labelling is the sum over its one-hot columns."""
    x, labels, g, folds = data(60, 25, 3, 3)
    alphas = np.array([0.1, 10.0, 1000.0])
    train = folds[0][0]
    for criterion in ("gcv", "loo", "group-loo"):
        decisions, chosen = nested_ridge(
            *tensors(x), folds, *tensors(labels), 3, criterion, "fold", torch.as_tensor(g), alphas
        )
        z = StandardScaler().fit_transform(x[train])
        for p in range(3):
            y = 2.0 * np.eye(3)[labels[train, p]] - 1
            scores = []
            for a in alphas:
                hat = z @ np.linalg.solve(z.T @ z + a * np.eye(25), z.T) + 1 / len(z)
                r = y - hat @ y
                if criterion == "gcv":
                    scores.append((r**2).sum() / (1 - np.trace(hat) / len(z)) ** 2)
                elif criterion == "loo":
                    scores.append(((r / (1 - np.diag(hat))[:, None]) ** 2).sum())
                else:
                    left = [np.flatnonzero(g[train] == k) for k in np.unique(g[train])]
                    parts = [np.linalg.solve(np.eye(len(i)) - hat[np.ix_(i, i)], r[i]) for i in left]
                    scores.append(sum((e**2).sum() for e in parts))
            assert chosen[0, p] == alphas[np.argmin(scores)]
        assert decisions[0].shape == (len(folds[0][1]), 3, 3)


def test_nested_ridge_regression_and_refusals():
    x, labels, _, folds = data(60, 25, 2, 2)
    y = np.random.default_rng(0).normal(size=(60, 2)) + x[:, :1]
    fit = nested_ridge_decisions(*tensors(x), folds, *tensors(y), 0, alpha="loo", standardize="fold", alphas=[1.0])
    scale = StandardScaler().fit(x[folds[0][0]])
    model = Ridge(1.0).fit(scale.transform(x[folds[0][0]]), y[folds[0][0]])
    np.testing.assert_allclose(fit[0].numpy(), model.predict(scale.transform(x[folds[0][1]])), atol=1e-10)
    kw = dict(standardize="fold")
    with pytest.raises(InputError, match="groups"):
        nested_ridge_decisions(*tensors(x), folds, *tensors(labels), 2, alpha="group-loo", **kw)
    with pytest.raises(DesignError, match="2 groups"):
        one = torch.zeros(60).long()
        nested_ridge_decisions(*tensors(x), folds, *tensors(labels), 2, alpha="group-loo", groups=one, **kw)
    with pytest.raises(InputError, match="alpha"):
        nested_ridge_decisions(*tensors(x), folds, *tensors(labels), 2, alpha="trace", **kw)


def test_labelings_do_not_influence_each_other():
    """A labelling alone, in another order, or in a chunk of its own gets the same decisions to 1e-8 of their size."""
    x, labels, _, folds = data(80, 120, 3, 7)
    for solver in (lda_decisions, logistic_decisions):
        kw = dict(alpha="trace", standardize="fold")
        together = solver(*tensors(x), folds, *tensors(labels), 3, **kw)[1]
        alone = solver(*tensors(x), folds, *tensors(labels[:, [4]]), 3, **kw)[1]
        torch.testing.assert_close(together[:, [4]], alone, atol=1e-6, rtol=1e-6)


def test_constant_and_dead_features_are_harmless():
    x, labels, _, folds = data(60, 30, 2, 2)
    padded = np.concatenate([x, np.full((60, 2), 7.3), np.zeros((60, 1))], 1)
    for solver in (lda_decisions, logistic_decisions):
        kw = dict(alpha=10.0, standardize="fold")
        torch.testing.assert_close(
            solver(*tensors(padded), folds, *tensors(labels), 2, **kw)[0],
            solver(*tensors(x), folds, *tensors(labels), 2, **kw)[0],
            atol=1e-6,
            rtol=1e-6,
        )
        dead = solver(torch.full((60, 4), 3.0, dtype=torch.float64), folds, *tensors(labels), 2, **kw)[0]
        assert torch.isfinite(dead).all() and torch.allclose(dead, dead[:1])


def test_a_spec_names_the_solver_and_refuses_what_it_cannot_use():
    assert ProbeSpec("ridge", "loo").kind == "nested-ridge" and ProbeSpec("nested-ridge").alpha == "group-loo"
    assert ProbeSpec("ridge", 2.0).kind == "ridge"
    for kind, alpha in (("lda", "loo"), ("nested-ridge", 1.0), ("ridge", "best"), ("logistic", 0.0)):
        with pytest.raises(InputError, match="alpha"):
            ProbeSpec(kind, alpha)


@pytest.mark.parametrize(
    "spec",
    [
        ProbeSpec("lda"),
        ProbeSpec("logistic"),
        ProbeSpec("ridge", "group-loo"),
        ProbeSpec("lda", options={"priors": "equal"}),
    ],
)
def test_probe_layers_runs_every_solver(spec):
    """Layer 0 holds nothing, layer 1 a strong label: p is the smallest possible there, and not below .05 at layer 0."""
    rng = np.random.default_rng(3)
    speaker, y = np.repeat(np.arange(10), 6), np.tile([0, 1], 30)
    x = rng.normal(size=(2, 60, 40)) + rng.normal(size=(2, 10, 40))[:, speaker]
    x[1, :, 0] += 4 * y
    nothing, strong = probe_layers(x, y, groups=speaker, probe=spec, n_permutations=99, n_bootstrap=0).rows
    assert strong["p_value"] == 1 / 100 and strong["accuracy"] > 0.8
    assert nothing["p_value"] > 0.05 and 0.3 < nothing["accuracy"] < 0.7


@pytest.mark.parametrize(
    ("spec", "runs"), [(ProbeSpec("lda"), 400), (ProbeSpec("logistic"), 200), (ProbeSpec("ridge", "group-loo"), 200)]
)
def test_permutation_tests_of_every_solver_hold_their_level(spec, runs):
    """Design D3 (label by clip, exchanged inside the speaker, folds by speaker): each layer is one null data set.

    Rejections at .05 inside the exact 99.9 % binomial band of the runs.
    """
    rng = np.random.default_rng(11)
    speaker = np.repeat(np.arange(10), 5)
    y = (rng.random(50) < 0.25 + 0.5 * (speaker % 2)).astype(int)
    x = rng.normal(size=(runs, 50, 16)) + rng.normal(size=(runs, 10, 16))[:, speaker]
    rows = probe_layers(x, y, groups=speaker, probe=spec, n_permutations=99, n_bootstrap=0).rows
    rate = np.mean([row["p_value"] <= 0.05 for row in rows])
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.05) / runs
    assert low <= rate <= high
