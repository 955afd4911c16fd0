"""The parts of the table forward, each against the same computed plainly, for more members than one.

All in float64, where both sides are the same sums of at most some hundred terms of size about 1: they differ by less
than 1e-12, and a row, a member or a position that is mixed up differs by 1e-2.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from lmprobe.grokking.data import batches
from lmprobe.grokking.forward import forward, linear, mix, take
from lmprobe.grokking.model import initial, views
from lmprobe.grokking.optimiser import AdamW
from lmprobe.grokking.spec import Spec

SMALL = Spec(p=13, ops=("add", "mul"), layers=2, width=16, heads=2, fraction=0.6, batch=32, init="torch")


def drawn(*shape: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()


def picked(members: int, n: int, size: int) -> torch.Tensor:
    return torch.randint(size, (members, n), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 7, 7, 2), (9,)])
def test_attention_over_rows_is_softmax_over_the_positions_a_query_sees(members: int, lengths: tuple[int, ...]) -> None:
    """Values and gradients, with rows that many queries share and strided keys and values, as the model has them."""
    q, kv = drawn(members, 9, 8), drawn(members, 5, 16)
    known = [picked(members, m, 5) for m in lengths]
    mixed = mix(q, *kv.split(8, dim=-1), known, heads=2)
    plain = torch.empty(members, 9, 8, dtype=torch.float64)
    for e in range(members):
        for n in range(9):
            rows = [int(row[e, n - 9 + row.shape[1]]) for row in known if n >= 9 - row.shape[1]]
            asks, keys, values = q[e, n].view(2, 4), kv[e, rows, :8].view(-1, 2, 4), kv[e, rows, 8:].view(-1, 2, 4)
            weights = torch.einsum("hw,shw->sh", asks, keys).div(2).softmax(0)
            plain[e, n] = torch.einsum("sh,shw->hw", weights, values).flatten()
    assert (mixed - plain).abs().max() < 1e-12
    towards = drawn(members, 9, 8).detach()
    ours, theirs = (torch.autograd.grad((x * towards).sum(), (q, kv)) for x in (mixed, plain))
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(ours, theirs, strict=True))
    assert all(a.abs().max() > 1e-2 for a in ours[1:])


@pytest.mark.parametrize("members", [1, 3])
def test_every_member_takes_rows_of_its_own_table(members: int) -> None:
    x, rows = drawn(members, 5, 4), picked(members, 12, 5)
    taken = take(x, rows)
    assert all(torch.equal(taken[e, i], x[e, rows[e, i]]) for e in range(members) for i in range(12))
    (found,) = torch.autograd.grad(taken.sum(), x)
    counts = torch.stack([row.bincount(minlength=5) for row in rows])
    assert torch.equal(found, counts.unsqueeze(-1).expand_as(found).double())


@pytest.mark.parametrize("members", [1, 3])
def test_a_linear_map_is_added_onto_a_residual_that_stays_as_it_was(members: int) -> None:
    x, weight, bias, onto = drawn(members, 6, 4), drawn(members, 4, 7), drawn(members, 7), drawn(members, 6, 7)
    before = onto.detach().clone()
    for residual in (None, onto):
        plain = torch.stack([F.linear(x[e], weight[e].T, bias[e]) for e in range(members)])
        plain = plain if residual is None else plain + residual
        ours = linear(x, weight, bias, residual)
        assert (ours - plain).abs().max() < 1e-12
        inputs = (x, weight, bias) if residual is None else (x, weight, bias, residual)
        gradients = [torch.autograd.grad(y.square().sum(), inputs) for y in (ours, plain)]
        assert all((a - b).abs().max() < 1e-11 for a, b in zip(*gradients, strict=True))
    assert torch.equal(onto, before)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("ops", [("add",), ("add", "mul")])
def test_members_in_one_forward_pass_are_each_as_if_alone(norm: str, layers: int, ops: tuple[str, ...]) -> None:
    """What a GPU computes: three members with their own weights and inputs, logits and every gradient."""
    specs = [dataclasses.replace(SMALL, norm=norm, layers=layers, ops=ops, seed=e) for e in range(3)]
    shape, task = specs[0].shape, specs[0].shape.task
    flat = torch.stack([torch.from_numpy(initial(spec)) for spec in specs]).double() + 0.1 * drawn(
        3, shape.n_parameters
    )
    tokens = torch.stack([torch.from_numpy(task.tokens[batches(spec, 0, 1)[0]]) for spec in specs])
    flat = flat.detach().requires_grad_()
    logits = forward(shape, views(flat, shape), tokens)
    (found,) = torch.autograd.grad(logits.square().sum(), flat)
    for e in range(3):
        own = flat[e : e + 1].detach().requires_grad_()
        alone = forward(shape, views(own, shape), tokens[e])
        assert (logits[e] - alone[0]).abs().max() < 1e-11
        (gradient,) = torch.autograd.grad(alone.square().sum(), own)
        assert (found[e] - gradient[0]).abs().max() < 1e-10 * gradient.abs().max()


def test_gradients_of_a_step_are_the_same_bits_every_time() -> None:
    """Rows that many inputs share are summed in one order: a resumed run depends on it."""
    spec = Spec(batch=512)
    flat = torch.from_numpy(initial(spec))[None].requires_grad_()
    tokens = torch.from_numpy(spec.shape.task.tokens[batches(spec, 0, 1)[0]])
    first, second = (
        torch.autograd.grad(forward(spec.shape, views(flat, spec.shape), tokens).square().sum(), flat)[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_adamw_leaves_the_gradient_as_it_was() -> None:
    weights, gradient = torch.ones(2, 5), torch.linspace(-1, 1, 10).view(2, 5)
    before = gradient.clone()
    AdamW(clip=0.1).update(weights, gradient, torch.zeros(2, 5), torch.zeros(2, 5), 1, [1e-3, 2e-3], [0.0, 1.0])
    assert torch.equal(gradient, before) and not torch.equal(weights[0], weights[1])
