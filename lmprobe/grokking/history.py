"""What happened during training: evaluations on all inputs, and the steps at which a member memorised and generalised.

Conventions. An evaluation is a flat record: step, train_acc, val_acc, train_loss, val_loss, val_acc_<op> for each
operation, logit_sd (over inputs). Accuracy of held-out inputs is the smallest over operations wherever a member is
asked whether it generalises. A step found on a grid of evaluations is known up to one interval: it lies in
(step - spacing, step]. An evaluation inside a loss spike (training accuracy below .999 after the member had memorised)
is never analysed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.grokking.spec import Spec

Evaluation = Mapping[str, Any]

GROK, MEMORISE, CLEAN = 0.99, 0.99, 0.999
COLLAPSED_BELOW = 1e-3  # standard deviation of logits over inputs: the same answer to everything
SNAPSHOTS = (0, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000, 10_000, 15_000, 20_000, 30_000, 50_000)


@dataclass(frozen=True)
class Phases:
    """Steps of a member's history; None where it did not get there.

    memorise : first evaluation with training accuracy >= .99. half, nearly, grok : held-out accuracy >= .5, .95, .99.
    steady : first of 3 consecutive evaluations >= .99. spacing : steps between evaluations.
    """

    memorise: int | None
    half: int | None
    nearly: int | None
    grok: int | None
    steady: int | None
    spacing: int


def held_out(evaluation: Evaluation) -> float:
    """Return the held-out accuracy of the worst operation."""
    return float(min(value for name, value in evaluation.items() if name.startswith("val_acc_")))


def phases(history: Sequence[Evaluation], spacing: int) -> Phases:
    """Return the steps at which a member memorised and generalised."""

    def first(reached: Sequence[bool]) -> int | None:
        return next((int(e["step"]) for e, yes in zip(history, reached, strict=True) if yes), None)

    accuracy = [held_out(e) for e in history]
    above = [a >= GROK for a in accuracy]
    run = [all(above[i : i + 3]) and i + 3 <= len(above) for i in range(len(above))]
    return Phases(
        first([e["train_acc"] >= MEMORISE for e in history]),
        first([a >= 0.5 for a in accuracy]),
        first([a >= 0.95 for a in accuracy]),
        first(above),
        first(run),
        spacing,
    )


def clean(evaluation: Evaluation) -> bool:
    """Tell whether an evaluation lies outside loss spikes: the member still knows what it was trained on."""
    return float(evaluation["train_acc"]) >= CLEAN


def spikes(history: Sequence[Evaluation]) -> list[int]:
    """Return the steps of evaluations inside a loss spike: below .999 on training inputs after having been there."""
    found, known = [], False
    for evaluation in history:
        if known and not clean(evaluation):
            found.append(int(evaluation["step"]))
        known = known or clean(evaluation)
    return found


def wants_snapshot(history: Sequence[Evaluation], taken: Sequence[int]) -> bool:
    """Tell whether the last evaluation is to be kept: the first clean one at or after each of `SNAPSHOTS`."""
    last, grok = history[-1], phases(history, 1).grok
    if grok is None or not clean(last):
        return False
    newest = max(offset for offset in SNAPSHOTS if grok + offset <= last["step"])
    return not any(step >= grok + newest for step in taken)


def stop_reason(spec: Spec, history: Sequence[Evaluation]) -> str | None:
    """Return why a member stops after the last evaluation, None where it goes on.

    "grokked": `extra` steps after the grok step, outside a spike. "steps": the limit. "stuck": it does not even
    memorise. "collapsed": two evaluations after step 200 at which it answers everything alike. "diverged": no number.
    """
    last, grok = history[-1], phases(history, 1).grok
    step = int(last["step"])
    if not np.isfinite(last["train_loss"]):
        return "diverged"
    if grok is not None and step >= grok + spec.extra and clean(last):
        return "grokked"
    flat = [e for e in history[-2:] if e["step"] >= 200 and e["logit_sd"] < COLLAPSED_BELOW]
    if len(flat) == 2:
        return "collapsed"
    if spec.stuck_after and step >= spec.stuck_after and max(e["train_acc"] for e in history) < 0.2:
        return "stuck"
    return "steps" if step >= spec.steps else None


def evaluate(spec: Spec, step: int, logits: Tensor, answers: Tensor, trained: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the evaluation of a member from its logits (N, p) on all inputs; losses in nats, averaged in float64."""
    losses = F.cross_entropy(logits, answers, reduction="none").double().cpu().numpy()
    correct = (logits.argmax(-1) == answers).cpu().numpy()
    operation = spec.shape.task.operation
    row = {
        "step": step,
        "train_acc": float(correct[trained].mean()),
        "val_acc": float(correct[~trained].mean()),
        "train_loss": float(losses[trained].mean()),
        "val_loss": float(losses[~trained].mean()),
        "logit_sd": float(logits.std(0).mean()),
    }
    for i, op in enumerate(spec.ops):
        row[f"val_acc_{op}"] = float(correct[~trained & (operation == i)].mean())
    return row
