"""The forward pass of a pack, exact and without repeated work.

Conventions. Parameters by name as (E, *shape) (`model.views`), tokens (E, B, 4) or (B, 4) for all members, logits
(E, B, p) at the last position, the only one that is read. Causal attention, learned positions, heads of width d / H.

The model is causal, so the state of position 0 takes p values (one for each a), that of position 1 p |ops|, whatever
the batch; before the first attention b takes p values and "=" one. Such states are computed once, as rows of a table,
and gathered. In every block all distinct rows go through one matrix product, and the last block computes the last
position only. For 2 layers that is about 37 d² multiply-adds an input instead of 96 d².

Matrix products of one member are bit for bit the plain ones; those of a batch of members may be rounded in another
order. On a CPU, where batching gains nothing, members are always computed one by one and do not depend on their pack.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmprobe.grokking.spec import Shape
from lmprobe.grokking.task import LENGTH

Parameters = dict[str, Tensor]


def forward(shape: Shape, parameters: Parameters, tokens: Tensor, states: dict[str, Tensor] | None = None) -> Tensor:
    """Return the logits (E, B, p) at "=".

    states : a dict that receives "block i", the residual (E, B, d) at "=" after each block, and "final", the state that
        the head reads (after the final norm of a pre-norm model).
    """
    walk = _Rows(shape, parameters, tokens)
    for i in range(shape.layers):
        walk.block(i)
        if states is not None:
            states[f"block {i}"] = walk.last
    x = walk.last
    if shape.norm == "pre":
        x = layer_norm(x, parameters["norm.gain"], parameters["norm.bias"])
    if states is not None:
        states["final"] = x
    return linear(x, parameters["head.weight"], parameters["head.bias"])


class _Rows:
    """The distinct states of a batch as rows (E, R, d), in four groups that stand for the positions of an input.

    Before the first attention: p rows of a, one of each operation, p of b, one of "=". After it: p rows of a, p |ops|
    of the pairs (a, op), then b and "=" of each input.
    """

    def __init__(self, shape: Shape, parameters: Parameters, tokens: Tensor) -> None:
        self.shape, self.parameters = shape, parameters
        p = shape.p
        embed, position = parameters["embed"], parameters["position"]
        self.tokens = tokens.expand(len(embed), *tokens.shape[-2:])
        self.batch = tokens.shape[-2]
        numbers = embed[:, :p]
        self.x = torch.cat(
            [
                numbers + position[:, 0:1],
                embed[:, p + 1 :] + position[:, 1:2],
                numbers + position[:, 2:3],
                embed[:, p : p + 1] + position[:, 3:4],
            ],
            dim=1,
        )

    @property
    def last(self) -> Tensor:
        """The state at "=" (E, B, d)."""
        return self.x[:, -self.batch :]

    def block(self, i: int) -> None:
        """Move all rows that are still needed through block i."""
        w, pre = self.parameters, self.shape.norm == "pre"
        h = layer_norm(self.x, w[f"{i}.norm1.gain"], w[f"{i}.norm1.bias"]) if pre else self.x
        mixed, residual = self._attend(i, h)
        x = linear(mixed, w[f"{i}.out.weight"], w[f"{i}.out.bias"], residual)
        x = x if pre else layer_norm(x, w[f"{i}.norm1.gain"], w[f"{i}.norm1.bias"])
        h = layer_norm(x, w[f"{i}.norm2.gain"], w[f"{i}.norm2.bias"]) if pre else x
        h = linear(h, w[f"{i}.up.weight"], w[f"{i}.up.bias"])
        h = F.gelu(h) if self.shape.activation == "gelu" else F.relu(h)
        x = linear(h, w[f"{i}.down.weight"], w[f"{i}.down.bias"], x)
        self.x = x if pre else layer_norm(x, w[f"{i}.norm2.gain"], w[f"{i}.norm2.bias"])

    def _attend(self, i: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return what attention gathers for the rows that go on, and their residual before it."""
        d, heads = self.shape.width, self.shape.heads
        weight, bias = self.parameters[f"{i}.qkv.weight"], self.parameters[f"{i}.qkv.bias"]
        groups = self._seen(i)
        if i == self.shape.layers - 1:
            groups = groups[3:]  # the last block computes "=" alone
        known = [torch.cat([rows[j] for rows in groups if j < len(rows)], 1) for j in range(LENGTH)]
        own = torch.cat([rows[-1] for rows in groups], 1)
        if i == 0:
            q, k, v = linear(h, weight, bias).split(d, dim=-1)
            return mix(take(q, own), k, v, known, heads), take(self.x, own)
        asking, residual = (x[:, -own.shape[1] :] for x in (h, self.x))
        of_query, of_rest = zip(*(x.split([d, 2 * d], dim=-1) for x in (weight, bias)), strict=True)
        k, v = linear(h, *of_rest).split(d, dim=-1)
        return mix(linear(asking, *of_query), k, v, known, heads), residual

    def _seen(self, i: int) -> list[list[Tensor]]:
        """Return for each group of rows that follow this attention the rows (E, n) that it sees, its own the last."""
        p, n_ops, device = self.shape.p, len(self.shape.ops), self.x.device
        a, op, b = self.tokens[..., 0], self.tokens[..., 1] - (p + 1), self.tokens[..., 2]
        each, pairs, inputs = (torch.arange(n, device=device).expand(len(a), n) for n in (p, p * n_ops, self.batch))
        first, pair = pairs // n_ops, p + pairs
        if i:
            equals = [a, p + a * n_ops + op, p + p * n_ops + inputs, p + p * n_ops + self.batch + inputs]
        else:
            pair = p + pairs % n_ops
            equals = [a, p + op, p + n_ops + b, (2 * p + n_ops) + torch.zeros_like(a)]
        return [[each], [first, pair], equals[:3], equals]


