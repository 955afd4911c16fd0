"""Robustness and trilemma: rank correlations over members, the attack's forward pass and radius, the three sides."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_members import SMALL, member, point

from lmprobe.grokking import plans
from lmprobe.grokking.attack import RADII, _crossing, embedded_forward
from lmprobe.grokking.forward import forward
from lmprobe.grokking.model import initial, views
from lmprobe.grokking.robustness import bootstrap, exchange_p, rank_correlation
from lmprobe.grokking.spec import Spec, grid
from lmprobe.grokking.trilemma import pair_rows, sides


def test_rank_correlation_is_scipys_and_inside_groups_a_shift_does_not_count() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    x, y = np.round(rng.normal(size=40), 1), rng.normal(size=40)  # with ties
    one = np.zeros(40, dtype=np.int64)
    assert rank_correlation(x, y, one) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    weights = rng.integers(0, 4, 40).astype(float)
    copies = np.repeat(np.arange(40), weights.astype(int))
    assert rank_correlation(x, y, one, weights) == pytest.approx(spearmanr(x[copies], y[copies]).statistic, abs=1e-12)
    groups = np.repeat([0, 1], 20)
    assert abs(rank_correlation(x + 100 * groups, y + 100 * groups, one)) > 0.7
    assert rank_correlation(x + 100 * groups, y + 100 * groups, groups) == pytest.approx(
        rank_correlation(x, y, groups), abs=1e-12
    )


def test_exchanges_are_calibrated_and_the_bootstrap_of_seeds_covers() -> None:
    """Unrelated x and y: p <= .05 in 5 % of 200 samples (3.5 sd: 5.4 %); a coupled pair is found with its interval."""
    rng = np.random.default_rng(2)
    groups, seeds = np.repeat(np.arange(5), 10), np.tile(np.arange(10), 5)
    small = [exchange_p(rng.normal(size=50), rng.normal(size=50), groups, i) <= 0.05 for i in range(200)]
    assert np.mean(small) < 0.105
    x = rng.normal(size=50)
    low, high = bootstrap(x, x + 0.5 * rng.normal(size=50), groups, seeds, 0)
    assert 0.3 < low < 0.9 < high <= 1


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("ops", [("add",), ("add", "mul")])
def test_the_plain_forward_on_embeddings_is_the_table_forward(norm: str, ops: tuple[str, ...]) -> None:
    spec = Spec(p=11, ops=ops, layers=2, width=16, norm=norm, activation="relu", batch=32)
    flat = torch.from_numpy(initial(replace(spec, init="torch")))[None].double()
    parameters = views(flat, spec.shape)
    tokens = torch.from_numpy(spec.shape.task.tokens)
    plain = embedded_forward(spec.shape, parameters, parameters["embed"][0][tokens])
    assert torch.allclose(plain, forward(spec.shape, parameters, tokens)[0], atol=1e-12)


def test_the_radius_that_halves_accuracy_is_interpolated_and_censored() -> None:
    curve = np.linspace(1.0, 0.0, len(RADII))
    value, censored = _crossing(curve)
    assert not censored and np.interp(np.log(value), np.log(RADII), curve) == pytest.approx(0.5)
    assert _crossing(np.full(len(RADII), 0.9)) == (RADII[-1], True)


def test_trilemma_sides_are_those_of_the_definitions() -> None:
    both = replace(SMALL, ops=plans.BOTH)
    members = [member(s, 300) for s in grid(both, seed=range(6))]
    points = [point(m, 500, k95=m.spec.seed, collateral_k50=1 - 0.1 * m.spec.seed) for m in members]
    first = sides(points[2])
    assert (first["separability"], first["robustness"]) == (pytest.approx(0.8), 2)
    assert first["efficiency"] == pytest.approx(2 * 31**2 / both.shape.n_parameters)
    assert sides(point(member(SMALL, 300), 500, k95=4))["separability"] is None
    row = pair_rows(points, 0, 6)[0]
    assert row["value"] == pytest.approx(-1) and row["p_value"] is None
