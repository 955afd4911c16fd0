"""Directions with a planted answer: sign, scale, invariances, stability, contrastive SVD."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage

from probecore import directions
from probecore.errors import DesignError, InputError
from probecore.probes.fit import KINDS, fit_linear


def planted(n=400, d=40, effect=2.0, seed=0, noise=None, n_groups=10):
    """Items along a known unit vector u; `noise` (d,) are the SDs of the noise. Groups shift items by SD .3."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=d)
    u /= np.linalg.norm(u)
    y = np.arange(n) % 2
    group = np.arange(n) // 2 % n_groups
    x = rng.normal(size=(n, d)) * (1.0 if noise is None else noise) + effect * y[:, None] * u + 3
    return x + 0.3 * rng.normal(size=(n_groups, d))[group], np.array(["base", "risk"])[y], group, u


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_the_planted_direction_with_the_right_sign(kind):
    """400 items, d = 40, effect 2: a coordinate of the mean difference has error .1, so cos is about 2 / sqrt(4.4)."""
    x, y, _, u = planted()
    made = directions.direction(x, y, kind)
    assert np.linalg.norm(made.vector) == pytest.approx(1, abs=1e-12)
    assert made.positive == "risk" and made.vector @ u > 0.85
    assert made.separation == pytest.approx(2, rel=0.25)
    turned = directions.direction(x, y, kind, positive="base")
    np.testing.assert_allclose(turned.vector, -made.vector, atol=1e-8)
    z = made.project(x)
    inside = np.concatenate([z[y == c] - z[y == c].mean() for c in ("base", "risk")])
    assert inside @ inside / (len(x) - 2) == pytest.approx(1)
    assert ((z > 0) == (y == "risk")).mean() > 0.75


def test_mean_difference_is_the_difference_of_means_and_the_limit_of_the_others():
    x, y, _, _ = planted()
    expected = x[y == "risk"].mean(0) - x[y == "base"].mean(0)
    made = directions.direction(x, y)
    np.testing.assert_allclose(made.vector, expected / np.linalg.norm(expected), atol=1e-12)
    middle = (x[y == "risk"].mean(0) + x[y == "base"].mean(0)) / 2
    assert made.threshold == pytest.approx(middle @ made.vector)
    for kind in ("ridge", "lda", "logistic"):
        assert directions.cosine(directions.direction(x, y, kind, alpha=1e9).vector, expected) > 1 - 1e-8


def test_lda_takes_noise_into_account():
    """One coordinate has noise of SD 20: the mean difference follows its sampling error, LDA does not."""
    noise = np.ones(40)
    noise[7] = 20
    x, y, _, u = planted(noise=noise, effect=3.0)
    u_clean = np.delete(u, 7) / np.linalg.norm(np.delete(u, 7))
    lda = directions.direction(x, y, "lda", alpha=1.0).vector
    assert abs(lda[7]) < 0.05 and np.delete(lda, 7) @ u_clean > 0.9
    assert directions.direction(x, y).separation < directions.direction(x, y, "lda", alpha=1.0).separation


def test_three_classes_need_a_positive_one():
    x, y, _, _ = planted()
    three = np.where(np.arange(400) % 3 == 0, "other", y)
    with pytest.raises(InputError, match="positive"):
        directions.direction(x, three)
    assert directions.direction(x, three, positive="risk").positive == "risk"
    with pytest.raises(InputError, match="equal means"):
        directions.direction(np.ones((4, 2)), [0, 1, 0, 1])


def test_paired_direction_does_not_depend_on_pair_order_or_item_identity():
    """Pairs share an item vector of SD 5 that swamps unpaired differences; flipping some pairs keeps the line."""
    rng = np.random.default_rng(1)
    u = np.eye(30)[3]
    item = 5 * rng.normal(size=(60, 30))
    a = item + rng.normal(size=(60, 30)) * 0.3 + 2 * u
    b = item + rng.normal(size=(60, 30)) * 0.3
    made = directions.paired_direction(a, b)
    assert made.vector @ u > 0.98 and made.positive == "first" and made.separation > 3
    np.testing.assert_allclose(directions.paired_direction(b, a).vector, -made.vector, atol=1e-10)
    flip = np.arange(60) % 3 == 0
    mixed = directions.paired_direction(np.where(flip[:, None], b, a), np.where(flip[:, None], a, b))
    np.testing.assert_allclose(mixed.vector, made.vector, atol=1e-10)


