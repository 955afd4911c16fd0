"""Conditions: members that differ only in their seed, and what is said of them: rows of means over seeds.

Conventions. A grok step is averaged as its logarithm. It is known only up to the evaluation before it, and a member
that has not grokked within its steps has none: a mean over fewer than all members says how many, and stands beside
`n_of`, the number of members that were asked for. A condition may have fewer members than that, or none: those that
are left have not been trained (`Setting.trained_only`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from lmprobe.grokking.history import held_out
from lmprobe.grokking.means import Mean, mean_over_seeds
from lmprobe.grokking.members import Member, place
from lmprobe.grokking.spec import Spec
from lmprobe.grokking.trajectory import Point
from probecore.results import Row

NO_TEST = "an estimate over seeds; nothing is tested"
COLUMNS = ("metric", "condition", "op", "value", "ci_low", "ci_high", "lowest", "highest", "control", "n_seeds", "n_of")
AXES = {
    "ops": "", "p": "p", "layers": "", "width": "", "weight_decay": "WD", "fraction": "fraction", "batch": "batch",
    "init": "init", "adversarial": "lambda", "adversarial_k": "k", "adversarial_basis": "", "lr": "lr", "norm": "norm",
    "activation": "activation",
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """Members that share everything but the seed.

    asked : the specs of all its members. members : those that are trained, or under way.
    """

    name: str
    members: tuple[Member, ...]
    asked: tuple[Spec, ...]

    @property
    def spec(self) -> Spec:
        """The spec of the first member."""
        return self.asked[0]

    @property
    def n_absent(self) -> int:
        """How many of its members have not been trained."""
        return len(self.asked) - len(self.members)

    @property
    def under_way(self) -> tuple[Member, ...]:
        """The members that have not stopped."""
        return tuple(member for member in self.members if not member.status)

    @property
    def grokked(self) -> tuple[Member, ...]:
        """The members that have grokked."""
        return tuple(member for member in self.members if member.phases.grok is not None)

    def points(self, at: Mapping[str, Point]) -> list[Point]:
        """Return the points of its members among those by spec."""
        return [at[member.spec.key] for member in self.members if member.spec.key in at]


def conditions(
    members: Sequence[Member], asked: Sequence[Spec] | None = None, base: Spec | None = None
) -> tuple[Condition, ...]:
    """Return members by condition, each named by what differs between conditions.

    asked : the specs of all members that there should be, in any order; None: those of the members, in their order.
    base : where conditions differ from one in an axis each, that one; they are named by the difference, it is "base".
    """
    specs = [member.spec for member in members] if asked is None else sorted(asked, key=place)
    groups: dict[tuple[tuple[str, object], ...], dict[str, Spec]] = {}
    for spec in specs:
        groups.setdefault(_all_but_seed(spec), {})[spec.key] = spec
    keys = [dict(key) for key in groups]
    differ = _differing(keys)
    there = {member.spec.key: member for member in members}
    found = []
    for key, group in zip(keys, groups.values(), strict=True):
        own = tuple(there[k] for k in group if k in there)
        others = differ if base is None else [name for name in differ if key[name] != getattr(base, name)]
        name = "base" if differ and not others else _name(key, others)
        found.append(Condition(name, own, tuple(group.values())))
    return tuple(found)


def base_note(found: Sequence[Condition], base: Spec) -> str:
    """Return what the base of conditions is, in the axes in which any of them differs."""
    differ = _differing([asdict(c.spec) for c in found])
    return f"base: {_name(asdict(base), differ)}; every other condition differs from it in what it is called"


def _differing(keys: Sequence[Mapping[str, object]]) -> list[str]:
    return [name for name in AXES if len({str(key[name]) for key in keys}) > 1]


def _all_but_seed(spec: Spec) -> tuple[tuple[str, object], ...]:
    return tuple((k, v) for k, v in asdict(spec).items() if k not in ("seed", "data_seed", "steps", "extra"))


def _name(key: Mapping[str, object], differ: Sequence[str]) -> str:
    words = []
    for axis in differ or ("layers",):
        value = key[axis]
        if axis in ("layers", "width"):
            size = f"{key['layers']}L d{key['width']}"
            words += [] if size in words else [size]
        elif axis == "ops":
            words.append(" + ".join(value) if isinstance(value, tuple) else str(value))
        elif axis in ("adversarial_k", "adversarial_basis") and not key["adversarial"]:
            continue
        elif axis == "adversarial" and not value:
            words.append("plain")
        elif axis == "adversarial_basis":
            words.append("random directions" if value == "random" else "own directions")
        else:
            words.append(f"{AXES[axis]} {value:g}" if isinstance(value, float) else f"{AXES[axis]} {value}")
    return ", ".join(words)


def grok_rows(found: Sequence[Condition]) -> list[Row]:
    """Return how many members of each condition grokked, and when."""
    rows: list[Row] = []
    for condition in found:
        steps = [float(step) for member in condition.members if (step := member.phases.grok) is not None]
        rows.append(_row("grok step", condition, "all", mean_over_seeds(steps, logarithm=True)))
        without = [m for m in condition.members if m.phases.grok is None]
        stopped, going = [m for m in without if m.status], [m for m in without if not m.status]
        n, said = len(condition.asked), []
        if condition.n_absent:
            said.append(f"{condition.n_absent} of {n} have not been trained")
        if going:
            said.append(f"{len(going)} of {n} are under way, not grokked at {min(m.step for m in going)} steps or more")
        if stopped:
            last = max(member.step for member in condition.members)
            reached = max(held_out(m.last) for m in stopped)
            said.append(f"{len(stopped)} of {n} have not grokked within {last} steps (held-out accuracy of the best of "
                        f"them {reached:.2f})")  # fmt: skip
        if said:
            rows[-1]["ci_note"] = rows[-1]["value_note"] = "; ".join([*said, "the mean is over those that have"])
    return rows


def standing(found: Sequence[Condition]) -> str:
    """Say how many members are finished, under way and not started."""
    n = sum(len(c.asked) for c in found)
    going, absent = sum(len(c.under_way) for c in found), sum(c.n_absent for c in found)
    return f"of {n} members {n - going - absent} are finished, {going} under way, {absent} not started"


def mean_row(metric: str, condition: Condition, op: str, values: Sequence[float], *, logarithm: bool = False) -> Row:
    """Return the row of one value per seed of a condition."""
    return _row(metric, condition, op, mean_over_seeds(values, logarithm=logarithm))


def metric_rows(
    found: Sequence[Condition],
    at: Mapping[str, Point],
    metrics: Mapping[str, str],
    *,
    controls: Mapping[str, str] | None = None,
    detail: bool = False,
) -> list[Row]:
    """Return one row per metric, condition and operation: the mean over the seeds that have a point.

    metrics : {name in the table: field of the records}. controls : {field: field of its control}.
    """
    rows = []
    for name, metric in metrics.items():
        for condition in found:
            points = condition.points(at)
            for op in condition.spec.ops:
                has = [point for point in points if point.value(metric, op) is not None]
                mean = mean_of_points(points, metric, op)
                # a condition without members at this phase is in the files; its row of grok steps says why
                row = _row(name, condition, op, mean) | {"detail": detail or not points}
                beside = (controls or {}).get(metric)
                if beside and has:
                    control = [value for point in has if (value := point.value(beside, op)) is not None]
                    above = sum(point.censored(beside, op) for point in has)
                    row["control"] = float(np.mean(control)) if control else None
                    row["control_note"] = f"at least: {above} of {len(control)} never fell below" if above else ""
                rows.append(row)
    return rows


def mean_of_points(points: Sequence[Point], metric: str, op: str) -> Mean:
    """Return the mean of a number over the points that have it, one of each member."""
    has = [point for point in points if point.value(metric, op) is not None]
    values = [float(point.value(metric, op) or 0.0) for point in has]
    return mean_over_seeds(values, n_censored=sum(point.censored(metric, op) for point in has))


def overlap_rows(found: Sequence[Condition], at: Mapping[str, Point], ks: Sequence[int]) -> list[Row]:
    """Return the overlap of the two operations' first k directions, beside k / d, its mean for random subspaces."""
    rows = []
    for k in ks:
        for condition in found:
            points = condition.points(at)
            here = [row for point in points if (row := point.overlap_at(k)) is not None]
            if here:
                mean = mean_over_seeds([float(row["overlap"]) for row in here])
                rows.append(_row(f"overlap at {k}", condition, "add | mul", mean) | {"control": here[0]["chance"]})
    return rows


