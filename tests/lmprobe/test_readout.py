"""The read-out of states: bit for bit the logits at the last block, and the formula of each architecture elsewhere."""

import numpy as np
import pytest
import torch
from zoo import KNOWN, PROMPTS, STRONG, opened

from lmprobe import capture, read_out
from lmprobe.inputs import forward_arguments, pad
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


def head_of_norm(lm, h):
    return lm.model.get_output_embeddings()(lm.sites.norm(h))


FORMULAS = {
    "llama": head_of_norm,
    "mamba": head_of_norm,
    "gemma2": lambda lm, h: 1.0 * torch.tanh(head_of_norm(lm, h) / 1.0),
    "cohere": lambda lm, h: 0.0625 * head_of_norm(lm, h),
    "granite": lambda lm, h: head_of_norm(lm, h) / 4.0,
    "opt_350m": lambda lm, h: lm.model.lm_head(lm.model.model.decoder.project_out(h)),
}


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
