"""Batch size: whether small batches grok sooner, and whether by more steps or by more weight decay.

Conventions. Decoupled weight decay shrinks weights by lr wd at every step, whatever the batch: at a fixed number of
samples a small batch takes more steps and is decayed more often. Two arms separate the two:

    WD fixed           at fixed samples (and, read at equal steps, at fixed steps): both differ with the batch
    WD to the batch    weight decay in proportion to the batch: the same decay per sample, only the steps differ

A grok step times the batch is the number of samples it took; times lr wd, the decay it took.
"""

from collections.abc import Sequence

from lmprobe.grokking import plans
from lmprobe.grokking.conditions import Condition, conditions, difference_row, grok_rows, mean_row, paired
from lmprobe.grokking.members import Member
from lmprobe.grokking.setting import DEFAULT, Setting
from lmprobe.grokking.sweep import learning_rows, made_by, not_grokked_notes, task_words
from lmprobe.grokking.trajectory import member_row
from probecore.results import Figure, Result, Row
from probecore.stats.effects import wilson_interval

FIXED, SCALED = "WD fixed", "WD to the batch"


def batch_size(setting: Setting = DEFAULT) -> Result:
    """Train every batch size in both arms and say in which unit small batches are sooner; see `plans.batch_sizes`.

    Returns a `Result` of kind "grok-batch-size": the grok step of each batch in steps, samples and decay, and the
    paired ratio of the smallest batch to the largest.
    """
    asked = plans.batch_sizes(setting.quick, setting.seeds)
    members = setting.train(asked)
    found = conditions(members, asked)
    rows: list[Row] = []
    table: list[Row] = []
    for arm in (FIXED, SCALED):
        here = arms(found)[arm]
        for unit in ("steps", "samples", "decay"):
            for condition in here:
                values = [value for m in condition.members if (value := taken(m, unit)) is not None]
                row = mean_row(f"{unit} to grok, {arm}", condition, "add", values, logarithm=True)
                if len(values) < len(condition.asked):
                    row["value_note"] = row["ci_note"] = without_grok(condition)
                rows.append(row)
                if unit != "decay":
                    table.append({**row, "arm": arm, "batch": condition.spec.batch, "unit": unit})
        rows += fixed_horizon_rows(here, arm)
        rows += ratio_rows(here, arm)
    apart = max(spec.evaluate_every * spec.batch for spec in asked)
    by_unit = {f"by_batch_{unit}": tuple(row for row in table if row["unit"] == unit) for unit in ("steps", "samples")}
    return Result(
        kind="grok-batch-size",
        title=f"Batch size: {task_words(members)}",
        rows=tuple(rows),
        columns=("metric", "condition", "value", "ci_low", "ci_high", "p_value", "n_seeds", "n_of"),
        notes=(
            *not_grokked_notes(found, setting),
            f"a grok step is known up to the evaluation before it, at most {apart:,} samples earlier",
            "ratios are of the smallest batch to the largest, paired by seed; 'WD to the batch' keeps the decay per "
            "sample and is the arm that separates steps from decay",
        ),
        provenance=made_by(setting),
        tables={
            "members": tuple(member_row(m) for m in members),
            "learning": tuple(learning_rows(found)),
            "conditions": tuple(grok_rows(found)),
            **by_unit,
        },
        figures=tuple(
            Figure(f"{unit}-to-grok", "lines", f"by_batch_{unit}", f"{unit.capitalize()} until grokked",
                   "Geometric mean over the seeds that grokked, t interval of the logarithms.",
                   {"x": "batch", "y": "value", "series": "arm", "x_title": "Batch", "y_title": unit.capitalize(),
                    "log": True, "zero": True})
            for unit in ("steps", "samples")
        ),
    )  # fmt: skip


def arms(found: Sequence[Condition]) -> dict[str, list[Condition]]:
    """Return the conditions of both arms by batch; a batch at which the arms meet stands in both."""
    ordered = sorted(found, key=lambda c: c.spec.batch)
    rate = {c.spec.batch for c in ordered}
    middle = next(b for b in rate if sum(c.spec.batch == b for c in ordered) == 1)
    return {
        FIXED: [c for c in ordered if c.spec.weight_decay == plans.HEAD],
        SCALED: [c for c in ordered if abs(c.spec.weight_decay - plans.HEAD * c.spec.batch / middle) < 1e-9],
    }


def taken(member: Member, unit: str) -> float | None:
    """Return the steps, samples, or sum of lr x weight decay until a member grokked; None where it did not."""
    return None if member.phases.grok is None else least_taken(member, unit)


def least_taken(member: Member, unit: str) -> float:
    """Return the same; of a member that has not grokked what it has taken so far, the least that it can be."""
    spec, step = member.spec, member.phases.grok or member.step
    return step * {"steps": 1.0, "samples": float(spec.batch), "decay": spec.lr * spec.weight_decay}[unit]


def without_grok(condition: Condition) -> str:
    """Say which members of a condition have no grok step."""
    without = [member for member in condition.members if member.phases.grok is None]
    going = sum(not member.status for member in without)
    counts = {"have not been trained": condition.n_absent, "are under way": going, "did not grok": len(without) - going}
    return "; ".join(f"{n} of {len(condition.asked)} {what}" for what, n in counts.items() if n)


def fixed_horizon_rows(found: Sequence[Condition], arm: str) -> list[Row]:
    """Return which share of members grokked within the steps of the largest batch: the reading at fixed steps.

    A member under way that may still do so does not count.
    """
    horizon = min(c.spec.steps for c in found)
    rows = []
    for condition in found:
        known = [m for m in condition.members if m.status or m.step >= horizon or m.phases.grok is not None]
        values = [float((m.phases.grok or horizon + 1) <= horizon) for m in known]
        row = mean_row(f"share grokked within {horizon} steps, {arm}", condition, "add", values)
        if values:
            low, high = wilson_interval(int(sum(values)), len(values))
            row |= {"ci_low": low, "ci_high": high, "ci_note": "Wilson interval over seeds"}
        rows.append(row)
    return rows


def ratio_rows(found: Sequence[Condition], arm: str) -> list[Row]:
    """Return the ratio of the smallest batch to the largest in every unit, paired by seed."""
    rows = []
    for unit in ("steps", "samples"):
        pairs = paired(found[0], found[-1], lambda m, unit=unit: taken(m, unit))  # type: ignore[misc]
        rows.append(difference_row(f"{unit} to grok, {arm}", found[0], found[-1], pairs, "add", ratio=True))
    return rows
