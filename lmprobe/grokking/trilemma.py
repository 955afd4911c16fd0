"""Trilemma: separability, robustness and efficiency of every trained model on one plot.

Conventions. The log claims that only two of three can be had. It defines none of them; here, at the same time after
grokking, averaged over a member's operations,

    separability   what the other operation keeps of its accuracy when one is removed to below half (1: all of it);
                   a member of one operation has none
    robustness     k@95, the number of its own directions that must be removed to cost 5 % of the accuracy
    efficiency     answers known per parameter: held-out accuracy times the number of inputs over parameters

"Pick two" would show as a negative rank correlation between separability and robustness among members of two
operations, and no member high in all three. Members that did not grok have none of these and are counted.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmprobe.grokking import plans
from lmprobe.grokking.conditions import Condition, conditions, mean_row
from lmprobe.grokking.measures import K_MAX
from lmprobe.grokking.members import read_members
from lmprobe.grokking.robustness import bootstrap, rank_correlation
from lmprobe.grokking.setting import DEFAULT, Setting
from lmprobe.grokking.spec import Spec
from lmprobe.grokking.sweep import made_by, not_grokked_notes, task_words
from lmprobe.grokking.trajectory import AFTER, Point, at_phase, measured, phase_note
from probecore.errors import DesignError
from probecore.results import Figure, Result, Row

SIDES = ("separability", "robustness", "efficiency")


def trilemma(
    setting: Setting = DEFAULT,
    *,
    run: str | Path | None = None,
    k_max: int = K_MAX,
    after: int = AFTER,
) -> Result:
    """Set the three numbers of every member side by side; see the module.

    run : a folder of members; None trains those of `multitask` and `adversarial`.

    Returns a `Result` of kind "grok-trilemma". Raises `DesignError` where no member grokked.
    """
    members = setting.train(plan(setting)) if run is None else read_members(run)
    at = at_phase(measured(members, after=after, k_max=k_max, jobs=setting.processes, quiet=setting.quiet), after)
    if not at:
        raise DesignError(f"the three sides need members that grokked; none of {len(members)} did: train longer")
    found = conditions(members, plan(setting) if run is None else None)
    rows: list[Row] = []
    for side in SIDES:
        for condition in found:
            values = [v for p in condition.points(at) if (v := sides(p)[side]) is not None]
            if values or condition.points(at):
                name = "answers per parameter (efficiency)" if side == "efficiency" else side
                row = mean_row(name, condition, "+".join(condition.spec.ops), values)
                if not values:
                    row["value_note"] = row["ci_note"] = "one operation has no other to be separate from"
                rows.append(row)
    n_of = len({spec.seed for c in found for spec in c.asked if len(spec.ops) == 2})
    rows += pair_rows(list(at.values()), setting.seed, n_of)
    warning = phase_note(list(at.values()))
    table = tuple(_member_rows(found, at))
    return Result(
        kind="grok-trilemma",
        title=f"Separability, robustness, efficiency: {task_words(members)}",
        rows=tuple(rows),
        columns=("metric", "condition", "op", "value", "ci_low", "ci_high", "lowest", "highest", "n_seeds", "n_of"),
        notes=(
            *not_grokked_notes(found, setting),
            *([warning] if warning else []),
            "the log does not define its three sides; docs/grokking.md has the definitions used here",
            "correlations are over members that grokked on two operations, intervals from a bootstrap of seeds; "
            "conditions differ in more than one side, so they say what goes together, not what causes what",
        ),
        provenance=made_by(setting, k_max=k_max, after=after),
        tables={"members": table},
        figures=(
            Figure("trilemma", "scatter", "members", "Separability and robustness of every member of two operations",
                   "One point a member; to the upper right it would be separable and robust.",
                   {"x": "separability", "y": "robustness", "series": "condition", "x_title": "Separability",
                    "y_title": "k@95"}),
            Figure("efficiency", "scatter", "members", "Efficiency and robustness of every member",
                   "One point a member, single operations among them.",
                   {"x": "efficiency", "y": "robustness", "series": "condition", "x_title": "Answers per parameter",
                    "y_title": "k@95"}),
        ),
    )  # fmt: skip


def plan(setting: Setting) -> tuple[Spec, ...]:
    """Return the members of `multitask` and of `adversarial`."""
    return (*plans.multitask(setting.quick, setting.seeds), *plans.adversarial(setting.quick, setting.seeds))


def sides(point: Point) -> dict[str, float | None]:
    """Return the three numbers of a point; None where it has none."""
    spec = point.member.spec
    kept = [point.value("collateral_k50", op) for op in spec.ops] if len(spec.ops) == 2 else []
    known = [value for value in kept if value is not None]
    k95 = [value for op in spec.ops if (value := point.value("k95", op)) is not None]
    accuracy = float(np.mean([point.value("accuracy", op) or 0.0 for op in spec.ops]))
    return {
        "separability": float(np.mean(known)) if known and len(known) == len(kept) else None,
        "robustness": float(np.mean(k95)) if len(k95) == len(spec.ops) else None,
        "efficiency": accuracy * spec.shape.task.n_inputs / spec.shape.n_parameters,
    }


def pair_rows(points: Sequence[Point], seed: int, n_of: int) -> list[Row]:
    """Return rank correlations of each pair of sides over the members of two operations; n_of : seeds asked for."""
    both = [p for p in points if len(p.member.spec.ops) == 2]
    records = [r for r in (sides(p) for p in both) if all(value is not None for value in r.values())]
    seeds = np.array([p.member.spec.seed for p in both if all(v is not None for v in sides(p).values())])
    rows: list[Row] = []
    for i, first in enumerate(SIDES):
        for second in SIDES[i + 1 :]:
            x, y = (np.array([float(r[side] or 0.0) for r in records]) for side in (first, second))
            row: Row = {"metric": f"Spearman of {first} and {second}", "condition": "members of two operations",
                        "op": "add | mul", "n_members": len(records), "p_value": None,
                        "p_note": "conditions were chosen, not drawn: nothing to exchange"}  # fmt: skip
            few = len(records) < 5 or len(np.unique(seeds)) < 3
            one = np.zeros(len(records), dtype=np.int64)
            rho = float("nan") if few else rank_correlation(x, y, one)
            low, high = (float("nan"), float("nan")) if few else bootstrap(x, y, one, seeds, seed)
            note = f"{len(records)} members" + (", too few" if few else ", or no spread on one side")
            row |= {"value": rho, "ci_low": low, "ci_high": high, "lowest": None, "highest": None,
                    "n_seeds": len(np.unique(seeds)), "n_of": n_of}  # fmt: skip
            row |= {"value_note": note, "ci_note": note} if np.isnan(rho) or np.isnan(low) else {}
            rows.append(row)
    return rows


def _member_rows(found: Sequence[Condition], at: dict[str, Point]) -> list[Row]:
    return [
        {"condition": c.name, "seed": p.member.spec.seed, "ops": "+".join(p.member.spec.ops), "since_grok": p.since,
         "n_parameters": p.member.spec.shape.n_parameters, **sides(p)}
        for c in found for p in c.points(at)
    ]  # fmt: skip
