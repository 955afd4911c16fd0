"""Confounds of the sweep, measured: what moves k@95 and rank99 at one weight decay, one size and one share of the data.

Conventions. Rows stand for the base of the sweep (weight decay 1). One confound at a time: the initialisation, at
`after` steps after grokking, and the steps since grokking, from the base's own initialisation. A claim about another
axis that is smaller than these is not told apart from them.
"""

from collections.abc import Mapping, Sequence

from lmprobe.grokking.conditions import Condition, mean_of_points
from lmprobe.grokking.means import Mean, mean_over_seeds
from lmprobe.grokking.spec import Spec
from lmprobe.grokking.trajectory import Point, at_phase
from probecore.results import Row

MEASURES = {"k@95": "k95", "rank99 of class means": "rank99"}
PHASES = (0, 100, 200, 300, 500, 700, 1000)


def confound_rows(found: Sequence[Condition], points: Sequence[Point], base: Spec, after: int) -> list[Row]:
    """Return the means over seeds of `MEASURES` and of the grok step, by initialisation and by steps since grokking."""
    axes = ("ops", "layers", "width", "weight_decay", "fraction", "batch")
    here = [c for c in found if all(getattr(c.spec, axis) == getattr(base, axis) for axis in axes)]
    rows: list[Row] = []
    at = at_phase(points, after)
    for condition in here:
        steps = [float(step) for m in condition.members if (step := m.phases.grok) is not None]
        rows.append(_row("initialisation", condition.spec.init, "grok step", condition,
                         mean_over_seeds(steps, logarithm=True)))  # fmt: skip
        rows += _measured("initialisation", condition.spec.init, condition, at)
    for condition in here:
        if condition.spec.init == base.init:
            for phase in PHASES:
                near = at_phase(points, phase, within=100)
                rows += _measured("steps since grokking", str(phase), condition, near)
    return rows


def confound_notes(rows: Sequence[Row]) -> list[str]:
    """Return one sentence for each confound and measure: its mean at every level, and over how many seeds."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["value"] is not None:
            value = f"{row['value']:,.0f}" if row["value"] >= 100 else f"{row['value']:.3g}"
            words = f"{value} at {row['level']} ({row['n_seeds']} of {row['n_of']} seeds)"
            groups.setdefault((row["metric"], row["confound"]), []).append(words)
    return [f"at weight decay 1, {metric} by {by}: {', '.join(words)}" for (metric, by), words in groups.items()]


def _measured(confound: str, level: str, condition: Condition, at: Mapping[str, Point]) -> list[Row]:
    points, op = condition.points(at), condition.spec.ops[0]
    return [
        _row(confound, level, name, condition, mean_of_points(points, metric, op)) for name, metric in MEASURES.items()
    ]


def _row(confound: str, level: str, metric: str, condition: Condition, mean: Mean) -> Row:
    return {
        "confound": confound, "level": level, "metric": metric, "value": mean.value,
        "ci_low": None if mean.low is None else max(0.0, mean.low), "ci_high": mean.high, "lowest": mean.lowest,
        "highest": mean.highest, "n_seeds": mean.n, "n_of": len(condition.asked), "note": mean.note,
    }  # fmt: skip