def test_stability_grows_with_the_effect_and_null_directions_are_unstable():
    """Halves of 200 items, d = 40: expected cosine 16 / (16 + 40 * 4 / 200) = .95 at effect 4, else 0."""
    strong = directions.direction_stability(*_arguments(planted(effect=4.0)), n_resamples=100)
    nothing = directions.direction_stability(*_arguments(planted(effect=0.0)), n_resamples=100)
    assert strong.split_cosine > 0.9 and strong.fold_cosine > strong.split_cosine and strong.ci_low > 0.95
    assert abs(nothing.split_cosine) < 0.2 and nothing.fold_cosine > 0.5  # folds share items: never the evidence
    assert nothing.n_groups == 10 and nothing.ci_low < strong.ci_low
    again = directions.direction_stability(*_arguments(planted(effect=4.0)), n_resamples=100)
    assert again == strong


def _arguments(made):
    return made[:3]


def test_groups_with_one_class_are_drawn_inside_their_class():
    x, y, _, _ = planted()
    group = np.where(y == "risk", 0, 5) + np.arange(400) // 2 % 5
    made = directions.direction_stability(x, y, group, "lda", n_resamples=20, n_folds=5)
    assert made.split_cosine > 0.3  # expected 4 / (4 + .8 + 2.9): 2 to 3 groups a class and half carry SD .3 each
    with pytest.raises(DesignError, match="4 groups"):
        directions.direction_stability(x, y, np.arange(400) % 2)


def test_cosine_interval_of_two_directions_holds_the_truth():
    """Two planted directions with cosine .6, large effects and many groups: the interval is narrow and holds .6.

    Noise in the fitted vectors pulls the cosine towards 0; at effect 20 and 600 items by less than .01.
    """
    rng = np.random.default_rng(2)
    d, n = 20, 600
    u, w = np.eye(d)[0], 0.6 * np.eye(d)[0] + 0.8 * np.eye(d)[1]
    a, b = rng.integers(0, 2, n), rng.integers(0, 2, n)
    x = rng.normal(size=(n, d)) + 20 * a[:, None] * u + 20 * b[:, None] * w
    both = np.stack([a, b], 1) - np.stack([a, b], 1).mean(0)

    def fits(column):
        return lambda items: np.linalg.lstsq(both[items], x[items] - x[items].mean(0), rcond=None)[0][column]

    value, low, high = directions.cosine_interval(fits(0), fits(1), np.arange(n) // 10, n_resamples=100)
    assert low <= 0.6 <= high and high - low < 0.05 and abs(value - 0.6) < 0.02


def test_whitened_contrast_finds_a_planted_subspace_that_the_plain_one_misses():
    """20 strong noise directions hide 4 weaker ones of the signal. Captured: mean squared cosine, chance 4 / 120."""
    rng = np.random.default_rng(3)
    d, n = 120, 1000
    frame = np.linalg.qr(rng.normal(size=(d, d)))[0]
    scale = np.concatenate([np.full(20, 4.0), np.ones(100)])
    reference = (rng.normal(size=(n, d)) * scale) @ frame
    signal = (rng.normal(size=(n, d)) * scale) @ frame + 2.5 * rng.normal(size=(n, 4)) @ frame[40:44]
    share = {}
    for contrast in ("anchored", "whitened"):
        made = directions.contrastive_svd(signal, reference, 4, contrast)
        np.testing.assert_allclose(made.vectors @ made.vectors.T, np.eye(4), atol=1e-10)
        share[contrast] = ((made.vectors @ frame[40:44].T) ** 2).sum() / 4
    assert share["whitened"] > 0.5 > 0.2 > share["anchored"]


def test_thin_ledoit_wolf_is_that_of_scikit_learn():
    for n, d in ((30, 80), (200, 12)):
        x = np.random.default_rng(4).normal(size=(n, d)) * np.arange(1, d + 1) ** -0.5
        basis, variance, rest = directions._shrunk_covariance(x)
        ours = (basis.T * (variance - rest)) @ basis + rest * np.eye(d)
        np.testing.assert_allclose(ours, ledoit_wolf(x)[0], atol=1e-12)
        assert 0 < ledoit_wolf_shrinkage(x) < 1


def test_fit_linear_refuses_classes_for_regression():
    with pytest.raises(InputError, match="ridge"):
        fit_linear(np.ones((3, 1)), np.ones(3), 0, kind="lda")
