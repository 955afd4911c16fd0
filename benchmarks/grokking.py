"""Speed of a training step of grokking members beside a plain loop and torch.func, in one run on one thread.

A step is forward, backward and AdamW on a batch of 512 of `a + b =` modulo 97, read at the last position only.
    ours    `lmprobe.grokking.pack.Pack`: distinct states once, the last block at the last position, flat AdamW
    loop    nn.Module (nn.Linear, scaled_dot_product_attention, nn.GELU) and torch.optim.AdamW, one member
    foreach, fused    the same with AdamW(foreach=True) and AdamW(fused=True), what an expert would choose
    vmap    torch.func.functional_call and vmap over stacked members, gradients by grad, our AdamW
    floor   the matrix products of our step alone, forward and backward, at their sizes

All have the same weights; before timing, the gradient of ours is compared with the loop's. CPU time
(time.process_time), the fastest of --repeats blocks taken in turn, so that a busy machine disturbs all alike; malloc
keeps freed memory for all of them. Figures are per step of one member.

Run:     python benchmarks/grokking.py [--repeats 8] [--steps 10] [--size 2x128] [--size 1x64]
"""

import argparse
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

from lmprobe.grokking.data import batches
from lmprobe.grokking.model import initial, views
from lmprobe.grokking.optimiser import AdamW
from lmprobe.grokking.pack import Pack
from lmprobe.grokking.spec import Spec
from lmprobe.grokking.training import _one_thread

MEMBERS = 4  # of the vmapped ensemble


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        n, s, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, s, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Plain(nn.Module):
    def __init__(self, spec):
        super().__init__()
        d, task = spec.width, spec.shape.task
        self.embed, self.position = nn.Embedding(task.vocabulary, d), nn.Parameter(torch.zeros(4, d))
        self.blocks = nn.ModuleList(Block(d, spec.heads) for _ in range(spec.layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, spec.p)

    def forward(self, tokens):
        x = self.embed(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -1]))


def load(model, spec):
    """Give a plain model the initial weights of a member."""
    ours = {k: v[0] for k, v in views(torch.from_numpy(initial(spec))[None], spec.shape).items()}
    for name, parameter in model.named_parameters():
        parameter.data.copy_(ours_of(name, ours))
    return model


def ours_of(name, ours):
    """Return the member's parameter of a plain model's name; a linear map is stored the other way round."""
    short = name.removeprefix("blocks.")
    if "norm" in short:
        return ours[short.replace("weight", "gain")]
    if short == "embed.weight":
        return ours["embed"]
    value = ours[short]
    return value.T if short.endswith("weight") else value


def loop(spec, rows, **kind):
    model = load(Plain(spec), spec)
    optimiser = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=(spec.beta1, spec.beta2),
                                  weight_decay=spec.weight_decay, **kind)  # fmt: skip
    tokens, answers = (torch.from_numpy(a) for a in (spec.shape.task.tokens, spec.shape.task.answers))

    def run(steps):
        for i in steps:
            optimiser.zero_grad()
            F.cross_entropy(model(tokens[rows[i]]), answers[rows[i]]).backward()
            optimiser.step()

    return model, run


def vmapped(spec, rows):
    model = load(Plain(spec), spec)
    stacked = {k: torch.stack([v.detach()] * MEMBERS) for k, v in model.named_parameters()}
    tokens, answers = (torch.from_numpy(a) for a in (spec.shape.task.tokens, spec.shape.task.answers))
    mean, square = ({k: torch.zeros_like(v) for k, v in stacked.items()} for _ in range(2))
    optimiser = AdamW(spec.beta1, spec.beta2, spec.eps, spec.warmup)

    def loss(parameters, x, y):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    step_of_all = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None))

    def run(steps):
        for i in steps:
            found = step_of_all(stacked, tokens[rows[i]], answers[rows[i]])
            for k, g in found.items():
                flat = (t.view(MEMBERS, -1) for t in (stacked[k], g.contiguous(), mean[k], square[k]))
                optimiser.update(*flat, i + 1, [spec.lr] * MEMBERS, [spec.weight_decay] * MEMBERS)

    return run


