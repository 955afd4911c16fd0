"""The gap that covariates leave: against a slow regression, and calibrated where length alone makes a gap."""

import numpy as np
import pytest

from lmprobe.contrast_statistics import adjusted_gap, gap
from lmprobe.contrasts import contrast
from lmprobe.prompts import Prompts


def made(n, rng, paired=False):
    ids = tuple(map(str, range(n)))
    categories = (
        ("safe", "risk") * (n // 2) if paired else tuple(rng.permutation(["safe"] * (n // 2) + ["risk"] * (n // 2)))
    )
    families = tuple(np.repeat(ids[: n // 2], 2).tolist()) if paired else ids
    return Prompts("made", ids, ids, categories, families)


def test_the_coefficient_and_its_t_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    chosen = contrast(made(40, rng), n_permutations=19, n_bootstrap=15, seed=0)
    values, z = rng.normal(size=40), rng.normal(size=(40, 3))
    coefficient, t = adjusted_gap(values, z)

    def slow(rows, label):
        x = np.column_stack([np.ones(len(rows)), label, z[rows]])
        beta, *_ = np.linalg.lstsq(x, values[rows], rcond=None)
        left = values[rows] - x @ beta
        error = np.sqrt(left @ left / (len(rows) - 5) * np.linalg.inv(x.T @ x)[1, 1])
        return beta[1], beta[1] / error

    for k in range(4):
        expected = slow(np.arange(40), chosen.labelings[:, k].astype(float))
        assert chosen.null(coefficient)[k] == pytest.approx(expected[0], abs=1e-10)
        assert chosen.null(t)[k] == pytest.approx(expected[1], abs=1e-8)
    mask = chosen.is_first[:, None]
    drawn = coefficient(chosen.resamples * mask, chosen.resamples * ~mask)
    for k in range(3):  # a weight of 2 is a prompt that stands there twice
        rows = np.repeat(np.arange(40), chosen.resamples[:, k].astype(int))
        assert drawn[k] == pytest.approx(slow(rows, chosen.is_first[rows].astype(float))[0], abs=1e-9)


def test_inside_families_it_is_the_regression_with_one_level_each() -> None:
    rng = np.random.default_rng(4)
    chosen = contrast(made(24, rng, paired=True), n_permutations=19, n_bootstrap=15, seed=0)
    values, z = rng.normal(size=24), rng.normal(size=(24, 2))
    coefficient, t = adjusted_gap(values, z, chosen.crossed)

    def slow(rows, label, levels):
        x = np.column_stack([levels[:, None] == np.unique(levels), label, z[rows]])
        beta, *_ = np.linalg.lstsq(x, values[rows], rcond=None)
        left = values[rows] - x @ beta
        error = np.sqrt(left @ left / (len(rows) - x.shape[1]) * np.linalg.inv(x.T @ x)[-3, -3])
        return beta[-3], beta[-3] / error

    for k in range(4):
        expected = slow(np.arange(24), chosen.labelings[:, k].astype(float), chosen.families)
        assert chosen.null(coefficient)[k] == pytest.approx(expected[0], abs=1e-10)
        assert chosen.null(t)[k] == pytest.approx(expected[1], abs=1e-8)
    mask = chosen.is_first[:, None]
    drawn = coefficient(chosen.resamples * mask, chosen.resamples * ~mask)
    for k in range(3):  # a family drawn twice is two families of one level each
        rows = np.repeat(np.arange(24), chosen.resamples[:, k].astype(int))
        copies = np.concatenate([np.arange(n) for n in chosen.resamples[:, k].astype(int)])
        levels = chosen.families[rows] * 100 + copies
        assert drawn[k] == pytest.approx(slow(rows, chosen.is_first[rows].astype(float), levels)[0], abs=1e-9)


def test_a_topic_that_moves_length_and_value_alike_makes_no_gap_in_pairs() -> None:
    """Pairs with a topic of their own, risk prompts longer by one sd, the value follows topic and length: 200 studies.

    At most .05 + 3.3 SE = .10, and the interval covers 0 in .95 -/+ 4 SE. Without a level for each pair the topic is
    taken for the effect of length and leaves a gap in most studies.
    """
    alone = inside = covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        chosen = contrast(made(40, rng, paired=True), n_permutations=99, n_bootstrap=200, seed=seed)
        topic = np.repeat(rng.normal(size=20), 2)
        length = chosen.is_first + rng.normal(size=40) + topic
        values = length + topic + 0.5 * rng.normal(size=40)
        alone += chosen.p_value(adjusted_gap(values, length[:, None])[1]) <= 0.05
        coefficient, t = adjusted_gap(values, length[:, None], chosen.crossed)
        inside += chosen.p_value(t) <= 0.05
        low, high = chosen.interval(coefficient)
        covered += low <= 0 <= high
    assert alone > 80
    assert 0.01 <= inside / 200 <= 0.10
    assert 0.89 <= covered / 200 <= 1.0


def test_a_covariate_that_does_not_vary_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    chosen = contrast(made(30, rng), n_permutations=19, n_bootstrap=0)
    values = rng.normal(size=30)
    plain = chosen.observed(gap(values))
    assert chosen.observed(adjusted_gap(values, np.ones((30, 1)))[0]) == pytest.approx(plain, abs=1e-12)


def test_a_gap_of_length_alone_is_no_gap_given_length() -> None:
    """Risk prompts are longer by one sd, and the value follows length only: 200 studies of 40 prompts.

    At most .05 + 3.3 SE = .10 for the adjusted test; the plain one finds the gap of length in most studies.
    """
    plain = adjusted = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        chosen = contrast(made(40, rng), n_permutations=99, n_bootstrap=0, seed=seed)
        length = chosen.is_first + rng.normal(size=40)
        values = length + 0.5 * rng.normal(size=40)
        plain += chosen.p_value(gap(values)) <= 0.05
        adjusted += chosen.p_value(adjusted_gap(values, length[:, None])[1]) <= 0.05
    assert plain > 120
    assert 0.01 <= adjusted / 200 <= 0.10


def test_a_gap_beside_length_is_found_and_its_interval_covers() -> None:
    """A gap of 1 beside the effect of length, 120 studies of 40 prompts: covered .95 -/+ 4 SE (.02)."""
    covered = found = 0
    for seed in range(120):
        rng = np.random.default_rng(1000 + seed)
        chosen = contrast(made(40, rng), n_permutations=99, n_bootstrap=200, seed=seed)
        length = chosen.is_first + rng.normal(size=40)
        values = chosen.is_first + length + 0.7 * rng.normal(size=40)
        coefficient, t = adjusted_gap(values, length[:, None])
        low, high = chosen.interval(coefficient)
        covered += low <= 1 <= high
        found += chosen.p_value(t) <= 0.05
    assert 0.87 <= covered / 120 <= 1.0
    assert found > 0.8 * 120
