"""Dimension measures on clouds of known dimension, and subspaces of known angle."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.spatial import cKDTree

from probecore import geometry
from probecore.errors import DesignError, InputError


def rotation(d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def test_a_planted_rank_is_found():
    """Rank 6 with equal variances plus noise of SD .02 in 40 dimensions, 800 items: PR 6 within sampling (a few %)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 6)) @ rotation(40)[:6] + 0.02 * rng.normal(size=(800, 40))
    spectrum = geometry.covariance_spectrum(x)
    assert geometry.participation_ratio(spectrum) == pytest.approx(6, rel=0.05)
    assert geometry.entropy_rank(spectrum) == pytest.approx(6, rel=0.1)
    assert geometry.components_for(spectrum, 0.98) == 6
    assert geometry.parallel_analysis(x) == 6
    assert geometry.parallel_analysis(rng.normal(size=(200, 30))) <= 1  # nothing planted: the 95 % quantile


def test_exact_values_of_simple_spectra():
    assert geometry.participation_ratio([1.0, 1.0, 1.0, 1.0]) == pytest.approx(4)
    assert geometry.entropy_rank([5.0, 5.0]) == pytest.approx(2)
    assert geometry.entropy_rank([1.0, 0.0]) == pytest.approx(1)
    assert [geometry.components_for([5.0, 3.0, 2.0], q) for q in (0.5, 0.8, 0.81, 1.0)] == [1, 2, 3, 3]
    x = np.random.default_rng(1).normal(size=(12, 30))
    full = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    spectrum = geometry.covariance_spectrum(x)
    assert len(spectrum) == 11  # centred: n - 1
    np.testing.assert_allclose(spectrum, full[:11], rtol=1e-10)


@pytest.mark.parametrize(("dimension", "ambient"), [(2, 2), (5, 5), (5, 20)])
def test_two_nn_of_a_uniform_ball(dimension, ambient):
    """Within 10 % on 3000 items (standard error about 2 % plus the edge of the ball)."""
    rng = np.random.default_rng(2)
    direction = rng.normal(size=(3000, dimension))
    ball = direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.random((3000, 1)) ** (1 / dimension)
    x = ball @ rotation(ambient)[:dimension]
    assert geometry.two_nn(x) == pytest.approx(dimension, rel=0.1)


def test_two_nn_neighbours_are_those_of_a_tree_also_far_from_the_origin():
    """The same ratio fit from exact tree distances; an offset of 1e6 must not cost the neighbours their distances."""
    x = np.random.default_rng(3).normal(size=(300, 4))
    distance = cKDTree(x).query(x, k=3)[0]
    mu = np.sort(distance[:, 2] / distance[:, 1])[:270]
    rank = -np.log(1 - np.arange(1, 271) / 300)
    slope = (np.log(mu) @ rank) / (np.log(mu) @ np.log(mu))
    assert geometry.two_nn(x) == pytest.approx(slope, rel=1e-9)
    assert geometry.two_nn(x + 1e6) == pytest.approx(slope, rel=1e-6)
    assert geometry.two_nn(np.concatenate([x, x[:50]])) == pytest.approx(slope, rel=1e-9)  # doubles count once


def test_measures_do_not_change_under_rotation_shift_and_scale():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(120, 15)) * np.exp(rng.normal(size=15))
    y = 7.3 * x @ rotation(15, 5) + 11
    for measure in (geometry.participation_ratio, geometry.entropy_rank):
        assert measure(geometry.covariance_spectrum(y)) == pytest.approx(measure(geometry.covariance_spectrum(x)))
    assert geometry.two_nn(y) == pytest.approx(geometry.two_nn(x))


def test_few_items_read_a_small_dimension_and_the_curve_shows_it():
    """Trap: one population (entropy rank 74.6, PR 22.9); published at N = 8, 32, 128: 6.1, 20.8, 46.1 (one draw)."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2048, 256)) * np.arange(1, 257) ** -0.5
    rows = geometry.rarefied(x, geometry.entropy_rank, [8, 32, 128], n_draws=10)
    means = [row["mean"] for row in rows]
    assert means == sorted(means) and means[0] < 7 and 17 < means[1] < 24 and 40 < means[2] < 50
    again = geometry.rarefied(x, geometry.entropy_rank, [32], n_draws=10)
    assert again[0]["mean"] == means[1]  # a size draws the same subsets whatever the other sizes are
    whole = geometry.rarefied(x[:20])
    assert [row["n_items"] for row in whole] == [8, 16, 20] and whole[-1]["sd"] is None


def test_a_massive_coordinate_is_flagged_and_taken_out():
    """Trap: 16 Gaussian items in 768 dimensions, one value of 600: first component .969 with it, about .087 without."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 768))
    x[0, 138] += 600
    rows = {row["variant"]: row for row in geometry.dimensions(x, n_permutations=5)}
    assert rows["as is"]["pc1_share"] == pytest.approx(0.969, abs=0.01) and rows["as is"]["massive"]
    assert rows["without top 1"]["pc1_share"] < 0.12
    clean = geometry.dimensions(rng.normal(size=(50, 20)), n_permutations=5)
    assert not any(row["massive"] for row in clean)
    assert [row["variant"] for row in clean] == ["as is", *(f"without top {k}" for k in (1, 2, 3)), "standardised"]


def test_overlap_and_angles_are_those_of_scipy():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(3, 20)), rng.normal(size=(5, 20))
    ours = geometry.subspace_overlap(a, b)
    reference = subspace_angles(a.T, b.T)[::-1]
    np.testing.assert_allclose(ours.angles, reference, atol=1e-10)
    assert ours.overlap == pytest.approx((np.cos(reference) ** 2).mean()) and ours.chance == 0.25
    np.testing.assert_allclose(geometry.subspace_overlap(b, a).angles, ours.angles, atol=1e-10)
    inside = geometry.subspace_overlap(a[:2], rng.normal(size=(3, 3)) @ a)
    assert inside.overlap == pytest.approx(1) and inside.distance < 1e-7
    tiny = geometry.subspace_overlap([[1.0, 0.0]], [[np.cos(1e-9), np.sin(1e-9)]])
    assert tiny.angles[0] == pytest.approx(1e-9, rel=1e-6)


def test_chance_overlap_is_that_of_random_subspaces():
    """400 random pairs (3 and 6 of 30 dimensions): the mean overlap is 6 / 30 within 4 standard errors."""
    rng = np.random.default_rng(7)
    overlaps = [
        geometry.subspace_overlap(rng.normal(size=(3, 30)), rng.normal(size=(6, 30))).overlap for _ in range(400)
    ]
    assert abs(np.mean(overlaps) - 0.2) < 4 * np.std(overlaps) / 20


def test_what_has_no_dimension_is_refused():
    with pytest.raises(DesignError):
        geometry.covariance_spectrum(np.ones((5, 3)))
    with pytest.raises(DesignError):
        geometry.two_nn(np.zeros((20, 3)))
    with pytest.raises(InputError):
        geometry.subspace_overlap(np.zeros((1, 3)), np.ones((1, 3)))
    with pytest.raises(InputError):
        geometry.rarefied(np.random.default_rng(0).normal(size=(10, 3)), sizes=[11])
