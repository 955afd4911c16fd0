"""LinearProbe and LinearProbeRegressor: scikit-learn's contract, its own estimators as oracles, and raw units."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probecore.errors import InputError
from probecore.probes.lda import lda_decisions
from probecore.probes.linear import LinearProbe, LinearProbeRegressor
from probecore.probes.logistic import logistic_decisions
from probecore.probes.nested import nested_ridge_decisions


@parametrize_with_checks(
    [LinearProbe(kind=kind) for kind in ("ridge", "lda", "logistic", "mean-difference")]
    + [LinearProbe(alpha="loo", standardize=False), LinearProbeRegressor(), LinearProbeRegressor(alpha="gcv")]
)
def test_contract_of_scikit_learn(estimator, check):
    check(estimator)


def data(n=90, d=30, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = (rng.normal(size=(n, d)) + 0.8 * rng.normal(size=(classes, d))[y] + 5) * np.exp(rng.normal(size=d))
    return x, np.array(["a", "b", "c", "d"])[y], rng.integers(0, 6, n)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("d", [30, 200])
def test_estimators_are_those_of_scikit_learn(classes, d):
    x, y, _ = data(d=d, classes=classes)
    train, test = np.arange(60), np.arange(60, 90)
    scaled = StandardScaler().fit(x[train])
    xr, xt = scaled.transform(x[train]), scaled.transform(x[test])
    ridge = LinearProbe(alpha=3.0).fit(x[train], y[train])
    oracle = RidgeClassifier(alpha=3.0).fit(xr, y[train])
    np.testing.assert_allclose(ridge.decision_function(x[test]), oracle.decision_function(xt), atol=1e-9)
    np.testing.assert_array_equal(ridge.predict(x[test]), oracle.predict(xt))
    np.testing.assert_allclose(ridge.coef_ * scaled.scale_, np.atleast_2d(oracle.coef_), atol=1e-9)
    logistic = LinearProbe(kind="logistic", alpha=2.0).fit(x[train], y[train])
    oracle = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(xr, y[train])
    np.testing.assert_allclose(logistic.predict_proba(x[test]), oracle.predict_proba(xt), atol=1e-4)
    means = LinearProbe(kind="mean-difference", standardize=False).fit(x[train], y[train])
    np.testing.assert_array_equal(means.predict(x[test]), NearestCentroid().fit(x[train], y[train]).predict(x[test]))


@pytest.mark.parametrize("classes", [2, 3])
def test_estimators_are_the_solvers_of_cross_validation(classes):
    """Fitted on a training fold, the estimator decides what the batched solver decides for that fold's test items."""
    x, y, groups = data(classes=classes)
    codes = np.unique(y, return_inverse=True)[1]
    fold = (np.arange(60), np.arange(60, 90))
    given = [torch.as_tensor(x), [fold], torch.as_tensor(codes[:, None]), classes]
    kw = dict(standardize="fold", groups=torch.as_tensor(groups))
    for probe, solver in (
        (LinearProbe(kind="lda", priors="equal"), lambda: lda_decisions(*given, alpha="trace", priors="equal", **kw)),
        (LinearProbe(kind="logistic"), lambda: logistic_decisions(*given, alpha="trace", **kw)),
        (LinearProbe(alpha="group-loo"), lambda: nested_ridge_decisions(*given, alpha="group-loo", **kw)),
    ):
        fitted = probe.fit(x[fold[0]], y[fold[0]], groups=groups[fold[0]])
        np.testing.assert_allclose(fitted.decision_function(x[fold[1]]), solver()[0][:, 0].numpy(), atol=1e-5)


def test_probabilities_only_where_they_mean_something():
    x, y, _ = data()
    assert not hasattr(LinearProbe(), "predict_proba") and not hasattr(LinearProbe("mean-difference"), "predict_proba")
    p = LinearProbe("lda").fit(x, y).predict_proba(x)
    np.testing.assert_allclose(p.sum(1), 1)
    two = LinearProbe("lda", priors=[0.9, 0.1]).fit(x, y == "a").predict_proba(x)
    assert two[:, 1].mean() < LinearProbe("lda", priors="equal").fit(x, y == "a").predict_proba(x)[:, 1].mean()


def test_equal_priors_find_a_rare_class_that_ridge_misses():
    """12 % positives: published balanced accuracies ridge .593, LDA with equal priors .743; here the gap is > .05."""
    rng = np.random.default_rng(0)
    score = {"ridge": [], "lda": []}
    for _ in range(8):
        y = np.arange(400) % 8 == 0
        x = rng.normal(size=(400, 64)) + 0.75 * y[:, None] * rng.normal(size=64) / 8**0.5
        half = np.arange(400) < 200
        for kind, values in score.items():
            right = LinearProbe(kind, priors="equal").fit(x[half], y[half]).predict(x[~half]) == y[~half]
            values.append((right[y[~half]].mean() + right[~y[~half]].mean()) / 2)
    assert np.mean(score["lda"]) > np.mean(score["ridge"]) + 0.05


def test_regressor_is_ridge_and_works_in_pipelines():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 20)) * np.exp(rng.normal(size=20)) + 3
    y = x[:, 0] + rng.normal(size=80)
    oracle = make_pipeline(StandardScaler(), Ridge(4.0)).fit(x, y)
    ours = LinearProbeRegressor(alpha=4.0).fit(x, y)
    np.testing.assert_allclose(ours.predict(x), oracle.predict(x), atol=1e-10)
    search = GridSearchCV(clone(ours), {"alpha": [0.1, 10.0, "trace"]}).fit(x, y)
    assert search.best_score_ > 0


def test_what_cannot_be_fitted_is_refused():
    x, y, _ = data()
    with pytest.raises(InputError, match="kind"):
        LinearProbe("svm").fit(x, y)
    with pytest.raises(InputError, match="alpha"):
        LinearProbe(alpha=-1.0).fit(x, y)
    with pytest.raises(InputError, match="1 class"):
        LinearProbe().fit(x, np.zeros(len(x)))
    with pytest.raises(InputError, match="groups"):
        LinearProbe(alpha="group-loo").fit(x, y)
    with pytest.raises(InputError, match="trace"):
        LinearProbe("lda", alpha="loo").fit(x, y)
    with pytest.raises(InputError, match="alpha"):
        LinearProbe(alpha="best").fit(x, y)
