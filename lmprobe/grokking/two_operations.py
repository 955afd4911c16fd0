"""Addition and multiplication in one model: shared directions, and killing one while the other lives.

Conventions. Directions are each operation's own class-mean directions. Overlap is that of the first k of both, beside
its mean for random subspaces, k / width: at large k two operations that use the same few dimensions overlap, whatever
their circuits. `multitask` sets the model beside models of the same size that learn one operation alone; `capacity`
beside other sizes; `removal_resistant` beside models trained against removal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lmprobe.grokking import plans
from lmprobe.grokking.conditions import Condition, conditions, difference_row, metric_rows, overlap_rows, paired
from lmprobe.grokking.measures import K_MAX, OVERLAP_AT
from lmprobe.grokking.members import Member
from lmprobe.grokking.setting import DEFAULT, Setting
from lmprobe.grokking.spec import Spec
from lmprobe.grokking.sweep import examined, task_words
from lmprobe.grokking.trajectory import AFTER, Point, at_phase, measured
from probecore.results import Figure, Result, Row

CROSS = {
    "selective kill at": "selective_kill", "other operation after 10 removed": "collateral10",
    "other operation at k@50": "collateral_k50",
}  # fmt: skip
COMPARED = {"k@95": "k95", "rank95 of class means": "rank95", "rank99 of class means": "rank99"}


def multitask(setting: Setting = DEFAULT, *, k_max: int = K_MAX, after: int = AFTER) -> Result:
    """Train addition, multiplication and both, and compare what they use; see the module and `plans.multitask`.

    Returns a `Result` of kind "grok-multitask": overlap with its chance, cross-operation removal, k@q of each operation
    in company and alone, with paired differences.
    """
    asked = plans.multitask(setting.quick, setting.seeds)

    def pairs(found: Sequence[Condition]) -> list[tuple[Condition, Condition]]:
        together = [c for c in found if len(c.spec.ops) == 2]
        return [(alone, both) for both in together for alone in found if len(alone.spec.ops) == 1]

    return _of_two("grok-multitask", "Two operations in one model", asked, setting, k_max, after, pairs)


def removal_resistant(
    setting: Setting = DEFAULT,
    *,
    weights: Sequence[float] = (0.1,),
    ks: Sequence[int] = (10,),
    k_max: int = K_MAX,
    after: int = AFTER,
) -> Result:
    """Train both operations with the loss that also asks for the answer after removal, and without.

    weights, ks : lambda and the number of directions that the loss removes; the log gives lambda .1 and no k. Each has
    a control, whose loss removes random directions.
    Returns a `Result` of kind "grok-adversarial".
    """
    asked = plans.adversarial(setting.quick, setting.seeds, weights=(0.0, *weights), ks=ks)

    def pairs(found: Sequence[Condition]) -> list[tuple[Condition, Condition]]:
        plain = [c for c in found if not c.spec.adversarial]
        own = [c for c in found if c.spec.adversarial and c.spec.adversarial_basis != "random"]
        control = {(c.spec.adversarial, c.spec.adversarial_k): c for c in found if c.spec.adversarial_basis == "random"}
        against_control = [(c, control[c.spec.adversarial, c.spec.adversarial_k]) for c in own]
        return [*((c, plain[0]) for c in (*own, *control.values()) if plain), *against_control]

    spec = next((s for s in asked if s.adversarial), asked[0])
    note = (
        f"the loss is added every {spec.adversarial_every} steps after step {spec.adversarial_after}; a member that "
        "grokked before that step was trained without it until then"
    )
    return _of_two("grok-adversarial", "Training against removal", asked, setting, k_max, after, pairs, [note])


def capacity(setting: Setting = DEFAULT, *, k_max: int = K_MAX, after: int = AFTER) -> Result:
    """Train both operations in models of several sizes; see the module and `plans.capacity`.

    Returns a `Result` of kind "grok-capacity".
    """
    asked = plans.capacity(setting.quick, setting.seeds)

    def pairs(found: Sequence[Condition]) -> list[tuple[Condition, Condition]]:
        start = plans.base_of_two(setting.quick)
        reference = [c for c in found if _alike(c.spec, start)]
        return [(c, reference[0]) for c in found if reference and not _alike(c.spec, start)]

    note = (
        "a small model that has not learned within its steps, from these initialisations, is reported as not grokked: "
        "that says nothing of what its capacity allows"
    )
    return _of_two("grok-capacity", "Two operations by size", asked, setting, k_max, after, pairs, [note])


def _alike(spec: Spec, other: Spec) -> bool:
    """Tell whether two specs are one condition."""
    shared = {"seed": other.seed, "data_seed": other.data_seed, "steps": other.steps, "extra": other.extra}
    return replace(spec, **shared) == other  # type: ignore[arg-type]


def _of_two(
    kind: str,
    title: str,
    asked: Sequence[Spec],
    setting: Setting,
    k_max: int,
    after: int,
    compare: Callable[[Sequence[Condition]], list[tuple[Condition, Condition]]],
    notes: Sequence[str] = (),
) -> Result:
    members = setting.train(asked)
    found = conditions(members, asked)
    points = measured(members, k_max=k_max, jobs=setting.processes, quiet=setting.quiet)
    at = at_phase(points, after)
    both = [condition for condition in found if len(condition.spec.ops) == 2]
    rows = [*overlap_rows(both, at, OVERLAP_AT), *metric_rows(both, at, CROSS)]
    for first, second in compare(found):
        rows += difference_rows(first, second, at)
    result = examined(kind, f"{title}: {task_words(members)}", members, found, points, setting, k_max=k_max,
                      after=after, extra_rows=rows, notes=notes)  # fmt: skip
    figure = Figure("overlap", "bars_with_intervals", "overlaps", "Overlap of the two operations' directions",
                    "Mean over seeds with t interval; 'random' is k / width, what two random subspaces share.",
                    {"label": "label", "series": "series", "value_title": "Overlap"})  # fmt: skip
    figures = (
        (*result.figures, figure) if any(row["metric"].startswith("overlap at") for row in rows) else result.figures
    )
    return replace(result, tables={**result.tables, "overlaps": tuple(_overlap_table(rows))}, figures=figures)


def difference_rows(first: Condition, second: Condition, at: Mapping[str, Point]) -> list[Row]:
    """Return paired differences of two conditions in the numbers of `COMPARED`, by operation that both have."""
    rows = []
    for name, metric in COMPARED.items():
        for op in first.spec.ops:
            if op in second.spec.ops:
                pairs = paired(first, second, lambda m, metric=metric, op=op: value_at(at, m, metric, op))  # type: ignore[misc]
                censored = [sum(p.censored(metric, op) for p in c.points(at)) for c in (first, second)]
                rows.append(difference_row(name, first, second, pairs, op, censored=(censored[0], censored[1])))
    if len(first.spec.ops) == len(second.spec.ops) == 2:
        for k in OVERLAP_AT[:2]:
            pairs = paired(first, second, lambda m, k=k: overlap_of(at, m, k))  # type: ignore[misc]
            rows.append(difference_row(f"overlap at {k}", first, second, pairs, "add | mul"))
    return rows


def value_at(at: Mapping[str, Point], member: Member, metric: str, op: str) -> float | None:
    """Return a member's number at the phase of comparison."""
    point = at.get(member.spec.key)
    return None if point is None else point.value(metric, op)


def overlap_of(at: Mapping[str, Point], member: Member, k: int) -> float | None:
    """Return a member's overlap of the first k directions of both operations at the phase of comparison."""
    point = at.get(member.spec.key)
    row = None if point is None else point.overlap_at(k)
    return None if row is None else float(row["overlap"])


def _overlap_table(rows: Sequence[Row]) -> list[Row]:
    table = []
    for row in rows:
        if row["metric"].startswith("overlap at") and row["op"] == "add | mul" and row["control"] is not None:
            label = f"{row['condition']}, {row['metric'].removeprefix('overlap ')}"
            shared = {"label": label, "condition": row["condition"]}
            table.append({**shared, "series": "measured", "value": row["value"], "ci_low": row["ci_low"],
                          "ci_high": row["ci_high"]})  # fmt: skip
            table.append({**shared, "series": "random", "value": row["control"], "ci_low": None, "ci_high": None})
    return table
