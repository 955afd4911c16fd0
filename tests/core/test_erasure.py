"""LEACE: the guarantee on its own items, what it does not say about others (trap 13), an independent implementation."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from probecore.erasure import LeaceEraser, erasure_check, project_out
from probecore.errors import DesignError, InputError


@parametrize_with_checks([LeaceEraser()])
def test_contract_of_scikit_learn(estimator, check):
    check(estimator)


def data(n, d, classes, seed=0, effect=0.5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) / d**0.5) + effect * rng.normal(size=(classes, d))[y]
    return x + 2, y


def leace_by_definition(x, z):
    """x - W^+ P W (x - mean), W = S^(-1/2), P onto the columns of W S_xz (Belrose et al. 2023, theorem 4.2), d < n."""
    xc, zc = x - x.mean(0), z - z.mean(0)
    w = np.linalg.inv(np.real(sqrtm(xc.T @ xc / len(x))))
    u, s, _ = np.linalg.svd(w @ xc.T @ zc / len(x), full_matrices=False)
    u = u[:, s > 1e-10]
    return x - xc @ (np.linalg.inv(w) @ u @ u.T @ w).T


@pytest.mark.parametrize("classes", [2, 5])
def test_thin_form_is_the_definition(classes):
    """Budget 1e-8: the square root of a covariance with condition number about 1e5 costs half the digits twice."""
    x, y = data(400, 30, classes)
    eraser = LeaceEraser().fit(x, y)
    assert eraser.rank_ == classes - 1
    np.testing.assert_allclose(eraser.transform(x), leace_by_definition(x, np.eye(classes)[y]), atol=1e-8)
    real = np.stack([y, x[:, 0] ** 2], 1).astype(float)
    np.testing.assert_allclose(
        LeaceEraser(real=True).fit(x, real).transform(x), leace_by_definition(x, real), atol=1e-8
    )


@pytest.mark.parametrize(("n", "d", "classes"), [(400, 30, 2), (400, 30, 5), (50, 512, 2), (300, 400, 3)])
def test_guarded_on_its_own_items(n, d, classes):
    """Before and after: cross-covariance below 1e-10 of what it was; a logistic probe falls to the majority."""
    x, y = data(n, d, classes)
    z = np.eye(classes)[y] - np.eye(classes)[y].mean(0)
    erased = LeaceEraser().fit(x, y).transform(x)
    before, after = (np.abs((a - a.mean(0)).T @ z / n).max() for a in (x, erased))
    assert before > 0.1 and after < 1e-10 * before
    majority = np.bincount(y).max() / n
    probe = LogisticRegression(solver="newton-cholesky")
    assert probe.fit(x, y).score(x, y) > majority + 0.15
    assert probe.fit(erased, y).score(erased, y) <= majority + 1e-12
    assert np.linalg.norm(erased - x) < np.linalg.norm(x - x.mean(0))


def test_what_the_guarantee_does_not_say_about_new_items():
    """Trap 13. Published for n = 2000, d = 256: carried probe .506, fresh probe .61; here n = 1200, d = 160."""
    x, y = data(1200, 160, 2, effect=0.5)
    check = erasure_check(x, y, np.arange(1200) // 20, n_random=2, alpha=1.0)
    assert check.cross_covariance < 1e-10 and check.in_sample < 0.53
    assert check.before > 0.85 and check.fresh_before > 0.8
    assert abs(check.carried - 0.5) < 0.06  # 1200 items: 4 standard errors
    assert check.fresh > check.carried + 0.04  # the concept is still there to be found
    assert check.fresh_random > check.fresh_before - 0.03  # a random subspace of equal rank takes nothing
    assert (check.rank, check.n_groups, check.chance) == (1, 60, 0.5)


def test_a_label_that_is_not_there_needs_no_erasing():
    x, y = data(300, 20, 2, effect=0.0)
    check = erasure_check(x, y, np.arange(300) // 10, n_random=2)
    assert abs(check.before - 0.5) < 0.12 and abs(check.fresh - 0.5) < 0.12  # 4 standard errors of 300 items


def test_erasing_twice_changes_nothing_and_constant_labels_erase_nothing():
    x, y = data(200, 20, 3)
    once = LeaceEraser().fit(x, y).transform(x)
    np.testing.assert_allclose(LeaceEraser().fit(once, y).transform(once), once, atol=1e-9)
    nothing = LeaceEraser().fit(x, np.zeros(200, dtype=int))
    assert nothing.rank_ == 0
    np.testing.assert_array_equal(nothing.transform(x), x)


def test_projection_is_idempotent_and_does_not_depend_on_the_basis():
    rng = np.random.default_rng(1)
    x, v = rng.normal(size=(20, 8)), rng.normal(size=(3, 8))
    out = project_out(x, v)
    np.testing.assert_allclose(out @ v.T, 0, atol=1e-12)
    np.testing.assert_allclose(project_out(out, v), out, atol=1e-12)
    np.testing.assert_allclose(project_out(x, rng.normal(size=(3, 3)) @ v), out, atol=1e-10)
    np.testing.assert_allclose(project_out(x, np.concatenate([v, v[:1] + v[1:2]])), out, atol=1e-10)
    centre = rng.normal(size=8)
    np.testing.assert_allclose(project_out(x, v[0], center=centre) @ v[0], centre @ v[0])
    np.testing.assert_allclose(project_out(centre[None], v[0], center=centre), centre[None])
    with pytest.raises(InputError):
        project_out(x, np.ones(7))


def test_designs_that_cannot_be_checked_are_refused():
    x, y = data(40, 5, 2)
    with pytest.raises(DesignError, match="4 groups"):
        erasure_check(x, y, np.arange(40) % 3)
    with pytest.raises(DesignError, match="lacks a class"):
        erasure_check(x, (np.arange(40) < 5).astype(int), np.arange(40) // 10)
