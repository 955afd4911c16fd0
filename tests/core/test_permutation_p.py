"""p-values, families of tests, false discovery rate: definitions, orderings, ties, and error rates (trap 9)."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from probecore.errors import InputError
from probecore.seeds import generator
from probecore.stats.multiple import benjamini_hochberg, holm
from probecore.stats.permutation import max_t, p_value, standardise


def test_p_is_b_plus_1_over_m_plus_1_and_ties_count():
    assert p_value([2.0, 1.0, 2.0, 3.0]) == 0.75
    assert p_value([5.0, *[0.0] * 99]) == 0.01
    assert p_value([1.0, 1.0 - 1e-12, 0.0, 0.0]) == 0.5  # equal up to rounding
    assert np.isnan(p_value([[np.nan, 1.0]]))[0]
    with pytest.raises(InputError, match="shape"):
        p_value(np.zeros((2, 2, 2)))


def test_max_t_equals_explicit_loops():
    values = generator(0, "max-t").normal(size=(6, 50)) * np.arange(1, 7)[:, None]
    z = standardise(values)
    np.testing.assert_allclose(z, (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True))
    single = [(1 + sum(z[:, j].max() >= z[i, 0] - 1e-9 for j in range(1, 50))) / 50 for i in range(6)]
    np.testing.assert_allclose(max_t(values, step_down=False), single)
    order = sorted(range(6), key=lambda i: -z[i, 0])
    expected, worst = np.zeros(6), 0.0
    for rank, i in enumerate(order):
        p = (1 + sum(max(z[k, j] for k in order[rank:]) >= z[i, 0] - 1e-9 for j in range(1, 50))) / 50
        worst = max(worst, p)
        expected[i] = worst
    np.testing.assert_allclose(max_t(values), expected)


def test_adjusted_p_is_at_least_p_and_does_not_depend_on_the_order_of_tests():
    values = generator(1, "order").normal(size=(9, 200))
    values[3, 0] = 4
    p, step, single = p_value(values), max_t(values), max_t(values, step_down=False)
    assert (p <= step + 1e-12).all() and (step <= single + 1e-12).all()
    order = generator(2, "shuffle").permutation(9)
    np.testing.assert_array_equal(max_t(values[order]), step[order])


def test_tests_that_were_not_made_stay_out():
    values = generator(3, "nan").normal(size=(4, 100))
    with_dead = np.insert(values, 2, np.nan, axis=0)
    adjusted = max_t(with_dead)
    assert np.isnan(adjusted[2])
    np.testing.assert_array_equal(np.delete(adjusted, 2), max_t(values))
    p = np.array([0.01, np.nan, 0.04, 0.5])
    np.testing.assert_allclose(benjamini_hochberg(p)[[0, 2, 3]], false_discovery_control(p[[0, 2, 3]]))
    assert np.isnan(holm(p)[1]) and np.isnan(max_t(np.full((2, 3), np.nan))).all()


def test_constant_statistics_have_p_1():
    assert (max_t(np.ones((3, 20))) == 1).all() and (p_value(np.ones((3, 20))) == 1).all()


def test_holm_and_benjamini_hochberg():
    p = generator(4, "bh").random(20) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))
    by_hand = [min(1, max(sorted(p)[j] * (20 - j) for j in range(rank + 1))) for rank in range(20)]
    np.testing.assert_allclose(np.sort(holm(p)), by_hand)
    with pytest.raises(InputError, match="between 0 and 1"):
        holm([0.1, 1.2])
