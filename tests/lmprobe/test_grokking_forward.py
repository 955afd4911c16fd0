"""The forward pass of grokking members, on distinct states once, against transformers' own modules."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from planted_members import TINY

from lmprobe.arithmetic_model import hub_model
from lmprobe.grokking.data import batches
from lmprobe.grokking.forward import forward
from lmprobe.grokking.model import initial, views
from lmprobe.grokking.spec import Spec


def jittered(spec: Spec, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Initial parameters with gains off 1 and biases off 0, without which mix-ups are invisible."""
    flat = torch.from_numpy(initial(spec)).to(dtype).unsqueeze(0)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return views(flat + 0.1 * noise.to(dtype), spec.shape)


def plain(spec: Spec, parameters: dict[str, torch.Tensor]):
    one = {name: value[0].detach() for name, value in parameters.items()}
    shape = spec.shape
    return hub_model(one, p=shape.p, names=shape.task.names, heads=shape.heads, norm=shape.norm,
                     activation=shape.activation)  # fmt: skip


@pytest.mark.transformers
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("ops", [("add",), ("add", "mul")])
def test_the_table_forward_is_the_plain_model(norm: str, activation: str, layers: int, ops: tuple[str, ...]) -> None:
    """Against transformers' own modules on full sequences, logits and every gradient, in float64.

    Both are the same real function of some 300 sums of at most 64 terms of size about 1, so rounding stays below
    300 x 64 x 2^-53 = 2e-12 of the values; a state or row that is mixed up shows at 1e-2.
    """
    spec = dataclasses.replace(TINY, norm=norm, activation=activation, layers=layers, ops=ops)
    parameters = {k: v.detach().requires_grad_() for k, v in jittered(spec).items()}
    model, task = plain(spec, parameters), spec.shape.task
    rows = torch.from_numpy(batches(dataclasses.replace(spec, batch=48), 0, 1)[0])
    tokens, answers = torch.from_numpy(task.tokens)[rows], torch.from_numpy(task.answers)[rows]
    states: dict[str, torch.Tensor] = {}
    logits = forward(spec.shape, parameters, tokens, states)[0]
    seen = model(input_ids=tokens, output_hidden_states=True)
    reference = seen.logits[:, -1, : spec.p]
    assert (logits - reference).abs().max() < 2e-12
    if norm == "pre":  # transformers' last entry is after the final norm
        assert (states["final"][0] - seen.hidden_states[-1][:, -1]).abs().max() < 2e-12
    for i in range(layers - 1):
        assert (states[f"block {i}"][0] - seen.hidden_states[i + 1][:, -1]).abs().max() < 2e-12
    F.cross_entropy(logits, answers).backward()
    F.cross_entropy(reference, answers).backward()
    w, them = parameters, dict(model.named_parameters())
    pairs = [(w["embed"], them["model.decoder.embed_tokens.weight"].grad),
             (w["position"], them["model.decoder.embed_positions.weight"].grad[2:6]),
             (w["head.weight"], them["lm_head.weight"].grad[: spec.p].T),
             (w["head.bias"], them["lm_head.bias"].grad[: spec.p])]  # fmt: skip
    for i in range(layers):
        place = f"model.decoder.layers.{i}."
        for theirs, ours in (("self_attn.out_proj", "out"), ("fc1", "up"), ("fc2", "down")):
            pairs.append((w[f"{i}.{ours}.weight"], them[f"{place}{theirs}.weight"].grad.T))
            pairs.append((w[f"{i}.{ours}.bias"], them[f"{place}{theirs}.bias"].grad))
        joint = [them[f"{place}self_attn.{x}_proj.weight"].grad.T for x in "qkv"]
        pairs.append((w[f"{i}.qkv.weight"], torch.cat(joint, 1)))
        pairs.append((w[f"{i}.norm1.gain"], them[f"{place}self_attn_layer_norm.weight"].grad))
        pairs.append((w[f"{i}.norm2.bias"], them[f"{place}final_layer_norm.bias"].grad))
    assert max(float((ours.grad[0] - theirs).abs().max()) for ours, theirs in pairs) < 2e-12


@pytest.mark.transformers
def test_the_table_forward_in_float32_at_the_logs_size() -> None:
    """2L d128, p = 97: logits within 1e-6 of the largest, gradients within 1e-7, which is float32 rounding.

    Logits of size s are sums of 128 products; their rounding grows as sqrt(128) 2^-24 s, about 7e-7 s. Gradients of the
    mean loss are of size 1e-2 and smaller, and a sum over 512 inputs of terms of 1e-5: 512 x 1e-5 x 2^-24 = 3e-10.
    """
    spec = Spec(init="normal:0.02")
    parameters = {
        k: v.detach().requires_grad_() for k, v in views(torch.from_numpy(initial(spec))[None], spec.shape).items()
    }
    model, task = plain(spec, parameters), spec.shape.task
    rows = torch.from_numpy(batches(spec, 0, 1)[0])
    tokens, answers = torch.from_numpy(task.tokens)[rows], torch.from_numpy(task.answers)[rows]
    logits = forward(spec.shape, parameters, tokens)[0]
    reference = model(input_ids=tokens).logits[:, -1, : spec.p]
    assert (logits - reference).abs().max() < 1e-6 * max(1.0, float(reference.detach().abs().max()))
    F.cross_entropy(logits, answers).backward()
    F.cross_entropy(reference, answers).backward()
    gap = (parameters["0.up.weight"].grad[0] - model.model.decoder.layers[0].fc1.weight.grad.T).abs().max()
    assert gap < 1e-7
