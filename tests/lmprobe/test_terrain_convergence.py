"""Convergence readings on planted trajectories, and the perturbation probe on a model."""

import numpy as np
import pytest

from lmprobe.convergence import end_slope, fraction_closer, mean_slope, path_efficiency, slope, step_slope, step_test
from probecore.errors import InputError


def trajectory(kind, rng, steps=30, d=64, rho=0.85, noise=0.05):
    out = [rng.normal(size=d)]
    for _ in range(steps - 1):
        if kind == "contraction":
            out.append(rho * out[-1] + noise * rng.normal(size=d))
        elif kind == "random walk":
            out.append(out[-1] + 0.3 * rng.normal(size=d))
        else:
            out.append(rng.normal(size=d))
    return np.array(out)


def test_slopes_are_exact_on_a_geometric_line():
    """h[t] = rho^t u: steps shrink by rho each, and so does the distance to the limit."""
    line = 0.8 ** np.arange(12)[:, None] * np.array([3.0, 4.0])
    assert step_slope(line) == pytest.approx(np.log(0.8), abs=1e-12)
    assert path_efficiency(line) == pytest.approx(1.0, abs=1e-12) and fraction_closer(line) == 1.0
    assert slope([1.0, 3.0, 5.0]) == 2.0


def test_the_increment_null_is_the_integrated_permutation():
    """C1 permutes step lengths; integrating permuted increments and measuring again must give the same values."""
    rng = np.random.default_rng(0)
    h = trajectory("contraction", rng)
    steps = np.diff(h, axis=0)
    order = rng.permutation(len(steps))
    rebuilt = np.vstack([h[:1], h[0] + np.cumsum(steps[order], 0)])
    lengths = np.log(np.linalg.norm(steps, axis=1))[order]
    assert step_slope(rebuilt) == pytest.approx(slope(lengths), abs=1e-10)


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("random walk", 0, 0.112), ("independent", 0, 0.185), ("contraction", 0.99, 1)]
)
def test_c1_is_calibrated_and_finds_a_contraction(kind, low, high):
    """200 trajectories: a random walk rejects .05 +- 4 sqrt(.05 x .95 / 200) = [0, .112].

    Independent points reject .10 (3,000 trajectories: .101), as neighbouring steps share a point: bound .10 + .085.
    """
    rng = np.random.default_rng(1)
    p = [step_test([trajectory(kind, rng)], n_permutations=99, seed=i).p_value for i in range(200)]
    assert low <= np.mean(np.array(p) <= 0.05) <= high


def test_c2_calls_a_random_walk_convergent():
    """The trap that makes C2 no headline: slope about -.046 and 87 % of steps closer, although nothing converges."""
    rng = np.random.default_rng(2)
    walks = [trajectory("random walk", rng) for _ in range(300)]
    assert np.mean([end_slope(h) for h in walks]) == pytest.approx(-0.046, abs=0.005)
    assert np.mean([fraction_closer(h) for h in walks]) == pytest.approx(0.87, abs=0.03)


def test_c1_reads_the_sign_and_not_the_size():
    """True log rho is -.163; the noise floor makes C1 read about -.03."""
    rng = np.random.default_rng(3)
    read = np.mean([step_slope(trajectory("contraction", rng)) for _ in range(100)])
    assert -0.06 < read < -0.01


def test_readings_do_not_depend_on_rotation_or_scale():
    rng = np.random.default_rng(4)
    h = trajectory("random walk", rng)
    turn = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    for reading in (step_slope, end_slope, mean_slope, path_efficiency, fraction_closer):
        assert reading(7.5 * h @ turn) == pytest.approx(reading(h), abs=1e-10)


def test_trajectories_that_cannot_be_read_are_refused():
    with pytest.raises(InputError, match="at least 3 finite"):
        step_slope(np.full((5, 2), np.nan))
    with pytest.raises(InputError, match="at least 1 trajectory"):
        step_test([])
    assert step_test([np.eye(6)], n_permutations=0).p_value is None


@pytest.fixture(scope="module")
def tiny():
    """A GPT-2 configuration with random weights, and one with 16-bit weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from lmprobe import wrap_model
    from lmprobe.organisms.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=3, n_head=2, n_embd=32, vocab_size=len(tokenizer), n_positions=64, bos_token_id=2, eos_token_id=3
        )
        model = GPT2LMHeadModel(config)
    return wrap_model(model, tokenizer, name="tiny")


@pytest.mark.transformers
def test_a_change_is_zero_before_its_token_and_linear_in_its_size(tiny):
    from lmprobe.perturbation import distances, lyapunov_slope

    text = list(range(10, 34))
    hooks = [len(block._forward_hooks) for block in tiny.sites.blocks]  # transformers 5 has its own
    reference = distances(tiny, text, 8, 0, size=1e-3)
    assert (reference[:8] == 0).all() and (reference[8:] > 0).all()
    for size in (1e-2, 1e-1):
        assert distances(tiny, text, 8, 0, size=size)[8:] / size == pytest.approx(reference[8:] / 1e-3, rel=0.15)
    found = lyapunov_slope(tiny, text, 8, 0)
    assert found == pytest.approx(slope(np.log(distances(tiny, text, 8, 0)[9:])), abs=1e-12)
    assert lyapunov_slope(tiny, text, 20, 0) is None  # 3 tokens after it
    assert [len(block._forward_hooks) for block in tiny.sites.blocks] == hooks


@pytest.mark.transformers
def test_a_change_of_size_zero_changes_nothing_and_wrong_places_are_refused(tiny):
    from lmprobe.perturbation import distances

    assert (distances(tiny, list(range(10, 30)), 5, 1, size=0.0) == 0).all()
    for start, layer in ((20, 0), (5, 2), (-1, 0)):
        with pytest.raises(InputError, match="a block before the last"):
            distances(tiny, list(range(10, 30)), start, layer)


@pytest.mark.transformers
def test_sixteen_bit_states_are_refused(tiny):
    import copy

    import torch

    from lmprobe import wrap_model
    from lmprobe.perturbation import distances

    half = wrap_model(copy.deepcopy(tiny.model).to(torch.bfloat16), tiny.tokenizer, name="half")
    with pytest.raises(InputError, match="float32"):
        distances(half, list(range(10, 30)), 5, 0)