def linear(x: Tensor, weight: Tensor, bias: Tensor, onto: Tensor | None = None) -> Tensor:
    """Return x (E, n, i) times weight (E, i, o) plus bias (E, o), added onto a residual (E, n, o) if there is one."""
    bias = bias.unsqueeze(1)
    return torch.baddbmm(bias, x, weight) if onto is None else (onto + bias).baddbmm_(x, weight)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Return the layer norm of x (E, n, d) with gain and bias (E, d)."""
    if len(gain) == 1:
        return F.layer_norm(x, (x.shape[-1],), gain.squeeze(0), bias.squeeze(0))
    return torch.addcmul(bias.unsqueeze(1), F.layer_norm(x, (x.shape[-1],)), gain.unsqueeze(1))


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Return rows (E, n) of x (E, R, c), for each member its own."""
    members, n = rows.shape
    table = x[0] if members == 1 else x.flatten(0, 1)
    return table.index_select(0, _flat(rows, x.shape[1])).view(members, n, -1)


def _flat(rows: Tensor, size: int) -> Tensor:
    """Return rows (E, n) of E tables of `size` rows as rows (E n,) of the tables one below the other."""
    if len(rows) == 1:
        return rows[0]
    return (rows + size * torch.arange(len(rows), device=rows.device).unsqueeze(1)).flatten()


def mix(q: Tensor, k: Tensor, v: Tensor, known: list[Tensor], heads: int) -> Tensor:
    """Return softmax(q k / sqrt(width of a head)) v (E, n, d) for q (E, n, d) and rows of k and v (E, R, d).

    known : for each position the row of k and v that a query sees there, (E, m) for the last m of the n queries; those
        before them do not see the position. All queries see the first.
    """
    result: Tensor = _Mix.apply(heads, q, k, v, *known)
    return result


class _Mix(torch.autograd.Function):
    """Attention over a few positions, one after the other: what is gathered is used while it is in the cache, not kept.

    Keys and values have gradients of their own, because sums into rows that are not contiguous are slow.
    """

    @staticmethod
    def forward(ctx: Any, heads: int, q: Tensor, k: Tensor, v: Tensor, *known: Tensor) -> Tensor:  # noqa: ANN401
        members, n, d = q.shape
        q = q.view(members, n, heads, -1)
        scores = q.new_full((len(known), members, n, heads), -torch.inf)
        for score, rows in zip(scores, known, strict=True):
            asking = q[:, -rows.shape[1] :]
            torch.sum(take(k, rows).view_as(asking).mul_(asking), -1, out=score[:, -rows.shape[1] :])
        weights = scores.mul_((d // heads) ** -0.5).softmax(0)
        mixed = take(v, known[0]).view_as(q).mul_(weights[0].unsqueeze(-1))
        for weight, rows in zip(weights[1:].unsqueeze(-1), known[1:], strict=True):
            there = mixed[:, -rows.shape[1] :]
            there.addcmul_(weight[:, -rows.shape[1] :], take(v, rows).view_as(there))
        ctx.save_for_backward(q, k, v, weights, *known)
        return mixed.view(members, n, d)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] # noqa: ANN401
        q, k, v, weights, *known = ctx.saved_tensors
        members, n, d = gradient.shape
        gradient = gradient.reshape(q.shape)
        by_weight = torch.zeros_like(weights)
        for of_one, rows in zip(by_weight, known, strict=True):
            there = gradient[:, -rows.shape[1] :]
            torch.sum(take(v, rows).view_as(there).mul_(there), -1, out=of_one[:, -rows.shape[1] :])
        by_score = by_weight.sub_((weights * by_weight).sum(0)).mul_(weights).mul_(q.shape[-1] ** -0.5)
        by_q, by_k, by_v = torch.zeros_like(q), *(x.new_zeros(members * x.shape[1], d) for x in (k, v))
        for rows, weight, score in zip(known, weights.unsqueeze(-1), by_score.unsqueeze(-1), strict=True):
            m = rows.shape[1]
            flat, weight, score = _flat(rows, k.shape[1]), weight[:, -m:], score[:, -m:]
            there = by_q[:, -m:]
            there.addcmul_(score, take(k, rows).view_as(there))
            by_k.index_add_(0, flat, (score * q[:, -m:]).view(-1, d))
            by_v.index_add_(0, flat, (weight * gradient[:, -m:]).view(-1, d))
        return None, by_q.view(members, n, d), by_k.view(k.shape), by_v.view(v.shape), *[None] * len(known)