SHARES = ("accuracy", "Fourier share", "logit share", "overlap", "other operation", "input accuracy")


def _row(metric: str, condition: Condition, op: str, mean: Mean) -> Row:
    """Return the row of a number that cannot be below 0, nor, where it is a share, above 1."""
    low, high = mean.low, mean.high
    if low is not None:
        low = max(0.0, low)
    if high is not None and metric.startswith(SHARES):
        high = min(1.0, high)
    return {
        "metric": metric, "condition": condition.name, "op": op, "value": mean.value, "ci_low": low,
        "ci_high": high, "ci_note": mean.note, "value_note": mean.note if mean.value is None else "",
        "lowest": mean.lowest, "highest": mean.highest, "control": None, "n_seeds": mean.n,
        "n_of": len(condition.asked), "n_censored": mean.n_censored, "p_value": None, "p_note": NO_TEST,
        "detail": False,
    }  # fmt: skip


def paired(first: Condition, second: Condition, value: Callable[[Member], float | None]) -> list[tuple[float, float]]:
    """Return the values of both conditions at the seeds at which both have one."""
    by_seed = {member.spec.seed: value(member) for member in second.members}
    both = [(value(member), by_seed.get(member.spec.seed)) for member in first.members]
    return [(a, b) for a, b in both if a is not None and b is not None]


