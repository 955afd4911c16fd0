"""Grokking members for tests: specs that train in seconds, and members whose history and points are made up."""

from pathlib import Path

from lmprobe.grokking.members import Member
from lmprobe.grokking.spec import Spec
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


def point(of: Member, since: int, *, overlap: float | None = None, **numbers: float | None) -> Point:
    """A point with the same record for every operation."""
    record = {"k_max": 63, "accuracy": 1.0, **numbers}
    rows = () if overlap is None else tuple({"k": k, "overlap": overlap, "chance": k / 64} for k in (10, 30))
    step = (of.phases.grok or of.step) + since
    return Point(of, step, {op: dict(record) for op in of.spec.ops}, {}, rows)
