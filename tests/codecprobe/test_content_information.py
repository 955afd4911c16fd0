"""PNMI and purities: closed forms, an independent reference, and the bias that adjustment must take away."""

import numpy as np
import pytest
from reference.targets_reference import pnmi_and_purities

from codecprobe.phone_information import joint_seconds, phone_measures
from probecore.errors import InputError
from probecore.information import shift_orders

NONE = np.empty((0, 0), dtype=np.intp)


def one_hot(y):
    return np.eye(int(y.max()) + 1)[y]


def test_known_joints():
    """A code for each phone names it; codes of two phones each tell 1 of 2 bits; one code tells nothing."""
    y = np.repeat(np.arange(4), 5)
    for codes, pnmi, phone, cluster in ((y, 1, 1, 1), (y // 2, 0.5, 0.5, 1), (0 * y, 0, 0.25, 1)):
        found = phone_measures(joint_seconds(codes, one_hot(y), NONE)[0])
        assert float(found.pnmi) == pytest.approx(pnmi, abs=1e-12)
        assert float(found.phone_purity) == pytest.approx(phone)
        assert float(found.cluster_purity) == pytest.approx(cluster)


def test_purities_are_not_each_other():
    """Ten codes of one phone each, five phones: the code says the phone, the phone does not say the code."""
    codes = np.arange(10)
    found = phone_measures(joint_seconds(codes, one_hot(codes // 2), NONE)[0])
    assert float(found.phone_purity) == pytest.approx(1.0) and float(found.cluster_purity) == pytest.approx(0.5)


def test_against_the_definition_with_weights_and_shifts():
    rng = np.random.default_rng(0)
    seconds = rng.dirichlet(np.full(6, 0.3), 400) * 0.08 * (rng.random((400, 1)) > 0.1)
    codes, speaker = rng.integers(0, 17, 400), np.repeat(np.arange(4), 100)
    orders = shift_orders([100] * 4, 5, 10)
    joint = joint_seconds(codes, seconds, orders)
    found = phone_measures(joint)
    for i, order in enumerate([np.arange(400), *orders]):
        expected = pnmi_and_purities(codes, seconds[order])
        assert [float(x[i]) for x in (found.pnmi, found.phone_purity, found.cluster_purity)] == pytest.approx(expected)
    by_speaker = joint_seconds(codes, seconds, orders, speaker)
    np.testing.assert_allclose(by_speaker.sum(axis=0), joint, atol=1e-12)
    kept = speaker != 2
    expected = pnmi_and_purities(codes[kept], seconds[kept])[0]
    assert float(phone_measures(by_speaker.sum(axis=0) - by_speaker).pnmi[2, 0]) == pytest.approx(expected)


@pytest.mark.parametrize(("n_codes", "n", "published"), [(100, 1000, 0.363), (500, 9600, 0.253), (2048, 9600, 0.532)])
def test_codes_that_know_nothing(n_codes, n, published):
    """39 Zipf phones, codes drawn by themselves: raw PNMI is as large as the table of the bias says (one draw of it had
    a spread below .01), adjusted PNMI is 0: the spread of I over draws is below sqrt(2 x 38 x K) / (2 N ln 2) bits, at
    most .06 of H = 4.4 bits here for N = 1,000, a fifth of it in what shifts do not share; .03 allowed."""
    rng = np.random.default_rng(0)
    p = 1 / np.arange(1, 40)
    y, codes = rng.choice(39, n, p=p / p.sum()), rng.integers(0, n_codes, n)
    found = phone_measures(joint_seconds(codes, np.eye(39)[y], shift_orders([n // 10] * 10, 9, 25)))
    assert float(found.pnmi[0]) == pytest.approx(published, abs=0.015)
    assert abs(float(found.adjusted())) < 0.03


def test_one_phone_is_no_number_and_wrong_shapes_are_refused():
    found = phone_measures(joint_seconds(np.arange(5), np.ones((5, 1)), np.arange(5)[None]))
    assert np.isnan(found.pnmi).all() and np.isnan(found.adjusted())
    with pytest.raises(InputError, match="one frame per code"):
        joint_seconds(np.arange(4), np.ones((5, 2)), NONE)
