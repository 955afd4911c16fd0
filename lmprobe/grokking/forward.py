"""The forward pass of a pack, exact and without repeated work.

Conventions. Parameters by name as (E, *shape) (`model.views`), tokens (E, B, 4) or (B, 4) for all members, logits
(E, B, p) at the last position, the only one that is read. Causal attention, learned positions, heads of width d / H.

The model is causal, so the state of position 0 takes p values (one for each a), that of position 1 p |ops|, whatever
the batch; before the first attention b takes p values and "=" one. Such states are computed once, as rows of a table,
and gathered. In every block all distinct rows go through one matrix product, and the last block computes the last
position only. For 2 layers that is about 37 d² multiply-adds an input instead of 96 d².

With E = 1 matrix products are plain ones; with more members they are batched. The two differ by rounding alone, so on a
CPU, where batching gains nothing, members are always computed one by one and do not depend on their pack.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmprobe.grokking.spec import Shape

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
        p, n_ops = shape.p, len(shape.ops)
        embed, position = parameters["embed"], parameters["position"]
        self.members = embed.shape[0]
        if tokens.dim() == 2:
            tokens = tokens.expand(self.members, *tokens.shape)
        self.a, self.op, self.b = tokens[..., 0], tokens[..., 1] - (p + 1), tokens[..., 2]
        self.batch = self.a.shape[1]
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
        self.sizes = [p, n_ops, p, 1]

    @property
    def last(self) -> Tensor:
        """The state at "=" (E, B, d)."""
        return self.x[:, -self.batch :]

    def block(self, i: int) -> None:
        """Move all rows that are still needed through block i."""
        w, pre = self.parameters, self.shape.norm == "pre"
        last = i == self.shape.layers - 1
        h = layer_norm(self.x, w[f"{i}.norm1.gain"], w[f"{i}.norm1.bias"]) if pre else self.x
        mixed, residual = self._attend(i, h, last)
        x = residual + linear(mixed, w[f"{i}.out.weight"], w[f"{i}.out.bias"])
        x = x if pre else layer_norm(x, w[f"{i}.norm1.gain"], w[f"{i}.norm1.bias"])
        h = layer_norm(x, w[f"{i}.norm2.gain"], w[f"{i}.norm2.bias"]) if pre else x
        h = linear(h, w[f"{i}.up.weight"], w[f"{i}.up.bias"])
        h = F.gelu(h) if self.shape.activation == "gelu" else F.relu(h)
        x = x + linear(h, w[f"{i}.down.weight"], w[f"{i}.down.bias"])
        self.x = x if pre else layer_norm(x, w[f"{i}.norm2.gain"], w[f"{i}.norm2.bias"])
        self.sizes = [self.shape.p, self.shape.p * len(self.shape.ops), self.batch, self.batch]

    def _attend(self, i: int, h: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Return what attention gathers for the rows that go on, and their residual before it."""
        d, heads = self.shape.width, self.shape.heads
        weight, bias = self.parameters[f"{i}.qkv.weight"], self.parameters[f"{i}.qkv.bias"]
        if i and last:  # nobody but "=" asks
            kv = linear(h, weight[..., d:], bias[..., d:])
            asked = linear(h[:, -self.batch :], weight[..., :d], bias[..., :d])
            return mix(asked, self._of_inputs(i, kv), heads), self.last
        q, kv = linear(h, weight, bias).split([d, 2 * d], dim=-1)
        known = self._of_inputs(i, kv)
        if last:
            asked, residual = (self._of_inputs(i, rows)[3] for rows in (q, self.x))
            return mix(asked, known, heads), residual
        asking, staying = self._going_on(i, q), self._going_on(i, self.x)
        to_equals, to_b = mix(asking[3], known, heads), mix(asking[2], known[:3], heads)
        to_pair = mix(asking[1], self._of_pairs(i, kv), heads)
        to_a = kv[:, : self.shape.p, d:]  # position 0 sees itself alone
        return torch.cat([to_a, to_pair, to_b, to_equals], dim=1), torch.cat(staying, dim=1)

    def _of_inputs(self, i: int, rows: Tensor) -> list[Tensor]:
        """Return the rows (E, B, c) of the four positions of each input."""
        a, second, b, equals = rows.split(self.sizes, dim=1)
        if i:
            return [take(a, self.a), take(second, self.a * len(self.shape.ops) + self.op), b, equals]
        op = self._for_each(second, self.batch) if len(self.shape.ops) == 1 else take(second, self.op)
        return [take(a, self.a), op, take(b, self.b), self._for_each(equals, self.batch)]

    def _of_pairs(self, i: int, rows: Tensor) -> list[Tensor]:
        """Return the rows (E, p |ops|, c) of a and of the operation for each pair (a, op)."""
        a, second, _, _ = rows.split(self.sizes, dim=1)
        p, n_ops, c = self.shape.p, len(self.shape.ops), rows.shape[-1]
        first = a.unsqueeze(2).expand(-1, -1, n_ops, -1).reshape(self.members, p * n_ops, c)
        return [first, second if i else second.repeat(1, p, 1)]

    def _going_on(self, i: int, rows: Tensor) -> list[Tensor]:
        """Return the rows of the four groups that follow this attention."""
        if i:
            return list(rows.split(self.sizes, dim=1))
        a, second, b, equals = rows.split(self.sizes, dim=1)
        return [a, second.repeat(1, self.shape.p, 1), take(b, self.b), self._for_each(equals, self.batch)]

    def _for_each(self, row: Tensor, n: int) -> Tensor:
        return row.expand(-1, n, -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x (E, n, i) times weight (E, i, o) plus bias (E, o)."""
    if len(weight) == 1:
        return torch.addmm(bias.squeeze(0), x.squeeze(0), weight.squeeze(0)).unsqueeze(0)
    return torch.baddbmm(bias.unsqueeze(1), x, weight)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Return the layer norm of x (E, n, d) with gain and bias (E, d)."""
    if len(gain) == 1:
        return F.layer_norm(x, (x.shape[-1],), gain.squeeze(0), bias.squeeze(0))
    return torch.addcmul(bias.unsqueeze(1), F.layer_norm(x, (x.shape[-1],)), gain.unsqueeze(1))


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Return rows (E, n) of x (E, R, c), for each member its own."""
    members, size, width = x.shape
    if members == 1:
        return _gathered(rows, x.squeeze(0))
    first = torch.arange(members, device=x.device).unsqueeze(1) * size
    return _gathered(rows + first, x.reshape(members * size, width))


def _gathered(rows: Tensor, table: Tensor) -> Tensor:
    found: Tensor = F.embedding(rows, table)
    return found


def mix(q: Tensor, keys_and_values: list[Tensor], heads: int) -> Tensor:
    """Return softmax(q k / sqrt(width of a head)) v (E, n, d) over a list of (E, n, 2 d) keys and values."""
    result: Tensor = _Mix.apply(heads, q, *keys_and_values)
    return result


class _Mix(torch.autograd.Function):
    """Attention of one position over a few: sums over heads and positions without copies of what is summed."""

    @staticmethod
    def forward(ctx: Any, heads: int, q: Tensor, *known: Tensor) -> Tensor:  # noqa: ANN401
        members, n, d = q.shape
        by_head = (members, n, heads, d // heads)
        scaled = (q * (d // heads) ** -0.5).reshape(by_head)
        parts = [kv.view(members, n, 2, heads, d // heads) for kv in known]
        weights = torch.stack([(scaled * kv[:, :, 0]).sum(-1) for kv in parts]).softmax(0)
        mixed = weights[0].unsqueeze(-1) * parts[0][:, :, 1]
        for weight, kv in zip(weights[1:], parts[1:], strict=True):
            mixed.addcmul_(weight.unsqueeze(-1), kv[:, :, 1])
        ctx.save_for_backward(scaled, weights, *parts)
        return mixed.view(members, n, d)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] # noqa: ANN401
        scaled, weights, *parts = ctx.saved_tensors
        members, n, _, width = scaled.shape
        gradient = gradient.reshape(scaled.shape)
        by_weight = torch.stack([(gradient * kv[:, :, 1]).sum(-1) for kv in parts])
        by_score = weights * (by_weight - (weights * by_weight).sum(0))
        found, by_query = [], torch.zeros_like(scaled)
        for kv, weight, score in zip(parts, weights.unsqueeze(-1), by_score.unsqueeze(-1), strict=True):
            by_kv = torch.empty_like(kv)
            torch.mul(score, scaled, out=by_kv[:, :, 0])
            torch.mul(weight, gradient, out=by_kv[:, :, 1])
            by_query.addcmul_(score, kv[:, :, 0])
            found.append(by_kv.view(members, n, -1))
        return None, by_query.mul_(width**-0.5).view(members, n, -1), *found
