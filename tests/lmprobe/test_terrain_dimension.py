"""Dimension of prompt states: planted ranks, the two artefacts (few items, one massive token), intervals."""

import numpy as np
import pytest

from lmprobe.dimension import MEASURES, dimension_rows, jackknife_interval, map_table, massive_first_token, token_rows
from probecore.geometry import covariance_spectrum


def rows_of(x, categories=None, **options):
    n = len(x)
    names = categories or ["safe", "risk"] * (n // 2)
    return dimension_rows(x, names, [str(i // 2) for i in range(n)], "block 3", **options)


def value(rows, metric):
    (found,) = [row for row in rows if row["metric"] == metric]
    return found


def test_a_planted_rank_is_read_and_described_without_a_test():
    """Three orthogonal directions of equal variance in 64: PR -> 3, PC1 -> 1/3, five components hold all."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(64, 3)))[0]
    scores = rng.normal(size=(60, 3))
    x = np.linalg.qr(scores - scores.mean(0))[0] @ axes.T  # centred and orthonormal: exactly equal variances
    rows = rows_of(x)
    assert value(rows, "participation ratio, block 3")["value"] == pytest.approx(3, abs=1e-9)
    assert value(rows, "PC1 share, block 3")["value"] == pytest.approx(1 / 3, abs=1e-9)
    assert value(rows, "share of 5 components, block 3")["value"] == pytest.approx(1, abs=1e-9)
    assert all(row["p_value"] is None and row["p_note"] for row in rows)


def test_categories_are_compared_at_equal_numbers():
    """40 safe and 10 risk prompts of ONE population: the raw PR differs by their numbers, the rarefied one does not."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 64))
    rows = rows_of(x, ["safe"] * 40 + ["risk"] * 10)
    safe = value(rows, "participation ratio of safe at N = 10, block 3")["value"]
    risk = value(rows, "participation ratio of risk at N = 10, block 3")["value"]
    raw = [MEASURES["participation ratio"](covariance_spectrum(part)) for part in (x[:40], x[40:])]
    assert raw[0] > 2 * raw[1] and safe == pytest.approx(risk, rel=0.15)


def test_one_massive_first_token_is_flagged():
    """Research: T = 16 Gaussian tokens, PC1 share .97 with one coordinate of 600 at position 0, about .09 without."""
    rng = np.random.default_rng(0)
    first = np.zeros(32, dtype=bool)
    first[[0, 16]] = True
    x = rng.normal(size=(32, 768))
    assert not massive_first_token(token_rows(x, first, "block 3", 2))
    x[first, 138] += 600
    rows = token_rows(x, first, "block 3", 2)
    assert rows[0]["value"] > 0.9 and rows[2]["value"] < 0.1 and massive_first_token(rows)
    assert rows[0]["n_tokens"] == 32 and rows[2]["n_tokens"] == 30 and "independent" in rows[0]["ci_note"]


def test_one_massive_coordinate_is_flagged():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 64))
    assert not any(row.get("massive") for row in rows_of(x))
    x[:, 5] *= 50
    rows = rows_of(x)
    assert value(rows, "PC1 share, block 3")["value"] > 0.9 and any(row.get("massive") for row in rows)
    assert value(rows, "PC1 share without top 1 coordinates, block 3")["value"] < 0.2


def test_jackknife_intervals_cover_the_mean_at_this_number_of_prompts():
    """100 clouds of 50 prompts: of nominal .95, at least .86 covered (.95 - 4 sqrt(.95 x .05 / 100) = .863).

    The target is the expectation at N = 50 (mean of 400 clouds), not the population's dimension, which N bounds.
    """
    rng = np.random.default_rng(3)
    scale = np.arange(1, 65) ** -0.5
    families = [str(i // 2) for i in range(50)]
    for measure in MEASURES.values():
        target = np.mean([measure(covariance_spectrum(rng.normal(size=(50, 64)) * scale)) for _ in range(400)])
        covered = 0
        for _ in range(100):
            low, high = jackknife_interval(rng.normal(size=(50, 64)) * scale, families, measure)
            covered += low <= target <= high
        assert covered / 100 >= 0.863
    assert jackknife_interval(rng.normal(size=(4, 8)), ["a", "a", "b", "b"], MEASURES["PC1 share"]) == (None, None)


def test_states_that_do_not_vary_give_rows_with_the_reason():
    rows = rows_of(np.ones((10, 8)))
    assert len(rows) == 3 and all(row["value"] is None and "differ" in row["value_note"] for row in rows)


def test_random_weights_stand_beside_the_value():
    rng = np.random.default_rng(4)
    x, blank = rng.normal(size=(20, 16)), rng.normal(size=(20, 16))
    row = value(rows_of(x, random_states=blank), "PC1 share, block 3")
    assert row["control"] == MEASURES["PC1 share"](covariance_spectrum(blank))


def test_the_map_is_a_projection_with_fixed_signs():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(12, 30)) * np.r_[9, 5, np.ones(28)]
    names = [f"p{i}" for i in range(12)]
    table = map_table(x, ["safe"] * 12, names)
    places = np.array([(row["pc1"], row["pc2"]) for row in table])
    spectrum = covariance_spectrum(x)
    assert places.var(0, ddof=1) == pytest.approx(spectrum[:2], rel=1e-9)
    again = np.array([(row["pc1"], row["pc2"]) for row in map_table(x[::-1], ["safe"] * 12, names[::-1])])[::-1]
    assert again == pytest.approx(places, abs=1e-9)
    flat = map_table(np.outer(np.arange(4.0), [1.0, 0.0, 0.0]), ["safe"] * 4, names[:4])
    assert [row["pc2"] for row in flat] == pytest.approx([0] * 4, abs=1e-12)
