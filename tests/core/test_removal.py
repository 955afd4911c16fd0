"""Curves of removal against curves and matrices whose numbers are known."""

import numpy as np
import pytest

from probecore import DesignError, InputError
from probecore.removal import (
    Crossing,
    CrossingSpread,
    crossing_spread,
    gated_at,
    head_curves,
    k_at,
    last_at,
    random_frames,
    require_above_chance,
    selective_kill,
)


def test_a_curve_that_comes_back_has_two_numbers() -> None:
    """The trap: 1, .9, .99, .5 fails first at 1 and is above the line last at 2."""
    curve = [1.0, 0.9, 0.99, 0.5]
    assert k_at(curve, 0.95).k == 1 and last_at(curve, 0.95) == 2 and k_at(curve, 0.95).survives == 0


@pytest.mark.parametrize("k", [1, 3, 7])
def test_k_at_q_is_exact_on_a_planted_curve(k: int) -> None:
    curve = np.where(np.arange(9) < k, 1.0, 0.4)
    assert k_at(curve, 0.95) == Crossing(k, 8) and k_at(curve, 0.5).k == k and last_at(curve, 0.5) == k - 1


def test_the_line_is_relative_unless_said() -> None:
    curve = [0.64, 0.62, 0.5]
    assert k_at(curve, 0.95).k == 2 and k_at(curve, 0.95, relative=False).k == 0
    assert last_at(curve, 0.95, relative=False) is None
    assert k_at([0.8, 0.76], 0.95).censored  # exactly on the line is not below it


def test_a_curve_that_never_crosses_is_censored_and_says_so() -> None:
    found = k_at(np.ones(31), 0.95)
    assert found.k is None and found.censored and str(found) == "> 30" and (found.least, found.survives) == (31, 30)


def test_selective_kill_needs_both() -> None:
    own, other = [1.0, 0.6, 0.4, 0.1], [0.9, 0.9, 0.88, 0.9]
    assert selective_kill(own, other).k == 3  # at 2 the other has lost more than 1 % of its own .9
    assert selective_kill(own, [0.9, 0.9, 0.3, 0.2]).censored
    with pytest.raises(DesignError, match="start at"):
        selective_kill([0.4, 0.3], [1.0, 1.0])
    with pytest.raises(InputError, match="same k"):
        selective_kill(own, other[:2])


def test_near_chance_there_is_nothing_to_remove() -> None:
    require_above_chance(0.5, 0.01)
    with pytest.raises(DesignError, match="chance"):
        require_above_chance(0.02, 0.01)


@pytest.mark.parametrize("bad", [[], [[1.0]], [1.0, np.nan]])
def test_bad_curves_are_refused(bad: list) -> None:
    with pytest.raises(InputError, match="curve"):
        k_at(bad, 0.5)
    with pytest.raises(InputError, match="q must"):
        k_at([1.0], 1.5)


@pytest.mark.parametrize("centred", [False, True])
def test_head_curves_are_projections_written_out(centred: bool) -> None:
    """Against h (I - QQ') W for every k, and against the head folded: W' = (I - QQ') W. Exact counts."""
    rng = np.random.default_rng(0)
    h, w, b = rng.normal(size=(300, 12)) + 1.0, rng.normal(size=(12, 7)), rng.normal(size=7)
    y, frame = rng.integers(0, 7, 300), random_frames(12, 12, 1)[0]
    mask = rng.random(300) < 0.5
    centre = h.mean(0) if centred else None
    curves = head_curves(h, frame, w, b, y, [mask, np.flatnonzero(~mask)], 12, centre=centre)
    for k in range(13):
        q = frame[:k]
        kept = h - (h - (centre if centred else 0.0)) @ q.T @ q
        right = (kept @ w + b).argmax(1) == y
        assert np.allclose(curves[:, k], [right[mask].mean(), right[~mask].mean()], atol=0)
        if not centred:
            assert ((h @ (w - q.T @ q @ w) + b).argmax(1) == (kept @ w + b).argmax(1)).all()
    if not centred:
        assert curves[0, 12] == (y[mask] == b.argmax()).mean()  # all is gone: the bias answers


