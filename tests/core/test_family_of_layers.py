"""Traps 9 and 12: many layers keep the family-wise error, and the best of equal layers is not better than they are."""

import numpy as np
import pytest
import torch
from reference.nulls import band

from probecore.probes.design import Design
from probecore.probes.layers import probe_layers
from probecore.probes.permutation import draw_labelings
from probecore.probes.ridge import ridge_operator
from probecore.probes.scores import score_two_classes
from probecore.probes.selection import select_layer
from probecore.probes.solvers import ProbeSpec
from probecore.splits import group_folds
from probecore.stats.multiple import benjamini_hochberg
from probecore.stats.permutation import max_t, p_value

SPEAKER, D, LAYERS = np.repeat(np.arange(10), 5), 64, 28
FOLDS = group_folds(SPEAKER, 5)


def labels(rng):
    return np.concatenate([rng.permutation([0, 0, 1, 1, rng.integers(2)]) for _ in range(10)])


def chain(rng, correlation, y, effects):
    """Layers as an autoregressive chain over depth; layer l has effect effects[l] along one shared direction."""
    fresh = lambda: rng.normal(size=(50, D)) + 0.5 * rng.normal(size=(10, D))[SPEAKER]  # noqa: E731
    state, out = fresh(), []
    direction = rng.normal(size=D)
    direction /= np.linalg.norm(direction)
    for effect in effects:
        state = correlation * state + np.sqrt(1 - correlation**2) * fresh()
        out.append(state + effect / 2 * (2.0 * y - 1)[:, None] * direction)
    return np.stack(out)


def margins(rng, correlation, effects, m, seed):
    y = labels(rng)
    values = torch.tensor(draw_labelings(Design.of(y, SPEAKER), m, seed=seed).values, dtype=torch.float64)
    operator = ridge_operator(
        torch.tensor(chain(rng, correlation, y, effects)), FOLDS.pairs, alpha=float(D), standardize="none"
    )
    rows = torch.tensor(np.concatenate(FOLDS.tests()))
    return score_two_classes(operator @ (2 * values - 1), values[rows]).margin.numpy()


@pytest.mark.parametrize("correlation", [0.0, 0.95])
def test_trap_9_family_wise_error_over_28_layers(correlation):
    """300 nulls of 199 permutations: max-T (both forms) in the band, uncorrected above .25 of them."""
    rng = np.random.default_rng(5)
    hits = []
    for seed in range(300):
        statistics = margins(rng, correlation, np.zeros(LAYERS), 199, seed)
        hits.append(
            [p.min() <= 0.05 for p in (max_t(statistics), max_t(statistics, step_down=False), p_value(statistics))]
        )
    step, single, uncorrected = np.mean(hits, axis=0)
    low, high = band(300)
    assert low <= single <= high and step == single, (single, step)  # with every null true both reject together
    assert uncorrected > 0.25


def test_trap_9_power_and_false_discoveries_with_8_signal_layers():
    """Effect 2.4, 60 runs of 499 permutations: max-T above .7 (Bonferroni: .37), BH false share below .08."""
    rng = np.random.default_rng(6)
    effects = np.zeros(LAYERS)
    effects[10:18] = 2.4
    power, false_share = [], []
    for seed in range(60):
        statistics = margins(rng, 0.0, effects, 499, seed)
        adjusted, q = max_t(statistics), benjamini_hochberg(p_value(statistics))
        power.append((adjusted[10:18] <= 0.05).mean())
        found = q <= 0.05
        false_share.append((found & (effects == 0)).sum() / max(found.sum(), 1))
    assert np.mean(power) > 0.7
    assert np.mean(false_share) < 0.08


def test_trap_12_the_best_of_equal_layers_is_chosen_inside():
    """28 equal layers (effect 2.2, chain .5), 60 runs: nested selection within .03 of the truth, the maximum +.08.

    The standard error of each mean is .1 / sqrt(60) = .013, and both use the same runs as the truth.
    """
    rng = np.random.default_rng(7)
    nested, plain, truth = [], [], []
    for _ in range(60):
        y = labels(rng)
        layers = chain(rng, 0.5, y, np.full(LAYERS, 2.2))
        names = [f"layer {i}" for i in range(LAYERS)]
        values = dict(zip(names, layers, strict=True))
        spec = ProbeSpec("ridge", float(D), "none")
        picked = select_layer(names, values.__getitem__, Design.of(y, SPEAKER), FOLDS, spec)
        nested.append(picked.score)
        plain.append(picked.plain.max())
        truth.append(picked.plain.mean())
    assert abs(np.mean(nested) - np.mean(truth)) < 0.03
    assert np.mean(plain) > np.mean(truth) + 0.08


def test_nested_selection_equals_explicit_loops():
    """Inner folds refitted on subsets of the data give the same choices and score."""
    rng = np.random.default_rng(8)
    y = labels(rng)
    layers = chain(rng, 0.3, y, np.linspace(0, 3, 5))
    names = [f"layer {i}" for i in range(5)]
    values = dict(zip(names, layers, strict=True))
    spec = ProbeSpec("ridge", 30.0, "fold")
    picked = select_layer(names, values.__getitem__, Design.of(y, SPEAKER), FOLDS, spec)

    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    right = 0
    for j, outer in enumerate(FOLDS.tests()):
        rest = np.setdiff1d(np.arange(50), outer)
        inner_right = np.zeros(5)
        for i, test in enumerate(FOLDS.tests()):
            train = np.setdiff1d(rest, test)
            for layer in range(5 if i != j else 0):
                model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=30.0)).fit(layers[layer][train], y[train])
                inner_right[layer] += (model.predict(layers[layer][test]) == y[test]).sum()
        best = int(inner_right.argmax())
        assert best == picked.chosen[j]
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=30.0)).fit(layers[best][rest], y[rest])
        right += (model.predict(layers[best][outer]) == y[outer]).sum()
    assert picked.score == pytest.approx(right / 50)


def test_best_layer_of_a_result_carries_its_interval_and_the_p_over_all_layers():
    rng = np.random.default_rng(9)
    y = labels(rng)
    result = probe_layers(chain(rng, 0.0, y, [0, 0, 6.0, 0]), y, groups=SPEAKER, n_permutations=199, n_bootstrap=50)
    best = result.best_layer()
    assert best["layer"] == "layer 2" and best["p_value"] == result.row("layer 2")["p_adjusted"] == 1 / 200
    assert best["ci_low"] <= best["accuracy"] <= best["ci_high"]
    assert best["plain_maximum"] == pytest.approx(result.row("layer 2")["accuracy"])
