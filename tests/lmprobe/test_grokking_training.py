"""The trainer: forward pass, optimiser, data order, packs and resumption, each against an independent computation."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmprobe.arithmetic_model import hub_model
from lmprobe.grokking.data import batches, training_mask, training_rows
from lmprobe.grokking.forward import forward
from lmprobe.grokking.history import phases, spikes, stop_reason, wants_snapshot
from lmprobe.grokking.members import member_folder, read_member
from lmprobe.grokking.model import initial, views
from lmprobe.grokking.optimiser import AdamW
from lmprobe.grokking.pack import Pack, leading_directions, pack_key
from lmprobe.grokking.spec import Spec, grid, spec_of
from lmprobe.grokking.task import Task, discrete_logarithms
from lmprobe.grokking.training import packs, train
from probecore import DesignError, InputError

SMALL = Spec(p=13, ops=("add", "mul"), layers=2, width=16, heads=2, fraction=0.6, batch=64, init="torch",
             steps=60, evaluate_every=20, extra=0)  # fmt: skip
CPU = torch.device("cpu")


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


def test_the_task_is_arithmetic() -> None:
    task = Task(7, ("add", "mul"))
    for (a, op, b, equals), answer in zip(task.tokens.tolist(), task.answers.tolist(), strict=True):
        assert equals == 7 and answer == ((a + b) % 7 if op == 8 else (a * b) % 7)
    assert len({tuple(row) for row in task.tokens.tolist()}) == task.n_inputs == 98
    assert (task.answers[task.operation == 1] == 0).sum() == 2 * 7 - 1  # the giant class of multiplication


@pytest.mark.parametrize("p", [5, 13, 97])
def test_discrete_logarithms_turn_products_into_sums(p: int) -> None:
    logs = discrete_logarithms(p)
    assert sorted(logs.tolist()) == list(range(p - 1))
    a, b = np.meshgrid(np.arange(1, p), np.arange(1, p))
    assert (logs[a * b % p - 1] == (logs[a - 1] + logs[b - 1]) % (p - 1)).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"p": 9}, "prime"), ({"ops": ("add", "add")}, "operations"), ({"ops": ("sub",)}, "operations"),
        ({"fraction": 0.01, "p": 13}, "batch"), ({"fraction": 1.0}, "batch"), ({"init": "uniform"}, "init"),
        ({"width": 30}, "multiple"), ({"lr": 0.0}, "lr"), ({"norm": "none"}, "norm"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"adversarial": 0.1, "adversarial_k": 128}, "adversarial_k"),
    ],
)  # fmt: skip
def test_a_spec_that_cannot_be_trained_is_refused_in_one_line(settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Spec(**settings).shape.task  # noqa: B018
    assert "\n" not in str(caught.value)


def test_parameter_counts_are_those_of_the_log() -> None:
    sizes = {(2, 128): 422_497, (1, 128): 224_225, (1, 64): 63_009, (1, 32): 19_265}
    assert {k: Spec(layers=k[0], width=k[1]).shape.n_parameters for k in sizes} == sizes
    assert Spec(ops=("add", "mul")).shape.n_parameters == 422_497 + 128
    for (layers, d), n in sizes.items():  # 12 d² + 13 d a block, 99 tokens, 4 positions, a norm, a head with bias
        assert n == layers * (12 * d * d + 13 * d) + 99 * d + 4 * d + 2 * d + 97 * d + 97


def test_records_of_specs_come_back_and_name_everything() -> None:
    spec = dataclasses.replace(SMALL, seed=3, adversarial=0.1)
    assert spec_of(spec.record()) == spec
    assert len({spec.key, *(dataclasses.replace(spec, **{"lr": x}).key for x in (1e-3, 2e-3, 3e-3))}) == 3
    with pytest.raises(InputError, match="fields"):
        spec_of({**spec.record(), "other": 1})


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
    spec = dataclasses.replace(SMALL, norm=norm, activation=activation, layers=layers, ops=ops)
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


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_adamw_is_torchs_bit_for_bit(clip: float) -> None:
    """30 steps with warm-up, on the same gradients, of two members with their own rate and decay."""
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 50, generator=rng)
    settings, lr, wd = AdamW(warmup=10, clip=clip), [1e-3, 4e-3], [1.0, 0.1]
    copies = [row.clone().requires_grad_() for row in weights]
    reference = [
        torch.optim.AdamW([c], lr=r, betas=(0.9, 0.98), weight_decay=d, foreach=False)
        for c, r, d in zip(copies, lr, wd, strict=True)
    ]
    mean, square = torch.zeros(2, 50), torch.zeros(2, 50)
    on_device = [weights.clone(), mean.clone(), square.clone()]
    for step in range(1, 31):
        gradient = torch.randn(2, 50, generator=rng)
        for e, (copy, optimiser) in enumerate(zip(copies, reference, strict=True)):
            copy.grad = gradient[e].clone()
            if clip:
                torch.nn.utils.clip_grad_norm_([copy], clip)
            optimiser.param_groups[0]["lr"] = lr[e] * min(1.0, step / 10)
            optimiser.step()
        settings.update(weights, gradient, mean, square, step, lr, wd)
        columns = [torch.tensor(x, dtype=torch.float64).unsqueeze(1) for x in (lr, wd)]
        settings.update_on_device(
            on_device[0], gradient, *on_device[1:], torch.tensor([float(step)]).double(), *columns
        )
    assert torch.equal(weights, torch.stack([c.detach() for c in copies]))
    assert torch.allclose(on_device[0], weights, atol=1e-6)  # 30 steps of float32 rounding at values near 1


def test_batches_are_drawn_without_replacement_and_depend_on_the_step_alone() -> None:
    spec = dataclasses.replace(SMALL, batch=50)
    rows, per_epoch = training_rows(spec), spec.batches_per_epoch
    drawn = batches(spec, 0, 3 * per_epoch)
    for epoch in drawn.reshape(3, -1):
        assert len(set(epoch.tolist())) == len(epoch) and set(epoch.tolist()) <= set(rows.tolist())
    assert not np.array_equal(drawn[:per_epoch], drawn[per_epoch : 2 * per_epoch])
    for first in (1, per_epoch - 1, per_epoch + 2):
        assert np.array_equal(batches(spec, first, 3), drawn[first : first + 3])
    wider = dataclasses.replace(spec, fraction=0.8)
    assert set(rows.tolist()) < set(training_rows(wider).tolist()) and training_mask(wider).sum() == wider.n_train
    assert not np.array_equal(rows, training_rows(dataclasses.replace(spec, data_seed=1)))


def test_a_member_of_a_pack_is_the_member_alone(tmp_path: Path) -> None:
    """Bit for bit: three members with their own everything, trained in one call, in two processes, and each alone."""
    specs = (
        SMALL,
        dataclasses.replace(SMALL, seed=1, weight_decay=0.1, lr=2e-3, fraction=0.7, init="normal:0.02", init_scale=2.0),
        dataclasses.replace(SMALL, seed=2, data_seed=7, weight_decay=0.0, adversarial=0.5, adversarial_after=20,
                            adversarial_k=3),
    )  # fmt: skip
    together = train(specs, tmp_path / "together")
    side_by_side = train(specs, tmp_path / "jobs", jobs=2)
    assert [member.spec for member in together] == [member.spec for member in side_by_side]
    for member, other in zip(together, side_by_side, strict=True):
        (alone,) = train([member.spec], tmp_path / "alone" / member.spec.key)
        files = [(m.folder / "state.safetensors").read_bytes() for m in (member, other, alone)]
        assert files[0] == files[1] == files[2] and alone.history == member.history and member.step == 60


def test_a_batched_pack_is_its_members_up_to_rounding() -> None:
    """What a GPU computes, on the CPU: 12 steps of three members in one pack against each alone.

    Products in another order differ by 2^-24 of their size. Where a gradient is of the size of its rounding (the bias
    of keys, which softmax ignores, has none but rounding) Adam still makes steps of up to lr, here 2e-3 at most;
    elsewhere 12 steps leave far less. A member that took another's rows, rate or decay would be 1e-2 away.
    """
    each = [(1.0, 1e-3, 0.0), (0.1, 5e-4, 0.5), (0.0, 2e-3, 1.0)]
    specs = [
        dataclasses.replace(SMALL, seed=e, weight_decay=w, lr=r, adversarial=a, adversarial_k=3, adversarial_after=4,
                            adversarial_every=2)
        for e, (w, r, a) in enumerate(each)
    ]  # fmt: skip
    assert len({pack_key(spec) for spec in specs}) == 1 and [len(p) for p in packs(specs)] == [3]
    together = Pack(specs, CPU)
    together.run(0, 12)
    for e, spec in enumerate(specs):
        alone = Pack([spec], CPU)
        alone.run(0, 12)
        assert (together.weights[e] - alone.weights[0]).abs().max() < 2e-3
        assert (alone.weights[0] - torch.from_numpy(initial(spec))).abs().max() > 3e-3  # and they have moved
        assert torch.allclose(together.read()[0][e], alone.read()[0][0], atol=1e-3)


def test_the_adversarial_gradient_flows_through_states_and_head() -> None:
    """Against autograd on L = CE(h W) + lambda CE((h - Q Q'h) W) written out, Q per operation and detached."""
    spec = dataclasses.replace(SMALL, adversarial=0.3, adversarial_k=3, adversarial_after=0, adversarial_every=1)
    pack = Pack([spec], CPU)
    rows = torch.from_numpy(batches(spec, 0, 1))
    pack._gradients(rows, 1)
    w = {k: v.detach().clone().requires_grad_() for k, v in pack.parameters.items()}
    tokens, answers = pack.tokens[rows[0]], pack.answers[rows[0]]
    states: dict[str, torch.Tensor] = {}
    logits = forward(spec.shape, w, tokens, states)[0]
    h = states["final"][0]
    kept = h.clone()
    for op in range(2):
        own = tokens[:, 1] == spec.p + 1 + op
        means = torch.stack([h[own & (answers == c)].mean(0) for c in answers[own].unique()]).detach()
        basis = torch.linalg.svd(means - means.mean(0), full_matrices=False)[2][:3].T
        kept = torch.where(own[:, None], h - (h @ basis) @ basis.T, kept)
    loss = F.cross_entropy(logits, answers)
    loss = loss + 0.3 * F.cross_entropy(kept @ w["head.weight"][0] + w["head.bias"][0], answers)
    loss.backward()
    for name, value in w.items():
        assert torch.allclose(value.grad, views(pack.gradient, spec.shape)[name], atol=2e-6), name
    pack._gradients(rows, 0)  # a step without the term
    assert not torch.allclose(w["head.weight"].grad, views(pack.gradient, spec.shape)["head.weight"], atol=1e-4)


def test_leading_directions_count_every_class_once() -> None:
    """One class with most of the inputs does not move them: means are not weighted by class size."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 10, generator=rng)
    even = torch.arange(6).repeat(5)
    skewed = torch.cat([even, torch.zeros(300, dtype=torch.long)])
    found = [leading_directions(centres[y][None], y[None], torch.ones(1, len(y), dtype=torch.bool), 7, 3)[0]
             for y in (even, skewed)]  # fmt: skip
    assert torch.allclose(found[0] @ found[0].T, found[1] @ found[1].T, atol=1e-5)


KILLED = """
import sys
from pathlib import Path
from test_grokking_training import SMALL
from lmprobe.grokking.training import train
import dataclasses
train([dataclasses.replace(SMALL, steps=400, evaluate_every=10)], sys.argv[1], checkpoint_every=10)
"""


def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """SIGKILL at three moments, also while files are written, then to the end; against an uninterrupted run."""
    spec = dataclasses.replace(SMALL, steps=400, evaluate_every=10)
    (whole,) = train([spec], tmp_path / "whole")
    folder = member_folder(tmp_path / "killed", spec)
    seen = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        )
        while process.poll() is None:
            member = read_member(folder) if folder.exists() else None
            if member is not None and member.step > seen:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        member = read_member(folder)
        assert member is not None and seen < member.step
        seen = member.step
    assert seen < 400, "the run ended before it was killed: nothing was tested"
    (resumed,) = train([spec], tmp_path / "killed", checkpoint_every=10)
    assert (resumed.folder / "state.safetensors").read_bytes() == (whole.folder / "state.safetensors").read_bytes()


def evaluation(step: int, train_acc: float, val_acc: float, sd: float = 1.0, loss: float = 1.0) -> dict:
    return {"step": step, "train_acc": train_acc, "val_acc_add": val_acc, "val_acc": val_acc, "logit_sd": sd,
            "train_loss": loss}  # fmt: skip


def test_phases_follow_their_rules_and_the_worst_operation_counts() -> None:
    each = [(0.1, 0.0), (0.99, 0.5), (1.0, 0.96), (1.0, 0.99), (0.5, 0.3), (1.0, 0.99), (1.0, 1.0), (1.0, 1.0)]
    history = [evaluation(100 * i, *both) for i, both in enumerate(each)]
    found = phases(history, 100)
    assert (found.memorise, found.half, found.nearly, found.grok, found.steady) == (100, 100, 200, 300, 500)
    both = [{**e, "val_acc_mul": 0.2} for e in history]
    assert phases(both, 100).grok is None
    assert spikes(history) == [400]


def test_no_spike_is_kept_or_ends_a_run() -> None:
    spec = dataclasses.replace(SMALL, extra=200, steps=10_000)
    history = [evaluation(100, 1.0, 0.99)]
    assert wants_snapshot(history, ()) and stop_reason(spec, history) is None
    spike = [*history, evaluation(300, 0.4, 0.3)]
    assert not wants_snapshot(spike, (100,)) and stop_reason(spec, spike) is None
    after = [*spike, evaluation(400, 1.0, 1.0)]
    assert wants_snapshot(after, (100,)) and stop_reason(spec, after) == "grokked"
    assert not wants_snapshot(after, (100, 400))


def test_hopeless_members_stop() -> None:
    spec = dataclasses.replace(SMALL, steps=30_000, stuck_after=5000)
    flat = [evaluation(s, 0.01, 0.01, sd=1e-5) for s in (100, 200, 300)]
    assert stop_reason(spec, flat[:2]) is None and stop_reason(spec, flat) == "collapsed"
    assert stop_reason(spec, [evaluation(5000, 0.1, 0.1)]) == "stuck"
    assert stop_reason(spec, [evaluation(5000, 0.3, 0.1)]) is None
    assert stop_reason(spec, [evaluation(100, 0.0, 0.0, loss=float("nan"))]) == "diverged"
    assert stop_reason(spec, [evaluation(30_000, 1.0, 0.5)]) == "steps"


def test_a_strong_decay_collapses_and_is_seen(tmp_path: Path) -> None:
    """Weight decay 10 on every parameter from torch's initialisation gives the uniform predictor, loss ln p."""
    spec = Spec(p=13, layers=2, width=32, heads=4, init="torch", weight_decay=30.0, fraction=0.7, batch=64, steps=3000)
    (member,) = train([spec], tmp_path)
    assert member.status == "collapsed" and member.step < 2000
    assert abs(member.last["train_loss"] - np.log(13)) < 0.02
    with pytest.raises(DesignError, match="grokked"):
        member.analysis_step()


def test_grids_take_the_data_seed_along() -> None:
    members = grid(SMALL, seed=[4, 5], weight_decay=[0.0, 1.0])
    assert [(s.seed, s.data_seed) for s in members] == [(4, 4), (4, 4), (5, 5), (5, 5)]
    assert [s.data_seed for s in grid(SMALL, seed=[4, 5], data_seed=[9])] == [9, 9]
