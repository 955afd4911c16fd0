"""What the trained members say about the claims of the research log: one estimate over seeds for each.

Conventions. Values are paired by seed where two conditions are compared. A member that has not grokked has no value but
for claims about when it groks, where its last step is the least its grok step can be, and the interval has no upper
end. Fewer than `LEAST_SEEDS` seeds give a value without an interval, so that nothing is decided; nor do conditions of
which members have not been trained (`Setting.trained_only`), whatever the others say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lmprobe.grokking.batch_size import FIXED, SCALED, arms, least_taken
from lmprobe.grokking.conditions import Condition, inside, mean_of_points, paired
from lmprobe.grokking.history import held_out
from lmprobe.grokking.log_claims import LEAST_SEEDS
from lmprobe.grokking.means import Mean, mean_over_seeds
from lmprobe.grokking.members import Member
from lmprobe.grokking.trajectory import Point, at_phase
from lmprobe.grokking.two_operations import overlap_of, value_at
from probecore.results import Row
from probecore.stats.effects import wilson_interval
from probecore.verdicts import Evidence

OTHER_PHASES = (0, 200, 500, 1000)
UNTRAINED = "have not been trained: run the same command without --trained-only"


def find(found: Sequence[Condition], **fields: object) -> Condition:
    """Return the one condition whose spec has these fields; where there is none, or several, one without members."""
    picked = [c for c in found if all(getattr(c.spec, k) == v for k, v in fields.items())]
    if len(picked) == 1:
        return picked[0]
    return Condition(f"{len(picked)} conditions with {', '.join(f'{k} {v}' for k, v in fields.items())}", (), ())


def untrained(conditions: Sequence[Condition]) -> str:
    """Return why conditions decide nothing whose members have not all been trained; "" where all have."""
    unclear = [c.name for c in conditions if not c.asked]
    if unclear:
        return f"the claim is read off one condition of the plan, which has {' and '.join(unclear)}"
    absent = [f"{c.n_absent} of {len(c.asked)} members of {c.name}" for c in conditions if c.n_absent]
    return f"{' and '.join(absent)} {UNTRAINED}" if absent else ""


def untrained_members(found: Sequence[Condition], name: str) -> str:
    """Return how many of all members of an experiment have not been trained, as a reason; "" where all have."""
    absent = sum(c.n_absent for c in found)
    return f"{absent} of {sum(len(c.asked) for c in found)} members of {name} {UNTRAINED}" if absent else ""


def evidence(
    mean: Mean, conditions: Sequence[Condition], unit: str = "", detail: str = "", missing: str = ""
) -> Evidence:
    """Return the evidence of a mean over seeds of `conditions`.

    missing : the reason where seeds without a value decide nothing.
    """
    missing = untrained(conditions) or missing
    counted = {"unit": unit, "detail": "; ".join(filter(None, (detail, mean.note))), "n_items": mean.n,
               "n_clusters": mean.n}  # fmt: skip
    if mean.value is None:
        return Evidence(reason=missing or mean.note, **counted)  # type: ignore[arg-type]
    few = f"{mean.n} seeds have the number; a verdict needs {LEAST_SEEDS}" if mean.n < LEAST_SEEDS else ""
    if few or missing or mean.low is None:
        return Evidence(mean.value, reason=missing or few or mean.note, **counted)  # type: ignore[arg-type]
    high = math.inf if mean.n_censored else mean.high
    return Evidence(mean.value, mean.low, high, p_value=mean.p_value, p_note=_p_note(mean), **counted)  # type: ignore[arg-type]


def _p_note(mean: Mean) -> str:
    return "t test over seeds against no difference" if mean.p_value is not None else "no test: a bound, or no spread"


def grok_ratio(slower: Condition, sooner: Condition, unit: str = "steps") -> Evidence:
    """Return the ratio of steps (or samples) to grok; the first condition enters with its last step where it has not.

    Where a member of the second has not grokked there is no bound, and nothing is decided.
    """
    lacking = [m.spec.seed for m in sooner.members if m.phases.grok is None]
    pairs = paired(slower, sooner, lambda member: least_taken(member, unit))
    censored = sum(m.phases.grok is None for m in slower.members)
    mean = mean_over_seeds([a / b for a, b in pairs], n_censored=censored, logarithm=True)
    detail = f"{slower.name}: {len(slower.grokked)} of {len(slower.asked)} grokked; {sooner.name}: " \
             f"{len(sooner.grokked)} of {len(sooner.asked)}"  # fmt: skip
    reason = f"{len(lacking)} of {len(sooner.members)} members of {sooner.name} have not grokked" if lacking else ""
    return evidence(mean, (slower, sooner), "ratio", detail, reason)


def compared(
    first: Condition, second: Condition, points: Sequence[Point], metric: str, ops: Sequence[str], after: int,
    *, ratio: bool = False,
) -> Evidence:  # fmt: skip
    """Return the difference (or ratio) of a number of two conditions, averaged over operations, at the same phase."""

    def estimate(at: Mapping[str, Point]) -> tuple[Mean, int]:
        def value(member: Member) -> float | None:
            values = [value_at(at, member, metric, op) for op in ops]
            return None if any(v is None for v in values) else sum(filter(None, values)) / len(values)

        pairs = paired(first, second, value)
        bounds = [sum(any(p.censored(metric, op) for op in ops) for p in c.points(at)) for c in (first, second)]
        values = [a / b for a, b in pairs if b > 0] if ratio else [a - b for a, b in pairs]
        return mean_over_seeds(values, n_censored=bounds[0], logarithm=ratio), bounds[1]

    mean, unknown = estimate(at_phase(points, after))
    others = []
    for phase in OTHER_PHASES:
        other, _ = estimate(at_phase(points, phase, within=100))
        if other.value is not None and phase != after:
            others.append(f"{other.value:.3g} at {phase} steps after grokking ({other.n} seeds)")
    missing = ""
    total = min(len(first.members), len(second.members))
    if 0 < mean.n < total:
        missing = f"only {mean.n} of {total} seeds reached that phase in both conditions: no fair sample"
    if unknown:
        missing = f"{unknown} values of {second.name} are only the least they can be: no difference"
    return evidence(mean, (first, second), "ratio" if ratio else "", "; ".join(others), missing)


def of_condition(condition: Condition, points: Sequence[Point], metric: str, op: str, after: int) -> Evidence:
    """Return a number of one condition at its phase."""
    there = condition.points(at_phase(points, after))
    has = [p for p in there if p.value(metric, op) is not None]
    return evidence(mean_of_points(there, metric, op), (condition,), missing=_share(condition, has))


def rank_at_end(none: Condition, one: Condition, points: Sequence[Point], after: int) -> Evidence:
    """Return rank99 without decay, at the last clean step, minus that with decay at its phase."""
    at = at_phase(points, after)
    last = {p.member.spec.key: p for p in points}  # points of a member are in order of steps
    pairs = [
        (a, b)
        for a, b in paired(none, one, lambda m: value_at(last if m in none.members else at, m, "rank99", m.spec.ops[0]))
    ]
    accuracy = [held_out(m.last) for m in none.members]
    detail = (
        f"held-out accuracy without decay {min(accuracy):.2f} to {max(accuracy):.2f}, {len(none.grokked)} grokked"
        if accuracy
        else ""
    )
    total, going = min(len(none.members), len(one.members)), len(none.under_way)
    missing = f"only {len(pairs)} of {total} seeds have both: no fair sample" if 0 < len(pairs) < total else ""
    if going:
        missing = f"{going} of {len(none.asked)} members of {none.name} are under way and not at their end"
    return evidence(mean_over_seeds([a - b for a, b in pairs]), (none, one), "directions", detail, missing)


def overlap_evidence(condition: Condition, points: Sequence[Point], k: int, after: int, *, beyond: bool) -> Evidence:
    """Return the overlap of two operations at k, or what it has beyond chance."""
    at = at_phase(points, after)
    rows = [row for p in condition.points(at) if (row := p.overlap_at(k)) is not None]
    mean = mean_over_seeds([float(r["overlap"]) - (float(r["chance"]) if beyond else 0.0) for r in rows])
    detail = f"chance {rows[0]['chance']:.3f}" if rows else ""
    return evidence(mean, (condition,), detail=detail, missing=_share(condition, rows))


def overlap_difference(first: Condition, second: Condition, points: Sequence[Point], k: int, after: int) -> Evidence:
    """Return the paired difference of overlaps of two conditions."""
    at = at_phase(points, after)
    pairs = paired(first, second, lambda m: overlap_of(at, m, k))
    total = min(len(first.members), len(second.members))
    missing = (
        f"only {len(pairs)} of {total} seeds reached that phase in both conditions" if 0 < len(pairs) < total else ""
    )
    return evidence(mean_over_seeds([a - b for a, b in pairs]), (first, second), missing=missing)


def over_operations(condition: Condition, points: Sequence[Point], metric: str, after: int) -> Evidence:
    """Return a number averaged over a member's operations, then over seeds."""
    found = condition.points(at_phase(points, after))
    values = []
    for point in found:
        each = [point.value(metric, op) for op in condition.spec.ops]
        if all(v is not None for v in each):
            values.append(sum(filter(None, each)) / len(each))
    return evidence(mean_over_seeds(values), (condition,), missing=_share(condition, values))