def difference_row(
    metric: str,
    first: Condition,
    second: Condition,
    pairs: Sequence[tuple[float, float]],
    op: str,
    *,
    ratio: bool = False,
    censored: tuple[int, int] = (0, 0),
) -> Row:
    """Return the row of first minus second over seeds (or their ratio), with the p of a paired t test.

    censored : how many values of the first and of the second are only the least they can be. With some in the first the
    mean is a lower bound; with some in the second it is none, and is left out.
    """
    values = [a / b if ratio else a - b for a, b in pairs]
    if censored[1]:
        mean = Mean(note=f"{censored[1]} values of {second.name} are only the least they can be: no difference")
    else:
        mean = mean_over_seeds(values, n_censored=censored[0], logarithm=ratio)
    sign = "/" if ratio else "-"
    row = _row(metric, first, op, mean)
    none = "censored: no test" if any(censored) else "no spread over seeds, or one seed: no test"
    note = "paired t test over seeds" if mean.p_value is not None else none
    return row | {
        "ci_low": mean.low, "ci_high": mean.high,
        "condition": f"{first.name} {sign} {second.name}", "metric": f"{metric}, {'ratio' if ratio else 'difference'}",
        "p_value": mean.p_value, "p_note": note,
    }  # fmt: skip


def inside(share: float | None) -> float | None:
    """Return the end of an interval of a share, inside 0 to 1."""
    return None if share is None else min(1.0, max(0.0, share))


def curve_means(rows: Sequence[Row], op: str | None = None) -> list[Row]:
    """Return the mean accuracy over seeds of every condition, operation, kind of removal and k, with its interval."""
    groups: dict[tuple[str, str, str, int], list[float]] = {}
    for row in rows:
        if op is None or row["op"] == op:
            key = (row["condition"], row["op"], row["removed"], row["k"])
            groups.setdefault(key, []).append(float(row["accuracy"]))
    found: list[Row] = []
    for (condition, name, removed, k), values in groups.items():
        mean = mean_over_seeds(values)
        low, high = inside(mean.low), inside(mean.high)
        found.append(
            {"condition": condition, "op": name, "removed": removed, "k": k, "accuracy": mean.value, "ci_low": low,
             "ci_high": high, "n_seeds": mean.n}
        )  # fmt: skip
    return found
