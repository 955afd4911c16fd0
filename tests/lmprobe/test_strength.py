"""Estimators of lambda on distributions with a known tilt: exact identities, brute force, gauges, floors, coverage."""

import numpy as np
import pytest
import torch
from scipy import optimize

from lmprobe.strength import (
    GRID,
    Moments,
    Path,
    dose,
    explained,
    given_reward,
    jeffreys,
    log_ratio,
    off_path,
    relative,
    tilted,
    unit_gauge,
)
from probecore.errors import InputError
from probecore.stats.bootstrap import cluster_weights, expanded_interval

N, CONTEXTS, V = 12, 5, 30
ONES = np.ones((N, 1))


def base_and_reward(seed=0, n=N):
    rng = torch.Generator().manual_seed(seed)
    base = torch.log_softmax(1.5 * torch.randn(n, CONTEXTS, V, generator=rng, dtype=torch.float64), -1)
    return base, torch.randn(n, CONTEXTS, V, generator=rng, dtype=torch.float64)


def tilt(base, reward, strength):
    return torch.log_softmax(base + strength * reward, -1)


def moments(aligned, base, reward=None):
    found = Moments.empty(len(base), reward=reward is not None)
    for i in range(len(base)):
        found.add(i, aligned[i], base[i], None if reward is None else reward[i])
    return found


def path(m, base, anchor):
    found = Path.empty(len(base))
    for i in range(len(base)):
        found.add(i, m[i], base[i], anchor[i])
    return found


@pytest.mark.parametrize("strength", [0.25, 1.0, 2.0, -0.5])
def test_an_exact_tilt_is_recovered_to_1e_10(strength: float) -> None:
    base, reward = base_and_reward()
    found = moments(tilt(base, reward, strength), base, reward)
    assert given_reward(found, ONES)[0] == pytest.approx(strength, abs=1e-10)
    assert jeffreys(found, ONES)[0] == pytest.approx(strength, abs=1e-10)
    assert explained(found, ONES)[0] == pytest.approx(1, abs=1e-10)


def test_only_the_product_of_strength_and_reward_is_identified() -> None:
    """A reward scaled by c, and moved by a constant of each context, gives lambda / c; the unit gauge does not move."""
    base, reward = base_and_reward()
    aligned = tilt(base, reward, 0.8)
    other = 4 * reward + torch.arange(CONTEXTS, dtype=torch.float64)[None, :, None]
    found = moments(aligned, base, other)
    assert given_reward(found, ONES)[0] == pytest.approx(0.2, abs=1e-10)
    assert jeffreys(found, ONES)[0] == pytest.approx(0.2, abs=1e-10)
    assert unit_gauge(found, ONES)[0] == unit_gauge(moments(aligned, base), ONES)[0]


def test_the_unit_gauge_is_lambda_where_the_reward_has_variance_1_on_these_contexts() -> None:
    base, reward = base_and_reward()
    p = base.exp()
    reward = reward - (p * reward).sum(-1, keepdim=True)
    reward = reward / (p * reward**2).sum(-1).mean().sqrt()
    assert unit_gauge(moments(tilt(base, reward, 0.7), base), ONES)[0] == pytest.approx(0.7, abs=1e-10)


def test_a_reward_that_has_nothing_to_do_with_the_tilt_explains_nothing() -> None:
    """R2 is a squared correlation over 60 contexts of 30 tokens: E = 1 / 1740 under independence, here below .02."""
    base, reward = base_and_reward()
    found = moments(tilt(base, reward, 1.0), base, base_and_reward(seed=9)[1])
    assert explained(found, ONES)[0] < 0.02


def test_divergences_are_those_of_a_loop() -> None:
    base, reward = base_and_reward()
    aligned = tilt(base, reward, 1.3)
    found = moments(aligned, base)
    direct = [
        [float((a.exp() * (a - b)).sum()) for a, b in zip(*two, strict=True)] for two in zip(aligned, base, strict=True)
    ]
    assert dose(found, ONES)[0] == pytest.approx(np.mean(direct), abs=1e-12)
    assert found.kl_ba[3] == pytest.approx(
        sum(float((b.exp() * (b - a)).sum()) for a, b in zip(aligned[3], base[3], strict=True))
    )


