"""The steps of a GPU in the order in which a CUDA graph is captured and replayed, on a CPU with a fake graph."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmprobe.grokking.data import batches
from lmprobe.grokking.model import initial
from lmprobe.grokking.pack import Pack
from lmprobe.grokking.spec import Spec

CPU = torch.device("cpu")
SPEC = Spec(p=13, width=16, heads=2, fraction=0.6, batch=64, init="torch", adversarial_k=3, adversarial_after=4,
            adversarial_every=3)  # fmt: skip


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
@pytest.mark.parametrize("basis", ["class-mean", "random"])
def test_replayed_steps_are_the_steps(adversarial: float, basis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members with their own rate and decay, 5 steps and 4 more, with steps of the other loss in between.

    Against steps on the CPU path. AdamW on a device rounds in another order, so weights differ by rounding, which
    moves a parameter without a gradient (the bias of keys) by up to lr a step; the answers differ by less than 1e-3.
    A step left out, made twice or made with another member's rate moves them by more than 1e-2.
    """
    specs = [
        dataclasses.replace(SPEC, seed=e, lr=lr, weight_decay=wd, adversarial=adversarial, adversarial_basis=basis)
        for e, (lr, wd) in enumerate([(1e-3, 1.0), (4e-3, 0.1)])
    ]
    on_cpu, on_device = Pack(specs, CPU), Pack(specs, CPU)
    stream = SimpleNamespace(wait_stream=lambda _: None)
    replay = SimpleNamespace(replay=lambda: on_device._step_on_device(on_device._buffer, 0))
    fakes = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": nullcontext, "graph": nullcontext,
             "CUDAGraph": lambda: replay}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for done, n_steps in ((0, 5), (5, 4)):
        on_cpu.run(done, n_steps)
        rows = np.stack([batches(spec, done, n_steps) for spec in specs], axis=1)
        on_device._run_graph(done, torch.from_numpy(rows))
    assert (on_device.read()[0] - on_cpu.read()[0]).abs().max() < 1e-3
    moved = on_cpu.weights - torch.from_numpy(np.stack([initial(spec) for spec in specs]))
    assert (moved.abs().amax(1) > 3e-3).all()
