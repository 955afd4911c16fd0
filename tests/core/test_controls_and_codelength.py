"""Trap 14: selectivity dies where types recur at test; code lengths need tempering, groups and a null."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from probecore.activations import Activations, Label
from probecore.errors import DesignError, InputError
from probecore.probes.controls import control_labels, selectivity, with_baselines
from probecore.probes.description_length import PORTIONS, _prefixes, description_length
from probecore.probes.design import Design
from probecore.probes.logistic import fit_logistic
from probecore.probes.solvers import ProbeSpec


def typed(d, seed=0, n_types=60, tokens=10):
    """Published fixture: 60 types x 10 tokens, X = noise + type offsets (SD 1) + 2 y u, label constant per type."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(n_types), tokens)
    y = (np.arange(n_types) % 2)[kind]
    u = rng.normal(size=d)
    x = (
        rng.normal(size=(len(kind), d))
        + rng.normal(size=(n_types, d))[kind]
        + 2 * (y[:, None] - 0.5) * 2 * u / np.linalg.norm(u)
    )
    return x, y, kind


def test_selectivity_dies_where_types_recur_and_lives_where_they_do_not():
    """Published: token split d = 32 .918 / .677, d = 1024 1.000 / .999; type split d = 1024 .678 / .474, p = .005."""
    low = selectivity(*typed(32), n_controls=100)
    assert low.accuracy > 0.88 and 0.6 < low.control_mean < 0.75 and low.p_value == 1 / 101
    high = selectivity(*typed(1024), n_controls=100)
    assert high.accuracy > 0.99 and abs(high.selectivity) < 0.01 and high.p_value > 0.3
    grouped = selectivity(*typed(1024), folds="type", n_controls=199)
    assert grouped.accuracy > 0.6 and 0.42 < grouped.control_mean < 0.52 and grouped.p_value < 0.02
    assert "item" in high.scheme and grouped.scheme != high.scheme


def test_controls_are_constant_per_type_and_keep_the_counts_of_types():
    _, y, kind = typed(2)
    drawn = control_labels(y, kind, 50)
    for column in drawn.T:
        of_type = np.array([np.unique(column[kind == t]) for t in range(60)])
        assert of_type.shape == (60, 1) and of_type.sum() == 30
    assert len(np.unique(drawn, axis=1).T) == 50
    varying = control_labels(np.arange(600) % 3, kind, 40)
    assert all(len(np.unique(varying[kind == t, 0])) == 1 for t in range(60))
    assert abs((varying == 1).mean() - 1 / 3) < 0.04  # 2400 draws: 4 standard errors
    with pytest.raises(DesignError, match="4 types"):
        selectivity(np.ones((6, 2)), [0, 1] * 3, [0, 1, 2] * 2)


@pytest.mark.parametrize("kind", ["ridge", "lda", "logistic"])
def test_selectivity_of_every_probe(kind):
    x, y, types = typed(16, n_types=30, tokens=6)
    made = selectivity(x, y, types, probe=ProbeSpec(kind), n_controls=40)
    assert made.accuracy > made.control_high and made.p_value == 1 / 41


def test_baselines_become_layers():
    acts = Activations.from_arrays(
        {"layer 0": np.random.default_rng(0).normal(size=(6, 3))},
        groups=list("aabbcc"),
        labels={"y": Label([0, 1] * 3)},
    )
    both = with_baselines(acts, {"length": np.arange(6), "words": np.eye(6)[:, :2]})
    assert both.layers == ("layer 0", "baseline: length", "baseline: words")
    assert both.values("baseline: length").shape == (6, 1) and both.values("layer 0") is acts.values("layer 0")
    assert both.take(np.array([0, 2])).values("baseline: length")[:, 0].tolist() == [0, 2]
    with pytest.raises(InputError, match="6 items"):
        with_baselines(acts, {"length": np.arange(5)})
    with pytest.raises(InputError, match="already"):
        with_baselines(both, {"length": np.arange(6)})


@pytest.mark.parametrize("classes", [2, 3])
def test_constant_features_cost_the_uniform_code(classes):
    """Groups of one item of each class: every prefix has equal classes, so every expert says 1 / K: n log2 K bits."""
    y, group = np.tile(np.arange(classes), 40), np.repeat(np.arange(40), classes)
    made = description_length(np.full((40 * classes, 5), 2.5), y, group, n_permutations=5)
    assert made.bits == pytest.approx(40 * classes * math.log2(classes), rel=1e-12)
    assert made.bits == pytest.approx(made.uniform_bits) and made.frequency_bits == pytest.approx(made.bits)