def selective_share(condition: Condition, points: Sequence[Point], after: int) -> Evidence:
    """Return the share of members both of whose operations can be killed alone, with its Wilson interval."""
    found = condition.points(at_phase(points, after))
    killed = [all(p.records[op].get("selective_kill") is not None for op in condition.spec.ops) for p in found]
    few = f"{len(killed)} members reached that phase; a verdict needs {LEAST_SEEDS}"
    reason = untrained((condition,)) or (few if len(killed) < LEAST_SEEDS else "")
    if reason:
        return Evidence(reason=reason, n_items=len(killed))
    low, high = wilson_interval(sum(killed), len(killed))
    return Evidence(sum(killed) / len(killed), low, high, p_note="a share: no test", unit="share",
                    n_items=len(killed), n_clusters=len(killed))  # fmt: skip


def _share(condition: Condition, there: Sequence[object]) -> str:
    if 0 < len(there) < len(condition.members):
        return f"only {len(there)} of {len(condition.members)} members reached that phase: no fair sample"
    return ""


def best_accuracy(small: Sequence[Condition]) -> Evidence:
    """Return the best held-out accuracy that each seed reached under any initialisation.

    What a seed has reached is the least it may reach while one of its members is under way.
    """
    best: dict[int, float] = {}
    going = {member.spec.seed for condition in small for member in condition.under_way}
    for condition in small:
        for member in condition.members:
            reached = max(held_out(e) for e in member.history)
            best[member.spec.seed] = max(best.get(member.spec.seed, 0.0), reached)
    steps = max((m.step for c in small for m in c.members), default=0)
    mean = mean_over_seeds(list(best.values()), n_censored=len(going))
    mean = replace(mean, low=inside(mean.low), high=inside(mean.high))
    return evidence(mean, small, "accuracy", f"{len(small)} initialisations, {steps} steps")


def batch_evidence(found: Sequence[Condition], *, scaled: bool) -> Evidence:
    """Return the ratio of samples to grok, smallest batch to largest, paired by seed."""
    arm = arms(found)[SCALED if scaled else FIXED]
    return grok_ratio(arm[0], arm[-1], "samples")


def row_evidence(row: Row, n_items: int, missing: str = "") -> Evidence:
    """Return the evidence of a finished row over members; a bootstrap interval is widened to hold its estimate.

    missing : why the row decides nothing.
    """
    value, low, high = row["value"], row["ci_low"], row["ci_high"]
    if missing:
        low = high = None
    if None not in (value, low, high):
        low, high = min(low, value), max(high, value)
    return Evidence(
        value, low, high, p_value=row.get("p_value"), p_note=row.get("p_note", ""),
        reason=missing or row.get("value_note") or row.get("ci_note") or "", unit="rho", n_items=n_items,
        n_clusters=row.get("n_seeds"),
    )  # fmt: skip