def test_what_is_no_frame_is_refused() -> None:
    h, w = np.ones((5, 4)), np.ones((4, 3))
    with pytest.raises(InputError, match="orthonormal"):
        head_curves(h, np.ones((2, 4)), w, np.zeros(3), np.zeros(5), [np.arange(5)], 2)
    with pytest.raises(InputError, match="k_max"):
        head_curves(h, np.eye(4)[:1], w, np.zeros(3), np.zeros(5), [np.arange(5)], 2)


def test_random_frames_are_uniform_and_overlap_as_chance_says() -> None:
    """Mean of |Q'R|^2 / k over independent Haar frames is k / d.

    (Q'R)^2 has mean 1/d an entry; over 2,000 pairs of frames the standard error of the mean is below .02 / sqrt(2000)
    x 4, and five of them are .01.
    """
    d, k = 20, 5
    frames = random_frames(d, k, 4000)
    assert np.abs(frames @ frames.transpose(0, 2, 1) - np.eye(k)).max() < 1e-12
    overlap = ((frames[:2000] @ frames[2000:].transpose(0, 2, 1)) ** 2).sum((1, 2)) / k
    assert abs(overlap.mean() - k / d) < 5 * overlap.std() / np.sqrt(2000) < 0.01
    assert np.abs(frames[:, 0].mean(0)).max() < 5 / np.sqrt(4000 * d)  # also the first row has no preferred sign


def test_gated_k_counts_what_is_gone_for_good_while_capability_holds() -> None:
    """Each case by hand: f = 0, .5, .96, .5, .97, .99 at k = 0..5 comes back at 3, so it is gone for good from 4."""
    curve = 0.8 * (1 - np.array([0, 0.5, 0.96, 0.5, 0.97, 0.99]))
    alive = np.ones(6)
    assert gated_at(curve, alive, 0.95).k == 4 and gated_at(curve, alive, 0.5).k == 1
    assert gated_at(curve, [1, 1, 1, 1, 0.9, 0.96], 0.95).k == 5  # at 4 capability has lost a tenth
    assert gated_at(curve, [1, 1, 1, 1, 0.9, 0.9], 0.95).censored
    assert gated_at(curve, [0.5, 0.5, 0.5, 0.5, 0.475, 0.4], 0.95).k == 4  # exactly on the line still holds
    assert gated_at([1.0, 0.05], [1.0, 1.0], 0.95).k == 1  # exactly a share q gone is enough
    with pytest.raises(DesignError, match="must be there"):
        gated_at([0.0, 0.0], [1.0, 1.0], 0.95)
    with pytest.raises(InputError, match="same k"):
        gated_at(curve, alive[:3], 0.95)


def test_the_removal_of_a_broken_model_is_not_the_removal_of_a_behaviour() -> None:
    """The trap of the ungated number: refusal 0 and capability 0 from k = 8 on."""
    k = np.arange(12)
    refusal, capability = np.where(k < 8, 1.0, 0.0), np.where(k < 8, 1.0, 0.0)
    assert gated_at(refusal, np.ones(12), 0.95).k == 8 and gated_at(refusal, capability, 0.95).censored


def test_the_spread_of_k_keeps_censored_resamples_as_the_largest() -> None:
    found = crossing_spread([Crossing(k, 30) for k in (*range(1, 98), None, None, None)])
    assert (found.median, found.low, found.high, found.not_reached) == (50.0, 3.0, None, 0.03)
    assert crossing_spread([Crossing(None, 30)] * 4) == CrossingSpread(None, None, None, 1.0)
    assert crossing_spread([Crossing(2, 30)] * 4) == CrossingSpread(2.0, 2.0, 2.0, 0.0)
    with pytest.raises(InputError, match="at least 1"):
        crossing_spread([])
