"""Edits of weights: what the tensors hold afterwards, what is refused, and the model that comes back from disk."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from zoo import opened, tiny, tokenizer

from lmprobe import wrap_model
from lmprobe.interventions import ProjectOut, intervened
from lmprobe.tensor_edits import behind, edit_tensor
from lmprobe.weight_edits import orthogonalize
from lmprobe.writers import Writer, find_writers
from probecore import CertificateError, InputError

pytestmark = pytest.mark.transformers

IDS = torch.tensor([[3, 9, 14, 5, 11, 7], [40, 8, 77, 100, 2, 61]])


def fresh(name, dtype=torch.float32):
    return wrap_model(tiny(name).to(dtype), tokenizer(), name=name)


def directions(lm, k=1, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(lm.certificate.width, k, generator=chance, dtype=torch.float64))[0]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.double()


def gap(a, b):
    return float((a - b).abs().max() / a.std())


def linear(out, into, seed=0):
    module = nn.Linear(into, out, dtype=torch.float64).requires_grad_(False)
    with torch.no_grad():
        module.weight.copy_(torch.randn(out, into, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return module, Writer("w", module, "weight", "mlp 0", 0, "Linear [out, in]", -2)


def frame(d, k, seed=1):
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


def test_one_tensor_loses_its_part_in_the_subspace_and_nothing_else():
    """W' = W - s Q Q^T W in float64, written out; the change has rank k; `removed` is ||Q^T W|| / ||W||."""
    q = frame(24, 3)
    for strength in (1.0, 0.5, 2.0):
        module, writer = linear(24, 40)
        w = module.weight.detach().clone()
        edit = edit_tensor(writer, q, strength)
        assert torch.allclose(module.weight, w - strength * q @ (q.T @ w), rtol=0, atol=1e-13)
        assert edit.rank == 3 == int(torch.linalg.matrix_rank(module.weight - w))
        assert edit.removed == pytest.approx(float((q.T @ w).norm() / w.norm()), abs=1e-12)
        assert edit.before != edit.after


def test_no_direction_changes_no_byte():
    writer = linear(24, 40)[1]
    edit = edit_tensor(writer, torch.zeros(24, 0, dtype=torch.float64))
    assert (edit.before, edit.rank, edit.removed) == (edit.after, 0, 0.0)


def test_twice_is_once():
    """A projector is idempotent: the second edit moves weights by rounding."""
    module, writer = linear(24, 40)
    edit_tensor(writer, frame(24, 3))
    once = module.weight.detach().clone()
    edit_tensor(writer, frame(24, 3))
    assert torch.allclose(module.weight, once, rtol=0, atol=1e-14)


def test_norm_preserving_keeps_the_length_of_every_write_vector_and_removes_all():
    """Columns of W [out, in] are what the module can write: lengths equal to 1e-15, the direction gone (3.2, 3.4.6)."""
    module, writer = linear(24, 40)
    w, q = module.weight.detach().clone(), frame(24, 1)
    w += 3 * q @ torch.randn(1, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(w)
    edit = edit_tensor(writer, q, norm_preserving=True)
    assert torch.allclose(module.weight.norm(dim=0), w.norm(dim=0), rtol=1e-14)
    assert float((q.T @ module.weight).norm() / (q.T @ w).norm()) < 1e-14
    assert edit.rank is None and edit.emptied == 0
    rows = torch.nn.functional.normalize(w, dim=1) - q @ (q.T @ torch.nn.functional.normalize(w, dim=1))
    rows = torch.nn.functional.normalize(rows, dim=1) * w.norm(dim=1, keepdim=True)
    assert float((q.T @ rows).norm() / (q.T @ w).norm()) > 0.05, "keeping the lengths of rows does not remove"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_vector_that_lies_in_the_subspace_becomes_zero_and_is_counted(dtype):
    """What rounding left of it has no direction, and is not blown up to the old length."""
    module, writer = linear(24, 5)
    q = frame(24, 2)
    module.to(dtype)
    with torch.no_grad():
        module.weight[:, 2] = (q @ torch.tensor([1.0, -2.0], dtype=torch.float64)).to(dtype)
    edit = edit_tensor(writer, q, norm_preserving=True)
    assert edit.emptied == 1
    assert float(module.weight[:, 2].abs().max()) == 0.0 and float(module.weight[:, 1].norm()) > 0


def test_behind_a_norm_its_output_loses_the_direction():
    """y = g u / rms(u): Q^T y = 0 for every u that has lost diag(g) Q."""
    chance = torch.Generator().manual_seed(3)
    g = 1 + 0.5 * torch.randn(24, generator=chance, dtype=torch.float64)
    q = frame(24, 2)
    p = behind(q, g)
    assert torch.allclose(p.T @ p, torch.eye(2, dtype=torch.float64), atol=1e-14)
    u = torch.randn(9, 24, generator=chance, dtype=torch.float64)
    u = u - u @ p @ p.T
    y = g * u / u.square().mean(dim=1, keepdim=True).sqrt()
    assert float((y @ q).abs().max()) < 1e-14


@pytest.mark.parametrize("name", ["gpt2", "granite"])
def test_strength_and_sites_are_those_of_the_hook(name):
    """Float32, sums in another order: 1e-4 of the logits' SD; the edit moves them by its own size."""
    lm = fresh(name)
    plain = logits(lm.model)
    base = copy.deepcopy(lm)
    q = directions(lm, 2)
    for strength, at in ((0.5, "writes"), (2.0, ["embed", "mlp 1"]), (1.0, "attention 2")):
        report = orthogonalize(lm, q, at=at, strength=strength, copy=True)
        assert report.passed, report.failures
        with intervened(base, ProjectOut(q, at=at, strength=strength)):
            hooked = logits(base.model)
        assert gap(hooked, logits(report.lm.model)) < 1e-4
        assert gap(hooked, plain) > 1e-3
        assert {edit.site for edit in report.edits} == set(report.at)
    assert torch.equal(logits(lm.model), plain), "a copy was edited, the model was not"


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma"])
def test_the_affine_form_leaves_the_centres_component_everywhere(name):
    """Gemma multiplies its table by sqrt(d): the shift has to be that much smaller."""
    lm = fresh(name)
    base = copy.deepcopy(lm)
    q = directions(lm, 2)
    centre = 2.0 * torch.randn(len(q), generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    report = orthogonalize(lm, q, center=centre).require()
    with intervened(base, ProjectOut(q, center=centre)):
        hooked = logits(base.model)
    assert gap(hooked, logits(lm.model)) < 1e-4
    assert report.after.leak < 1e-5 and report.affine


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gemma2"])
def test_norm_preserving_edits_leave_nothing_in_the_stream(name):
    lm = fresh(name)
    mode = "nullspace" if name == "gemma2" else "exact"
    report = orthogonalize(lm, directions(lm), norm_preserving=True, mode=mode)
    assert report.passed and report.after.leak < 1e-5, report.failures
    assert report.before.leak > 1


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        *((name, torch.bfloat16, 3e-2) for name in ("llama", "gpt2", "gemma2", "mixtral")),
        *((name, torch.float16, 1e-2) for name in ("gpt2", "gemma2")),
    ],
)
def test_half_precision_is_held_to_its_own_rounding(name, dtype, limit):
    lm = fresh(name, dtype)
    report = orthogonalize(lm, directions(lm), mode="nullspace" if name == "gemma2" else "exact")
    assert report.after.leak < limit < 0.1 < report.before.leak
    assert {p.dtype for p in lm.model.parameters()} == {dtype}
    kl = report.source_kl if name == "gemma2" else report.kl
    assert kl < report.kl_limit