def products(spec):
    """Return (rows, inputs, outputs) of every matrix product of our forward pass, for addition alone."""
    d, p, b = spec.width, spec.p, spec.batch
    start, later = 2 * p + 2, 2 * p + 2 * b
    found = []
    for i in range(spec.layers):
        last, known = i == spec.layers - 1, later if i else start
        found += [(known, d, 2 * d), (b, d, d)] if i and last else [(known, d, 3 * d)]
        rows = b if last else later
        found += [(rows, d, d), (rows, d, 4 * d), (rows, 4 * d, d)]
    return [*found, (b, d, p)]


def floor(spec):
    arrays = [tuple(torch.randn(*s) for s in ((n, i), (i, o), (n, o))) for n, i, o in products(spec)]

    def run(steps):
        for _ in steps:
            for x, w, g in arrays:
                torch.mm(x, w), torch.mm(g, w.T), torch.mm(x.T, g)

    return run


def largest_difference(spec, rows):
    """Return the largest difference of gradients between ours and the loop, relative to the largest gradient."""
    pack = Pack([spec], torch.device("cpu"))
    pack._gradients(torch.from_numpy(rows[:1]), 1)
    model, _ = loop(spec, torch.from_numpy(rows))
    tokens, answers = (torch.from_numpy(a) for a in (spec.shape.task.tokens, spec.shape.task.answers))
    F.cross_entropy(model(tokens[rows[0]]), answers[rows[0]]).backward()
    ours = {k: v[0] for k, v in views(pack.gradient, spec.shape).items()}
    gaps = [(p.grad - ours_of(n, ours)).abs().max().item() for n, p in model.named_parameters()]
    return max(gaps) / pack.gradient.abs().max().item()


def measure(layers, width, repeats, steps):
    spec = Spec(layers=layers, width=width)
    rows = batches(spec, 0, 32)
    gap = largest_difference(spec, rows)
    assert gap < 1e-4, f"ours and the loop have different gradients: {gap:.1e}"
    pack, tensor = Pack([spec], torch.device("cpu")), torch.from_numpy(rows)
    done = [0]

    def ours(which):
        pack.run(done[0], len(which))
        done[0] += len(which)

    runs = {
        "ours": (ours, 1),
        "loop": (loop(spec, tensor)[1], 1),
        "foreach": (loop(spec, tensor, foreach=True)[1], 1),
        "fused": (loop(spec, tensor, fused=True)[1], 1),
        "vmap": (vmapped(spec, tensor), MEMBERS),
        "floor": (floor(spec), 1),
    }
    best = dict.fromkeys(runs, math.inf)
    for repeat in range(repeats + 1):
        for name, (run, members) in runs.items():
            start = time.process_time()
            run(range(steps))
            if repeat:  # the first block warms up
                best[name] = min(best[name], (time.process_time() - start) / steps / members)
    flops = 6 * sum(n * i * o for n, i, o in products(spec))
    speed = flops / best["floor"] / 1e9
    print(f"\n{layers} layers of width {width}, {spec.shape.n_parameters:,} parameters, batch {spec.batch}")
    print(f"gradients agree to {gap:.0e}; {flops / 1e9:.2f} Gflop a step at {speed:.0f} Gflop/s")
    print(f"{'':10}{'CPU ms a step':>15}{'steps a CPU s':>15}{'of the loop':>13}")
    for name, seconds in best.items():
        print(f"{name:10}{1e3 * seconds:>15.1f}{1 / seconds:>15.1f}{seconds / best['loop']:>13.2f}")
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=8, help="blocks of steps, of which the fastest counts")
    parser.add_argument("--steps", type=int, default=10, help="steps of a block, at most 32")
    parser.add_argument("--size", action="append", help="LAYERSxWIDTH, more than once (default 2x128 and 1x64)")
    asked = parser.parse_args()
    with _one_thread(torch.device("cpu")):
        for size in asked.size or ["2x128", "1x64"]:
            measure(*map(int, size.split("x")), asked.repeats, min(asked.steps, 32))


if __name__ == "__main__":
    main()
