"""The read-out of states: bit for bit the logits at the last block, and the formula of each architecture elsewhere."""

import numpy as np
import pytest
import torch
from zoo import FORMULAS, KNOWN, PROMPTS, STRONG, head_of_norm, opened

from lmprobe import capture, read_out
from lmprobe.inputs import forward_arguments, pad
from lmprobe.readout import head_stub, tail_of, tail_replay
from probecore import InputError

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize("name", KNOWN)
def test_the_last_block_reads_out_as_the_models_own_logits(name):
    """Trap 13: softcap, logit scale and projections are strong here, so that forgetting one shows.

    States go through numpy and come back one by one, so the last bits depend on the layout of the sums: logits of
    order 10 at float32 give 1e-5.
    """
    lm = opened(name)
    states = capture(lm, PROMPTS, deterministic=True).values("block 2")
    logits = read_out(lm, torch.from_numpy(states.copy()))
    for prompt, row in zip(PROMPTS, logits, strict=True):
        ids, mask = pad([lm.format(prompt)], lm.pad_id, "right")
        with torch.no_grad():
            own = lm.model(**forward_arguments(lm.model, ids, mask, use_cache=lm.certificate.cached)).logits[0, -1]
        np.testing.assert_allclose(row.numpy(), own.numpy(), atol=5e-5, rtol=1e-5)
        assert row.argmax() == own.argmax()


@pytest.mark.parametrize("name", FORMULAS)
def test_any_state_reads_out_by_the_formula_of_its_architecture(name):
    lm = opened(name)
    states = torch.from_numpy(capture(lm, PROMPTS, layers="block 0").values("block 0").copy())
    with torch.no_grad():
        expected = FORMULAS[name](lm, states).numpy()
    np.testing.assert_allclose(read_out(lm, states).numpy(), expected, atol=1e-5, rtol=1e-5)
    if name in STRONG:
        with torch.no_grad():
            assert np.abs(head_of_norm(lm, states).numpy() - expected).max() > 0.5


def test_chunks_do_not_matter_and_the_model_is_put_back():
    lm = opened("llama")
    states = torch.from_numpy(capture(lm, PROMPTS, at="all", layers="block 1").values("block 1").copy())
    before = [id(block) for block in lm.model.model.layers]
    one, many = read_out(lm, states, rows=1), read_out(lm, states)
    np.testing.assert_allclose(one.numpy(), many.numpy(), atol=1e-5)
    assert [id(block) for block in lm.model.model.layers] == before
    again = capture(lm, PROMPTS, at="all", layers="block 1").values("block 1")
    assert np.array_equal(states.numpy(), again)


def test_states_of_another_width_are_refused():
    with pytest.raises(InputError, match=r"states must have shape \(items, 64\); got \(2, 32\)"):
        read_out(opened("llama"), torch.zeros(2, 32))


SLOW_WAY = {"opt_350m", "gemma3n_text"}  # no final norm; several residual streams that are joined before the norm


@pytest.mark.parametrize("name", KNOWN)
def test_the_quick_way_gives_the_bits_of_the_slow_one_or_is_not_taken(name):
    """Trap 22: where norm and head are not all that stands after the blocks, tail replay is taken."""
    lm = opened(name)
    tail = tail_of(lm)
    assert (tail.way == "tail replay") >= (name in SLOW_WAY)
    states = torch.from_numpy(capture(lm, PROMPTS, layers="block 1").values("block 1").copy())
    slow = type(tail)(lm, "tail replay")
    assert torch.equal(tail(states), slow(states))
    if name == "llama":
        assert tail.way == "head stub"


def test_the_backbone_is_left_as_it_was_also_when_its_forward_was_replaced_or_the_head_fails():
    """accelerate puts its own `forward` on the module: it must be there afterwards."""
    lm = opened("llama")
    backbone = lm.model.model
    states = torch.randn(3, 1, 64, generator=torch.Generator().manual_seed(0))
    expected = head_stub(lm.model, lm.sites, states)
    assert "forward" not in vars(backbone)
    own = backbone.forward
    backbone.forward = own
    try:
        assert torch.equal(head_stub(lm.model, lm.sites, states), expected)
        assert vars(backbone)["forward"] is own
    finally:
        del backbone.forward
    handle = lm.model.lm_head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(ArithmeticError("planted")))
    try:
        with pytest.raises(ArithmeticError, match="planted"):
            head_stub(lm.model, lm.sites, states)
    finally:
        handle.remove()
    assert "forward" not in vars(backbone)
    assert torch.equal(head_stub(lm.model, lm.sites, states), expected)


@pytest.mark.parametrize("way", ["head stub", "tail replay"])
def test_gradients_by_the_state_are_those_of_finite_differences(way):
    """A change of 1e-3 of float32 logits of order 10: rounding 1e-6 / 1e-3 leaves three digits."""
    lm = opened("gemma2")
    tail = type(tail_of(lm))(lm, way)
    chance = torch.Generator().manual_seed(1)
    state, direction = (torch.randn(1, 64, generator=chance) for _ in range(2))
    state.requires_grad_(True)
    loss = torch.log_softmax(tail(state, gradients=True).double(), -1)[0, 5]
    slope = float((torch.autograd.grad(loss, state)[0] * direction).sum())
    with torch.no_grad():
        ends = [torch.log_softmax(tail(state + h * direction).double(), -1)[0, 5] for h in (1e-2, -1e-2)]
    assert slope == pytest.approx(float(ends[0] - ends[1]) / 2e-2, rel=2e-2, abs=2e-3)
    assert not tail(state).requires_grad
    returns, cached = lm.certificate.returns, lm.certificate.cached
    assert not tail_replay(lm.model, lm.sites, returns, state[:, None].detach(), 0, cached=cached).requires_grad