def test_info_and_certificate_follow_the_weights():
    lm = fresh("llama")
    before, certificate = dict(lm.info), lm.certificate
    report = orthogonalize(lm, directions(lm))
    assert report.lm is lm and lm.name == "llama (edited)"
    assert {key for key in before if before[key] != lm.info[key]} >= {"model", "weights_hash"}
    assert lm.certificate is not certificate


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "qwen2", "phi", "mixtral", "starcoder2"])
def test_a_saved_model_comes_back_with_the_edit(name, tmp_path):
    """Plain `from_pretrained`: bit for bit the edited model, whether or not its head was tied (traps 3.2)."""
    lm = fresh(name)
    head = lm.model.get_output_embeddings().weight.detach().clone()
    report = orthogonalize(lm, directions(lm)).require()
    lm.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(lm.model))
    assert torch.equal(again.get_output_embeddings().weight, head)
    assert again.config.tie_word_embeddings is False or not report.untied


def test_a_tied_head_that_is_edited_along_is_seen():
    """The leak audit cannot see it: the stream is clean. The bytes of the head are compared."""
    lm = fresh("gemma")
    report = orthogonalize(lm, directions(lm), copy=True)
    assert report.untied and report.head_same
    broken = report.__class__(**{**vars(report), "head_same": False})
    assert broken.failures == ("the output head was changed",)
    with pytest.raises(CertificateError, match="the output head was changed"):
        broken.require()


def test_what_cannot_be_edited_is_refused_before_anything_is_touched():
    cases = [
        ("bloom", {}, CertificateError, "embed: what enters block 0 is no sum of tables"),
        ("gemma2", {}, CertificateError, r"a norm behind attention 0, mlp 0 and 4 more: take mode 'nullspace'"),
        ("opt_350m", {}, CertificateError, "a norm stands on the stream"),
        ("gemma3n_text", {}, CertificateError, "residual streams that are mixed"),
        ("llama", {"at": "block 1"}, InputError, "what can be edited are embed and what sub-layers add; got block 1"),
        ("llama", {"at": "attention 9"}, InputError, "no site attention 9"),
        ("llama", {"mode": "best"}, InputError, "mode must be"),
        ("llama", {"center": np.ones(64), "strength": 0.5}, InputError, "the affine form exists in weights only"),
    ]
    for name, more, error, message in cases:
        lm = opened(name)
        before = [parameter.detach().clone() for parameter in lm.model.parameters()]
        with pytest.raises(error, match=message):
            orthogonalize(lm, directions(lm), **more)
        assert all(torch.equal(a, b) for a, b in zip(before, lm.model.parameters(), strict=True)), name
    with pytest.raises(InputError, match="features of the residual stream"):
        orthogonalize(opened("llama"), np.ones(5))


def test_quantised_and_absent_weights_and_running_interventions_are_refused():
    lm = fresh("llama")
    with intervened(lm, ProjectOut(directions(lm))), pytest.raises(InputError, match="no intervention acting"):
        orthogonalize(lm, directions(lm))
    lm.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(InputError, match="are quantised"):
        orthogonalize(lm, directions(lm))


def test_writers_are_named_with_their_layout():
    """GPT-2: Conv1D, square or not, writes along its last axis; both tables, all biases."""
    found = {writer.name: (writer.site, writer.layout, writer.axis) for writer in find_writers(opened("gpt2")).writers}
    assert found["transformer.wte.weight"] == ("embed", "rows", -1)
    assert found["transformer.wpe.weight"] == ("embed", "rows", -1)
    assert found["transformer.h.1.attn.c_proj.weight"] == ("attention 1", "Conv1D [in, out]", -1)
    assert found["transformer.h.1.mlp.c_proj.bias"] == ("mlp 1", "bias", -1)
    assert len(found) == 2 + 3 * 4
