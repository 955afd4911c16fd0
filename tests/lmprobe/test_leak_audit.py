"""The leak audit finds every hole that is planted in an edit: a forgotten tensor, a wrong axis, a bias, one expert."""

import copy

import pytest
import torch
from zoo import opened, tiny, tokenizer

from lmprobe import ProjectOut, intervened, leak_audit, orthogonalize, wrap_model
from lmprobe.writers import find_writers
from probecore import InputError

pytestmark = pytest.mark.transformers

NAMES = ["gpt2", "phi", "qwen2_moe", "gpt_oss", "granite", "gemma2"]


def fresh(name):
    """Return a model whose every tensor writes: the experts' biases of a new gpt-oss are zero."""
    model = tiny(name)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if key.endswith("down_proj_bias"):
                tensor.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    return wrap_model(model, tokenizer(), name=name)


def unit(lm, k=1, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(lm.certificate.width, k, generator=chance, dtype=torch.float64))[0]


def test_the_leak_is_the_largest_part_of_a_token_along_the_subspace():
    """Written out on the states of `output_hidden_states`, block by block; float32 states, float64 sums."""
    lm = opened("llama")
    q = unit(lm, 2)
    audit = leak_audit(lm, q, texts=2, length=9, seed=3)
    from lmprobe.leak_audit import audit_tokens

    with torch.no_grad():
        states = lm.model(input_ids=audit_tokens(lm, 2, 9, 3), output_hidden_states=True).hidden_states
    for layer, state in zip(lm.layers[:-1], states[:-1], strict=True):  # the last entry is behind the final norm
        x = state.double().flatten(0, 1)
        expected = ((x @ q).norm(dim=1) / x.square().mean(dim=1).sqrt()).max()
        assert audit.stream[layer] == pytest.approx(float(expected), rel=1e-6)
    assert audit.leak == max(audit.stream.values()) and audit.tokens == 18 and not audit.passed
    assert leak_audit(lm, q, texts=2, length=9).limit == pytest.approx(1e-5 * 2**0.5)


@pytest.mark.parametrize("name", NAMES)
def test_each_tensor_that_an_edit_leaves_out_is_seen(name):
    """One of each kind of tensor is put back as it was; the complete edit leaves rounding, each hole 100 times more."""
    lm = fresh(name)
    kept = {writer.name: writer.parameter.detach().clone() for writer in find_writers(lm).writers}
    report = orthogonalize(lm, unit(lm), mode="nullspace" if name == "gemma2" else "exact")
    assert report.after.passed and report.after.leak < 1e-5
    tried = {}
    for writer in find_writers(lm).writers:
        if writer.block in (None, 1):
            tried.setdefault((writer.site, writer.layout, writer.name.split(".")[-2]), writer)
    assert len(tried) >= 3
    for writer in tried.values():
        with torch.no_grad():
            edited = writer.parameter.detach().clone()
            writer.parameter.copy_(kept[writer.name])
            found = leak_audit(lm, unit(lm))
            writer.parameter.copy_(edited)
        assert found.leak > 1e-3 and not found.passed, writer.name


def test_a_square_matrix_projected_along_the_wrong_axis_is_seen():
    """GPT-2's attention projection is square: both axes fit, one of them is no edit (trap 3.2, leak 0.9 there)."""
    lm = wrap_model(tiny("gpt2"), tokenizer(), name="gpt2")
    weight = lm.model.transformer.h[1].attn.c_proj.weight
    r, before = unit(lm)[:, 0], lm.model.transformer.h[1].attn.c_proj.weight.detach().double().clone()
    assert weight.shape[0] == weight.shape[1]
    orthogonalize(lm, r).require()
    with torch.no_grad():
        weight.copy_(before - torch.outer(r, r @ before))
    assert leak_audit(lm, r).leak > 0.1


def test_one_expert_of_many_is_seen_and_so_is_a_bias():
    lm = fresh("gpt_oss")
    experts = lm.model.model.layers[1].mlp.experts
    kept = experts.down_proj.detach().clone(), experts.down_proj_bias.detach().clone()
    orthogonalize(lm, unit(lm)).require()
    for tensor, old in zip((experts.down_proj, experts.down_proj_bias), kept, strict=True):
        edited = tensor.detach().clone()
        with torch.no_grad():
            tensor[2].copy_(old[2])
            assert leak_audit(lm, unit(lm)).leak > 1e-3
            tensor.copy_(edited)
    assert leak_audit(lm, unit(lm)).passed


def test_a_hidden_hole_fails_the_report_and_raises():
    """A module that adds to the stream behind the edit's back: the report says where, `require` refuses."""
    lm = wrap_model(tiny("llama"), tokenizer(), name="llama")
    report = orthogonalize(lm, unit(lm), copy=True)
    broken = report.__class__(**{**vars(report), "after": leak_audit(lm, unit(lm), writes=report.at)})
    assert any("the stream leaks" in failure for failure in broken.failures)
    assert any("still writes" in failure for failure in broken.failures)
    with pytest.raises(Exception, match="an edit must pass its audit"):
        broken.require()


def test_hooks_are_audited_as_edits_are():
    lm = opened("olmo2")
    assert not leak_audit(lm, unit(lm)).passed
    with intervened(lm, ProjectOut(unit(lm))):
        assert leak_audit(lm, unit(lm)).passed


def test_a_token_of_massive_activations_hides_no_other():
    """One row of the table 1000 times as long: the leak of a short one is measured against its own size."""
    lm = copy.deepcopy(opened("llama"))
    r = unit(lm)
    with torch.no_grad():
        table = lm.model.model.embed_tokens.weight
        table.sub_((table.double() @ r @ r.T).float())
        table[1:20] += 0.01 * float(table[1:20].norm(dim=1).mean()) * r[:, 0].float()
        table[0] *= 1000
    audit = leak_audit(lm, r)
    assert audit.stream["embed"] > 0.05


def test_a_basis_that_does_not_fit_is_refused():
    with pytest.raises((InputError, RuntimeError)):
        leak_audit(opened("llama"), torch.ones(5))
