"""The sweep: weight decay, share of the data, initialisation and size around one member, and what each does to removal.

Conventions. Conditions differ along one axis from the base. Measures are compared at the same time after grokking
(`after` steps); the table "trajectory" holds them at every kept step, "curves" the removal curves behind them, and
"confounds" what initialisation and time do at one weight decay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmprobe.grokking import plans
from lmprobe.grokking.conditions import (
    COLUMNS,
    Condition,
    base_note,
    conditions,
    curve_means,
    grok_rows,
    inside,
    metric_rows,
    standing,
)
from lmprobe.grokking.confounds import confound_notes, confound_rows
from lmprobe.grokking.history import held_out
from lmprobe.grokking.means import mean_over_seeds
from lmprobe.grokking.measures import K_MAX
from lmprobe.grokking.members import Member
from lmprobe.grokking.setting import DEFAULT, Setting
from lmprobe.grokking.trajectory import (
    AFTER,
    Point,
    at_phase,
    curve_rows,
    measured,
    member_row,
    phase_note,
    point_rows,
)
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row

METRICS = {
    "k@95": "k95", "k@50": "k50", "last k at 95": "last95", "rank95 of class means": "rank95",
    "rank99 of class means": "rank99", "answer frequencies": "n_freq", "whole frequencies@95": "frequencies95",
    "Fourier share of embedding, top 10": "fourier_embed_top10", "Fourier share, answer": "fourier_answer_r2",
}  # fmt: skip
DETAILS = {
    "k@95 survives": "survives95", "k@95 absolute": "k95_absolute", "rank99 of states": "pca_rank99",
    "rank95 of states": "pca_rank95", "participation ratio": "participation", "singular values > .1": "n_sv",
    "Fourier share of embedding, top 5": "fourier_embed_top5", "Fourier share of head, top 10": "fourier_unembed_top10",
    "Fourier share of class means, top 10": "fourier_class_mean_top10", "logit share": "logit_share",
    "accuracy after 10": "acc10", "accuracy after 30": "acc30", "accuracy, nothing removed": "accuracy",
}  # fmt: skip
CONTROLS = {
    "k95": "random_k95", "fourier_embed_top10": "fourier_floor_top10", "fourier_embed_top5": "fourier_floor_top5",
    "fourier_unembed_top10": "fourier_floor_top10", "fourier_class_mean_top10": "fourier_floor_top10",
    "acc10": "random10", "acc30": "random30",
}  # fmt: skip
CONTROL_NOTE = (
    "'control' stands beside k@95 and accuracies as the same for random directions, beside Fourier shares as the share "
    "of a random matrix, beside overlaps as k / width; intervals are t intervals over seeds"
)


def sweep(setting: Setting = DEFAULT, *, k_max: int = K_MAX, after: int = AFTER) -> Result:
    """Train the sweep and measure every member that grokked; see the module and `plans.sweep`.

    Returns a `Result` of kind "grok-sweep".
    """
    asked, base = plans.sweep(setting.quick, setting.seeds), plans.base(setting.quick)
    members = setting.train(asked)
    found = conditions(members, asked, base)
    title = "Sweep over weight decay, data, initialisation and size: " + task_words(members)
    points = measured(members, k_max=k_max, jobs=setting.processes, quiet=setting.quiet)
    result = examined("grok-sweep", title, members, found, points, setting, k_max=k_max, after=after)
    confounds = confound_rows(found, points, base, after)
    notes = (base_note(found, base), *result.notes, *confound_notes(confounds))
    return replace(result, notes=notes, tables={**result.tables, "confounds": tuple(confounds)})


def examined(
    kind: str,
    title: str,
    members: Sequence[Member],
    found: Sequence[Condition],
    points: Sequence[Point],
    setting: Setting,
    *,
    k_max: int = K_MAX,
    after: int = AFTER,
    contrast: str = "class-mean",
    extra_rows: Sequence[Row] = (),
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Result:
    """Return the result that most experiments share, from members and what was measured along their training."""
    at = at_phase(points, after)
    rows = [*grok_rows(found), *extra_rows, *metric_rows(found, at, METRICS, controls=CONTROLS)]
    rows += metric_rows(found, at, DETAILS, controls=CONTROLS, detail=True)
    curves = [row for condition in found for point in condition.points(at) for row in curve_rows(point, condition.name)]
    return Result(
        kind=kind,
        title=title,
        rows=tuple(rows),
        columns=COLUMNS,
        notes=(*notes, *shared_notes(found, points, at, setting, after)),
        provenance=made_by(setting, k_max=k_max, after=after, contrast=contrast, **(settings or {})),
        tables={
            "members": tuple(member_row(member) for member in members),
            "trajectory": tuple(row for point in points for row in point_rows(point)),
            "learning": tuple(learning_rows(found)),
            "phases": tuple(phase_means(found, points)),
            "curves": tuple(curve_means(curves)),
            "own_curves": tuple(row for row in curve_means(curves) if row["removed"] == "its directions"),
        },
        figures=figures(found, after),
    )


def task_words(members: Sequence[Member]) -> str:
    """Return the task and size of members in words."""
    tasks = list(dict.fromkeys(f"{' + '.join(m.spec.ops)} modulo {m.spec.p}" for m in members))
    sizes = list(dict.fromkeys(m.spec.size for m in members))
    return f"{', '.join(tasks)}; {', '.join(sizes)}; {len(members)} members"


def made_by(setting: Setting, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the provenance of an experiment."""
    return provenance(
        seed=setting.seed, device=setting.device, command=setting.command,
        settings={"quick": setting.quick, "seeds": setting.n_seeds,
                  **({"trained_only": True} if setting.trained_only else {}), **settings},
    )  # fmt: skip


