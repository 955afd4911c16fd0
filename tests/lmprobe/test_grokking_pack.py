"""A training step of a pack: optimiser, packed and lone members, the gradient against removal."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted_members import TINY

from lmprobe.grokking.data import batches
from lmprobe.grokking.forward import forward
from lmprobe.grokking.model import initial, views
from lmprobe.grokking.optimiser import AdamW
from lmprobe.grokking.pack import Pack, leading_directions, pack_key, random_directions
from lmprobe.grokking.training import packs, train

CPU = torch.device("cpu")


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


def test_a_member_of_a_pack_is_the_member_alone(tmp_path: Path) -> None:
    """Bit for bit: three members with their own everything, trained in one call, in two processes, and each alone."""
    specs = (
        TINY,
        dataclasses.replace(TINY, seed=1, weight_decay=0.1, lr=2e-3, fraction=0.7, init="normal:0.02", init_scale=2.0),
        dataclasses.replace(TINY, seed=2, data_seed=7, weight_decay=0.0, adversarial=0.5, adversarial_after=20,
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
        dataclasses.replace(TINY, seed=e, weight_decay=w, lr=r, adversarial=a, adversarial_k=3, adversarial_after=4,
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


@pytest.mark.parametrize("which", ["class-mean", "random"])
def test_the_adversarial_gradient_flows_through_states_and_head(which: str) -> None:
    """Against autograd on L = CE(h W) + lambda CE((h - Q Q'h) W) written out, Q per operation and detached."""
    spec = dataclasses.replace(TINY, adversarial=0.3, adversarial_k=3, adversarial_after=0, adversarial_every=1,
                               adversarial_basis=which)  # fmt: skip
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
        basis = torch.from_numpy(random_directions(spec, 1, op)).to(h) if which == "random" else basis
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


def test_random_directions_are_frames_of_their_own_at_every_step_seed_and_operation() -> None:
    """The control of the removal-resistant loss: a step of it differs from a plain one, and from one of other data."""
    spec = dataclasses.replace(TINY, adversarial=0.3, adversarial_k=3, adversarial_basis="random")
    frame = random_directions(spec, 10, 0)
    np.testing.assert_allclose(frame.T @ frame, np.eye(3), atol=1e-12)
    others = [random_directions(spec, 20, 0), random_directions(spec, 10, 1)]
    others.append(random_directions(dataclasses.replace(spec, seed=9, data_seed=9), 10, 0))
    assert all(np.abs(frame - other).max() > 0.1 for other in others)
    np.testing.assert_array_equal(frame, random_directions(dataclasses.replace(spec, weight_decay=0.5), 10, 0))
