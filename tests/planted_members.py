"""Grokking members for tests: specs and plans that train in seconds, members whose history and points are made up."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmprobe.grokking import plans
from lmprobe.grokking.members import Member, member_folder, write_state
from lmprobe.grokking.model import initial
from lmprobe.grokking.spec import Spec, grid
from lmprobe.grokking.trajectory import Point

TINY = Spec(p=13, ops=("add", "mul"), layers=2, width=16, heads=2, fraction=0.6, batch=64, init="torch",
            steps=60, evaluate_every=20, extra=0)  # fmt: skip
SMALL = Spec(p=31, layers=1, width=64, fraction=0.8, batch=256, steps=1500, stuck_after=0, evaluate_every=50, extra=200)
NOTHING = Spec(p=5, layers=1, width=16, fraction=0.8, batch=8, steps=20, stuck_after=0, evaluate_every=10, extra=10)


def member(spec: Spec, grok: int | None, *, last: int = 2000, accuracy: float = 0.5, folder: str = "x") -> Member:
    """A member whose held-out accuracy is 1 from `grok` on, `accuracy` before it."""
    history = []
    for step in range(100, last + 1, 100):
        value = 1.0 if grok is not None and step >= grok else accuracy
        history.append(
            {"step": step, "train_acc": 1.0, "val_acc": value, "train_loss": 0.1, "val_loss": 1.0, "logit_sd": 1.0,
             **{f"val_acc_{op}": value for op in spec.ops}}
        )  # fmt: skip
    kept = tuple(range(grok, last + 1, 100)) if grok is not None else ()
    return Member(spec, last, "grokked" if grok is not None else "steps", tuple(history), kept, Path(folder))


def planted(
    root: Path, spec: Spec, grok: int | None, *, last: int = 2000, accuracy: float = 0.5, under_way: bool = False
) -> Member:
    """Write such a member with its first weights; it was never outside a loss spike, so that nothing is measured."""
    made = member(spec, grok, last=last, accuracy=accuracy)
    history = tuple({**evaluation, "train_acc": 0.9} for evaluation in made.history)
    status, folder = "" if under_way else made.status, member_folder(root, spec)
    made = replace(made, status=status, history=history, snapshots=(), folder=folder)
    write_state(made, {"weights": torch.from_numpy(initial(spec))[None]})
    return made


def point(of: Member, since: int, *, overlap: float | None = None, **numbers: float | None) -> Point:
    """A point with the same record for every operation."""
    record = {"k_max": 63, "accuracy": 1.0, **numbers}
    rows = () if overlap is None else tuple({"k": k, "overlap": overlap, "chance": k / 64} for k in (10, 30))
    step = (of.phases.grok or of.step) + since
    return Point(of, step, {op: dict(record) for op in of.spec.ops}, {}, rows)


def tiny_plans(patch: pytest.MonkeyPatch) -> None:
    """Let every plan hold members of 20 steps that learn nothing, with the conditions that the claims are read off."""
    both = replace(NOTHING, ops=plans.BOTH)

    def sweep(quick: bool, seeds: Iterable[int]) -> tuple[Spec, ...]:
        seeds = list(seeds)
        found = [*grid(NOTHING, weight_decay=[0.0, 0.1, 1.0], seed=seeds)]
        found += grid(NOTHING, fraction=[0.7, 0.9], seed=seeds)
        found += grid(replace(NOTHING, init="fan-in"), weight_decay=[0.0, 0.1, 1.0], seed=seeds)
        for layers, width in ((1, 64), (2, 64)):
            found += grid(replace(NOTHING, layers=layers, width=width), seed=seeds)
        return tuple({s.key: s for s in found}.values())

    def capacity(quick: bool, seeds: Iterable[int]) -> tuple[Spec, ...]:
        seeds = list(seeds)
        found = [*grid(both, seed=seeds), *grid(replace(both, layers=2), seed=seeds)]
        return (*found, *grid(replace(both, width=32), init=["normal:0.02", "fan-in"], seed=seeds))

    def batch_sizes(quick: bool, seeds: Iterable[int]) -> tuple[Spec, ...]:
        seeds, found = list(seeds), []
        for size in (4, 8, 16):
            for decay in (1.0, size / 8):
                found += grid(replace(NOTHING, batch=size, weight_decay=decay), seed=seeds)
        return tuple({s.key: s for s in found}.values())

    patch.setattr(plans, "base", lambda quick: NOTHING)
    patch.setattr(plans, "base_of_two", lambda quick: both)
    patch.setattr(plans, "sweep", sweep)
    patch.setattr(plans, "capacity", capacity)
    patch.setattr(plans, "batch_sizes", batch_sizes)