def shared_notes(
    found: Sequence[Condition], points: Sequence[Point], at: dict[str, Point], setting: Setting, after: int
) -> list[str]:
    """Return the notes that stand under every experiment."""
    notes = not_grokked_notes(found, setting)
    early = sum(len(c.grokked) - len(c.points(at)) for c in found)
    if early:
        notes.append(
            f"{early} of the members that grokked have no clean step {after} steps later and are not measured there"
        )
    spiking = {s.key for s in (p.member.spec for p in points)}
    unread = sum(m.spec.key not in spiking for c in found for m in c.members if m.status)
    if unread:
        notes.append(f"{unread} of the members were never at rest outside a loss spike and are measured nowhere")
    warning = phase_note(list(at.values()))
    notes += [warning] if warning else []
    notes.append(f"compared at the first clean step at least {after} steps after each member's grok step")
    return [*notes, CONTROL_NOTE]


def not_grokked_notes(found: Sequence[Condition], setting: Setting) -> list[str]:
    """Return the notes on small plans, and on members that are not finished or did not grok."""
    notes = []
    if setting.quick:
        notes.append("--quick: small task and model, not the log's; its numbers are not to be compared with the log's")
    notes += standing_notes(found, setting)
    short = [c for c in found if any(m.status and m.phases.grok is None for m in c.members)]
    left = [f"{c.name} ({len(c.grokked)} of {len(c.asked)})" for c in short]
    if left:
        notes.append(f"not every member grokked within its steps: {'; '.join(left)}; see the table 'members'")
    return notes


def standing_notes(found: Sequence[Condition], setting: Setting) -> list[str]:
    """Return the note on how many members are finished, where not all must be."""
    if setting.trained_only:
        return [f"--trained-only: {standing(found)}"]
    return [standing(found)] if any(c.under_way for c in found) else []


def learning_rows(found: Sequence[Condition]) -> list[Row]:
    """Return held-out accuracy (of the worst operation) by condition and step, over the members still trained."""
    rows: list[Row] = []
    for condition in found:
        by_step: dict[int, list[float]] = {}
        for member in condition.members:
            for evaluation in member.history:
                by_step.setdefault(int(evaluation["step"]), []).append(held_out(evaluation))
        for step in sorted(by_step):
            mean = mean_over_seeds(by_step[step])
            rows.append(
                {"condition": condition.name, "step": step, "accuracy": mean.value, "ci_low": inside(mean.low),
                 "ci_high": inside(mean.high), "n_seeds": mean.n, "n_of": len(condition.asked)}
            )  # fmt: skip
    return rows


def phase_means(found: Sequence[Condition], points: Sequence[Point]) -> list[Row]:
    """Return k@95 by condition, operation and steps since grokking, over the members that have that phase."""
    place = {member.spec.key: condition.name for condition in found for member in condition.members}
    groups: dict[tuple[str, str, int], list[tuple[float, bool]]] = {}
    for point in points:
        if point.since is not None:
            for op in point.records:
                value = point.value("k95", op)
                if value is not None:
                    key = (place[point.member.spec.key], op, point.since)
                    groups.setdefault(key, []).append((value, point.censored("k95", op)))
    rows: list[Row] = []
    for (condition, op, since), values in sorted(groups.items()):
        mean = mean_over_seeds([v for v, _ in values], n_censored=sum(c for _, c in values))
        low = None if mean.low is None else max(0.0, mean.low)
        rows.append(
            {"condition": condition, "op": op, "since_grok": since, "k95": mean.value, "ci_low": low,
             "ci_high": mean.high, "n_seeds": mean.n, "ci_note": mean.note}
        )  # fmt: skip
    return rows


def figures(found: Sequence[Condition], after: int) -> tuple[Figure, ...]:
    """Return the pictures of an experiment: learning, removal curves, k@95 by phase."""
    several = len({op for c in found for op in c.spec.ops}) > 1
    facet = "op" if several else None
    many = len(found) > 8
    return (
        Figure("learning", "lines", "learning", "Held-out accuracy while training",
               "Mean over seeds still trained, t interval inside 0 to 1; members stop some steps after grokking.",
               {"x": "step", "y": "accuracy", "x_title": "Step", "zero": True,
                "y_title": "Held-out accuracy", **({"facet": "condition"} if many else {"series": "condition"})}),
        Figure("removal", "lines", "own_curves" if not many else "curves",
               f"Accuracy when directions are removed, {after} steps after grokking",
               "Mean over seeds with t interval; strongest direction first. Controls: table 'curves'.",
               {"x": "k", "y": "accuracy", "x_title": "Directions removed", "y_title": "Held-out accuracy",
                "zero": True, **({"facet": "condition", "series": "removed"} if many else
                                 {"series": "condition", "facet": facet})}),
        Figure("phases", "lines", "phases", "k@95 along training, by steps since grokking",
               "Mean over the seeds that have the phase. Conditions may only be compared at the same phase.",
               {"x": "since_grok", "y": "k95", "x_title": "Steps since grokking", "y_title": "k@95", "zero": True,
                **({"facet": "condition"} if many else {"series": "condition", "facet": facet})}),
    )  # fmt: skip