def speech(n_speakers=50, clips=20, d=64, seed=0, effect=1.2):
    """A smaller version of the published fixture: speaker SD .3, signal effect * y * u."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(n_speakers), clips)
    y = rng.integers(0, 2, len(speaker))
    u = rng.normal(size=d)
    u /= np.linalg.norm(u)
    x = rng.normal(size=(len(speaker), d)) + 0.3 * rng.normal(size=(n_speakers, d))[speaker]
    return x + effect * (2 * y[:, None] - 1) * u, y, speaker


def test_online_code_is_the_sum_of_its_definition():
    """Independent slow form: sequential fits for one labelling, mixture weights updated as probabilities, not logs."""
    x, y, speaker = speech(12, 10, 6)
    made = description_length(x, y, speaker, penalties=[1.0, 20.0], n_permutations=0)
    rank = np.array([row["n_train"] for row in made.curve])
    order, ends = _prefixes(Design.of(y, speaker), PORTIONS, 0)
    assert rank.tolist() == [0, *ends[:-1]] and sorted(order.tolist()) == list(range(120))
    assert all(len(np.unique(speaker[order[:e]])) * 10 == e for e in ends)  # whole speakers
    x, y = x[order], y[order]
    bits, weight = float(ends[0]), np.full(4, 0.25)
    for t, (a, b) in enumerate(pairwise(ends), 1):
        mean, sd = x[:a].mean(0), x[:a].std(0)
        xr, xt = (x[:a] - mean) / sd, (x[a:b] - mean) / sd
        base = (xr**2).sum() / a / 4
        frequency = (y[:a].sum() + 0.5) / (a + 1)
        likelihood = [0.5 ** (b - a), np.prod(np.where(y[a:b] == 1, frequency, 1 - frequency))]
        for penalty in (1.0, 20.0):
            rows = np.concatenate([xr, np.zeros((2, 6))])
            codes = np.concatenate([y[:a], [0, 1]])[:, None]
            w, c = fit_logistic(
                torch.as_tensor(rows),
                torch.as_tensor(codes),
                2,
                penalty * base,
                weights=torch.as_tensor(np.r_[np.ones(a), 0.5, 0.5]),
                tol=1e-10,
            )
            p = 1 / (1 + np.exp(-(xt @ w[:, 0, 0].numpy() + float(c[0, 0]))))
            likelihood.append(np.prod(np.where(y[a:b] == 1, p, 1 - p)))
        joint = weight * np.array(likelihood)
        bits -= math.log2(joint.sum())
        weight = (1 - 1 / (t + 1)) * joint / joint.sum() + 1 / (t + 1) / 4
    assert made.bits == pytest.approx(bits, rel=1e-6)


def test_tempered_code_beats_every_fixed_one_up_to_its_price_and_exchanged_labels_do_not_compress():
    """Price: log2(experts) + log2(blocks) bits. On exchanged labels a light fixed penalty needs more than no probe."""
    x, y, speaker = speech()
    made = description_length(x, y, speaker, n_permutations=19)
    price = math.log2(6) + math.log2(len(made.curve))
    assert made.bits <= min(made.fixed_bits.values()) + price
    assert made.compression > 1.15 and made.p_value == 1 / 20
    assert made.null_mean > made.frequency_bits - 5 and made.null_mean < made.uniform_bits + price + 10
    shuffled = np.random.default_rng(1).permutation(y)
    naive = description_length(x, shuffled, speaker, penalties=[0.001], n_permutations=0)
    assert naive.fixed_bits["penalty 0.001"] > 1.2 * naive.uniform_bits
    assert naive.bits < naive.uniform_bits + price + 10 and naive.p_value is None and "permutations" in naive.p_note
    per_item = [row["bits_per_item"] for row in made.curve]
    assert per_item[-1] < 0.8 and per_item[0] == 1.0


def test_blocks_of_items_leak_the_speaker():
    """Published: 1690 bits in blocks of speakers, 1617 in random blocks. A label per speaker makes it plain."""
    x, _, speaker = speech(40, 10, 40, effect=0.0)
    x = x + 2 * np.random.default_rng(2).normal(size=(40, 40))[speaker]
    y = np.random.default_rng(3).permutation(np.arange(40) % 2)[speaker]
    honest = description_length(x, y, speaker, n_permutations=0)
    leaky = description_length(x, y, np.arange(400), n_permutations=0)
    assert honest.compression < 1.1 and leaky.compression > 1.25


def test_what_has_no_code_is_refused():
    with pytest.raises(DesignError, match="2 groups"):
        description_length(np.ones((4, 1)), [0, 1, 0, 1], [0, 0, 0, 0])
    with pytest.raises(InputError, match="portions"):
        description_length(np.ones((4, 1)), [0, 1, 0, 1], portions=[50])
    with pytest.raises(InputError, match="penalties"):
        description_length(np.ones((4, 1)), [0, 1, 0, 1], penalties=[0.0])
