"""Interventions: what is removed is gone everywhere, equals an edit of the weights, and leaves no trace behind."""

import pytest
import torch
from zoo import opened

from lmprobe.capture import capture
from lmprobe.interventions import Add, ProjectOut, intervened
from probecore import InputError

pytestmark = pytest.mark.transformers

IDS = torch.tensor([[3, 9, 14, 5, 11, 7]])


def logits(lm):
    with torch.no_grad():
        return lm.model(input_ids=IDS).logits


def unit(lm, seed=0):
    vector = torch.randn(lm.certificate.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


@pytest.mark.parametrize("name", ["llama", "qwen2", "mixtral"])
def test_no_state_has_a_part_along_what_every_write_lost(name):
    """A state is a sum of at most 9 projected writes, each rounded to 2^-24 of its size: 1e-5 of the state is ample."""
    lm = opened(name)
    with intervened(lm, ProjectOut(unit(lm))):
        states = capture(lm, [IDS[0].tolist()], at="all")
    for layer in lm.layers:
        values = torch.from_numpy(states.values(layer).copy()).double()
        assert float((values @ unit(lm)).abs().max()) < 1e-5 * float(values.norm(dim=1).max()), layer


def test_projecting_out_every_write_is_the_edit_of_every_writing_weight():
    """Llama without biases: W' = (I - rr^T) W for embedding, attention and MLP outputs; float32 sums in another order.

    1e-4 of the logits' SD is 1000 units in the last place, as in the certificate; an effect is of the SD's size.
    """
    lm = opened("llama")
    r = unit(lm)
    with intervened(lm, ProjectOut(r)):
        hooked = logits(lm)
    plain = logits(lm)
    decoder = lm.model.model
    writers = [layer.self_attn.o_proj for layer in decoder.layers] + [layer.mlp.down_proj for layer in decoder.layers]
    kept = [w.weight.detach().clone() for w in [decoder.embed_tokens, *writers]]
    with torch.no_grad():
        head = lm.model.lm_head.weight
        assert head.data_ptr() != decoder.embed_tokens.weight.data_ptr(), "an untied head, or the edit reaches it"
        rows = decoder.embed_tokens.weight.double()
        decoder.embed_tokens.weight.copy_(rows - torch.outer(rows @ r, r))
        for writer in writers:
            weight = writer.weight.double()
            writer.weight.copy_(weight - torch.outer(r, r @ weight))
        edited = logits(lm)
        for module, weight in zip([decoder.embed_tokens, *writers], kept, strict=True):
            module.weight.copy_(weight)
    scale = float(plain.std())
    assert float((hooked - edited).abs().max()) < 1e-4 * scale
    assert float((hooked - plain).abs().max()) > 0.1 * scale
    assert torch.equal(logits(lm), plain)


def test_hooks_are_gone_after_the_block_also_after_an_error():
    lm = opened("llama")
    before = logits(lm)
    with pytest.raises(ZeroDivisionError), intervened(lm, Add(unit(lm), at="input 1", scale=3.0)):
        assert not torch.equal(logits(lm), before)
        raise ZeroDivisionError
    assert torch.equal(logits(lm), before)


def test_adding_changes_the_state_by_what_was_added():
    """One sum in float32: the rounding of a state of its size."""
    lm = opened("llama")
    row = [IDS[0].tolist()]
    plain = capture(lm, row, at="all").values("block 1")
    with intervened(lm, Add(unit(lm), at="block 1", scale=2.0)):
        moved = capture(lm, row, at="all").values("block 1")
    gap = torch.from_numpy(moved - plain).double() - 2.0 * unit(lm)
    assert float(gap.abs().max()) < 1e-5 * max(1.0, float(abs(plain).max()))


def test_a_direction_of_another_width_is_refused():
    lm = opened("llama")
    with pytest.raises(InputError), intervened(lm, ProjectOut(torch.ones(lm.certificate.width + 1))):
        logits(lm)
