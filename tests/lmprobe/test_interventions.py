"""Interventions: what is removed is gone everywhere, equals an edit of the weights, and leaves no trace behind."""

import pytest
import torch
from zoo import KNOWN, opened

from lmprobe.capture import capture
from lmprobe.interventions import Add, ProjectOut, Read, Replace, Skip, active_interventions, intervened, sublayers_of
from probecore import CertificateError, InputError

pytestmark = pytest.mark.transformers

IDS = torch.tensor([[3, 9, 14, 5, 11, 7]])


def logits(lm):
    with torch.no_grad():
        return lm.model(input_ids=IDS).logits


def unit(lm, seed=0):
    vector = torch.randn(lm.certificate.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


NO_SUM = {"opt_350m": "a norm stands on the stream", "gemma3n_text": "residual streams that are mixed"}


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in NO_SUM])
def test_no_state_has_a_part_along_what_every_write_lost(name):
    """A state is a sum of at most 13 projected writes, each rounded to 2^-24 of its size: 1e-5 is ample."""
    lm = opened(name)
    with intervened(lm, ProjectOut(unit(lm))):
        states = capture(lm, [IDS[0].tolist()], at="all")
    for layer in lm.layers:
        values = torch.from_numpy(states.values(layer).copy()).double()
        assert float((values @ unit(lm)).abs().max()) < 1e-5 * float(values.norm(dim=1).max()), layer


@pytest.mark.parametrize("name", [name for name in KNOWN if name in NO_SUM])
def test_a_stream_that_is_no_sum_of_writes_is_refused_with_the_reason(name):
    lm = opened(name)
    with pytest.raises(CertificateError, match=NO_SUM[name]), intervened(lm, ProjectOut(unit(lm))):
        logits(lm)


@pytest.mark.skipif("gemma4_text" not in KNOWN, reason="this transformers has no Gemma 4")
def test_what_is_neither_attention_nor_mlp_has_a_site_of_its_own():
    lm = opened("gemma4_text")
    assert sublayers_of(lm).writes[:4] == ("embed", "attention 0", "mlp 0", "other 0")
    plain = logits(lm)
    with intervened(lm, Replace(0.0, at="other 0")):
        assert not torch.equal(logits(lm), plain)
    with (
        pytest.raises(InputError, match="'other 0' must be something block 0 adds"),
        intervened(opened("llama"), Skip("other 0")),
    ):
        pass


def test_states_keep_the_share_that_strength_leaves_and_the_centre_that_stays():
    """x -> x - s Q Q^T (x - c) at a site, from the plain states; one sum in float32, as for `Add`."""
    lm, row = opened("llama"), [IDS[0].tolist()]
    plain = torch.from_numpy(capture(lm, row, at="all").values("block 1").copy()).double()
    r, centre = unit(lm), unit(lm, 1)
    for strength, c in ((0.5, None), (2.0, None), (1.0, centre), (0.5, centre)):
        with intervened(lm, ProjectOut(r, at="block 1", strength=strength, center=c)):
            moved = torch.from_numpy(capture(lm, row, at="all").values("block 1").copy()).double()
        along = plain @ r - (0.0 if c is None else float(c @ r))
        gap = moved - (plain - strength * torch.outer(along, r))
        assert float(gap.abs().max()) < 1e-5 * max(1.0, float(plain.abs().max())), (strength, c is None)


def test_a_centre_at_every_write_leaves_its_component_in_the_stream():
    """Affine editing: x . r is c . r in every state, whatever the blocks write; strength 1."""
    lm, r, centre = opened("llama"), unit(opened("llama")), 3.0 * unit(opened("llama"), 1)
    with intervened(lm, ProjectOut(r, center=centre)):
        states = capture(lm, [IDS[0].tolist()], at="all")
    for layer in lm.layers:
        values = torch.from_numpy(states.values(layer).copy()).double()
        assert float((values @ r - centre @ r).abs().max()) < 1e-5 * float(values.norm(dim=1).max()), layer


def test_positions_that_are_not_meant_keep_their_bits():
    lm, row = opened("qwen2"), [IDS[0].tolist()]
    plain = capture(lm, row, at="all").values("block 1").copy()
    with intervened(lm, ProjectOut(unit(lm), at="block 1", positions=[2, 4])):
        moved = capture(lm, row, at="all").values("block 1")
    assert [i for i in range(6) if (moved[i] != plain[i]).any()] == [2, 4]


def test_skipping_both_sub_layers_is_skipping_the_block():
    """Llama: y = x + attention + mlp, so what is left is x bit for bit."""
    lm = opened("llama")
    with intervened(lm, Skip("attention 1"), Skip("mlp 1")):
        parts = logits(lm)
    with intervened(lm, Skip("block 1")):
        assert torch.equal(logits(lm), parts)
        assert active_interventions(lm) == ("Skip(at='block 1', positions=None)",)
    assert active_interventions(lm) == ()


def test_what_is_read_at_the_sub_layers_sums_to_the_state():
    """Granite multiplies what it adds by 0.22 or the like; what `Read` hands over is in the size of the stream."""
    for name in ("granite", "llama"):
        lm, read = opened(name), {}
        sites = [site for site in sublayers_of(lm).writes if not site.endswith("2")]
        with intervened(lm, Read(lambda site, states, read=read: read.update({site: states.clone()}), sites)):
            states = capture(lm, [IDS[0].tolist()], at="all").values("block 1").copy()
        total = sum(read[site].double() for site in sites)[0]
        assert float((total - torch.from_numpy(states).double()).abs().max()) < 1e-5 * float(total.abs().max()), name


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