@pytest.mark.parametrize("place", [0.0, 0.31, 0.5, 1.0, 1.77])
def test_a_checkpoint_on_the_path_is_placed_exactly(place: float) -> None:
    """Hermite's cubic on steps of .125 errs by h^4 / 384 of the fourth derivative, 6e-7 of a value of order 10."""
    base, reward = base_and_reward()
    anchor = tilt(base, reward, 1.0)
    m = torch.log_softmax((1 - place) * base + place * anchor, -1)
    found = path(m, base, anchor)
    assert relative(found, ONES)[0] == pytest.approx(place, abs=1e-5)
    if place:
        assert off_path(found, ONES)[0] == pytest.approx(0, abs=1e-5)


def test_the_place_of_a_checkpoint_off_the_path_is_the_minimum_of_the_divergence() -> None:
    base, reward = base_and_reward()
    anchor = tilt(base, reward, 3.0)
    m = tilt(tilt(base, reward, 1.2), base_and_reward(seed=4)[1], 0.8)

    def divergence(s: float) -> float:
        mix = torch.log_softmax((1 - s) * base + s * anchor, -1)
        return float((m.exp() * (m - mix)).sum(-1).sum())

    best = optimize.minimize_scalar(divergence, bounds=(-0.5, 3.0), method="bounded", options={"xatol": 1e-9})
    found = path(m, base, anchor)
    assert relative(found, ONES)[0] == pytest.approx(best.x, abs=1e-4)
    assert off_path(found, ONES)[0] == pytest.approx(best.fun / divergence(0.0), abs=1e-4)


def test_the_divergence_of_a_mixture_from_the_base_needs_no_logits() -> None:
    base, reward = base_and_reward()
    aligned = tilt(base, reward, 2.0)
    found, own = path(aligned, base, aligned), moments(aligned, base)
    for s in (-0.3, 0.0, 0.5, 1.0, 1.6):
        mix = torch.log_softmax((1 - s) * base + s * aligned, -1)
        direct = float((mix.exp() * (mix - base)).sum(-1).mean())
        assert tilted(found, own, ONES, s)[0] == pytest.approx(direct, abs=2e-4)
    assert np.isnan(tilted(found, own, ONES, 5.0)[0])


def test_where_nothing_differs_there_is_no_place_and_no_ratio() -> None:
    base, reward = base_and_reward()
    assert np.isnan(relative(path(base, base, base), ONES)[0])
    found = moments(base, base, reward)
    assert given_reward(found, ONES)[0] == 0 and unit_gauge(found, ONES)[0] == 0 and np.isnan(jeffreys(found, ONES)[0])
    far = path(tilt(base, reward, 9.0), base, tilt(base, reward, 1.0))
    assert np.isnan(relative(far, ONES)[0])  # beyond the grid's end
    assert GRID[0] < 0 < 1 < GRID[-1]


def test_tokens_that_neither_model_can_take_do_not_count_and_one_sided_ones_are_refused() -> None:
    base, reward = base_and_reward()
    shut = torch.zeros(V, dtype=torch.bool)
    shut[:3] = True
    closed = torch.log_softmax(base.masked_fill(shut, -torch.inf), -1)
    aligned = tilt(closed, reward, 0.6)
    assert given_reward(moments(aligned, closed, reward), ONES)[0] == pytest.approx(0.6, abs=1e-10)
    with pytest.raises(InputError, match="probability 0 in one model only"):
        log_ratio(base[0], closed[0])


def test_intervals_over_families_cover() -> None:
    """Strengths of families scatter around 1 (sd .3); 12 families of 2 prompts, 300 studies.

    The estimate is a ratio of sums, so its target is 1 as strength and spread are independent. .95 -/+ 4 SE (.0126).
    """
    rng = np.random.default_rng(0)
    families = np.repeat(np.arange(12), 2)
    weights = cluster_weights(families, 400, seed=1).T
    covered = 0
    for _ in range(300):
        spread = rng.uniform(0.5, 1.5, 24)
        strength = 1 + 0.3 * rng.standard_normal(12)[families]
        found = Moments(*np.ones((4, 24)), covariance=strength * spread, spread=spread, moved=spread)
        low, high = expanded_interval(given_reward(found, weights), 12)
        covered += low <= 1 <= high
    assert 0.90 <= covered / 300 <= 1.0
