"""Contrast spectra against the planted simulation: 4 axes of shift 5 in 128 dimensions of uneven variance.

The counts of the planted case are those of the recorded simulation (true rank 4: 4 at n = 128 and 512 when whitened, 0
or 1 without whitening); they are no exact theory, so two seeds must both give them.
"""

import numpy as np
import pytest

from probecore import DesignError, InputError, contrast_spectrum
from probecore.directions import contrastive_svd
from probecore.removal import random_frames

D, RANK = 128, 4


def planted(n, seed, shift=5.0):
    """Return (2 n, D) items, the first n of them shifted along one of 4 orthonormal axes, and the axes."""
    rng = np.random.default_rng(seed)
    axes, turn = random_frames(D, RANK, 1, seed)[0], random_frames(D, D, 1, seed + 1)[0]
    scale = np.concatenate([np.linspace(6, 1, 20), np.full(D - 20, 0.6)])
    x = rng.normal(size=(2 * n, D)) * scale @ turn + 2.0
    x[:n] += shift * axes[rng.integers(0, RANK, n)]
    return x, np.arange(2 * n) < n, axes


@pytest.mark.parametrize(("n", "seed"), [(128, 0), (128, 1), (512, 0)])
def test_the_signal_rank_is_the_planted_rank_when_whitened(n, seed):
    x, labels, _ = planted(n, seed)
    found = contrast_spectrum(x, labels, n_permutations=40, seed=seed)
    assert found.signal_rank() == RANK and found.p_value == pytest.approx(1 / 41)
    assert contrast_spectrum(x, labels, "anchored", n_permutations=20, seed=seed).signal_rank() <= 1


def test_a_null_has_no_signal_and_uniform_p():
    """100 nulls of 19 permutations: p is uniform on 1/20 .. 1, so P(p <= .05) = .05, 5 expected; 0 and 14 bound 99.9 %
    of Binomial(100, .05), and the mean p is .525 +- 3.3 x .288 / sqrt(100).
    """
    rng = np.random.default_rng(5)
    p = []
    for seed in range(100):
        x = rng.normal(size=(24, 6)) * np.linspace(3, 0.5, 6)
        p.append(contrast_spectrum(x, np.arange(24) < 12, n_permutations=19, seed=seed).p_value)
    assert np.sum(np.array(p) <= 0.05) <= 14 and abs(np.mean(p) - 0.525) < 0.095


def test_a_rank_of_variance_measures_the_number_of_items():
    """The trap: true rank 4, recorded 28, 49, 75 for n = 32, 64, 128; here growth, the null beside it and no p."""
    ranks = []
    for n in (32, 64, 128):
        x, labels, _ = planted(n, 2)
        row = {r["measure"]: r for r in contrast_spectrum(x, labels, "anchored", n_permutations=10).rows()}["rank 99 %"]
        assert row["p_value"] is None and row["p_note"] and row["n_signal"] == n
        assert row["null_low"] <= row["null_mean"] <= row["null_high"]
        ranks.append(row["value"])
    assert ranks[0] > 3 * RANK and ranks[0] < ranks[1] < ranks[2]


def test_labelings_are_the_null_and_the_order_of_items_is_none():
    x, labels, axes = planted(64, 3)
    turned = np.roll(labels, 7)
    found = contrast_spectrum(x, labels, labelings=[turned])
    signal = contrastive_svd(x[turned], x[~turned], 64, "whitened").singular_values
    assert np.array_equal(found.null[0], signal)
    order = np.random.default_rng(0).permutation(len(x))
    again = contrast_spectrum(x[order], labels[order], labelings=[turned[order]])
    np.testing.assert_allclose(again.singular_values, found.singular_values, rtol=1e-9)
    assert axes.shape == (RANK, D)
    fewer = ~labels & (np.arange(len(x)) > 100)  # groups of unequal size change their labels: other numbers of items
    assert contrast_spectrum(x, labels, labelings=[fewer, turned]).null.shape == (2, 64)
    assert (contrast_spectrum(x, labels, labelings=[fewer, turned]).null[0, fewer.sum() :] == 0).all()
    with pytest.raises(InputError, match="every labelling"):
        contrast_spectrum(x, labels, labelings=[np.arange(len(x)) < 1])
    with pytest.raises(DesignError, match="2 items of each kind"):
        contrast_spectrum(x, np.arange(len(x)) < 1)
