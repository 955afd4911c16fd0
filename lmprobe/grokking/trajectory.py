"""What is measured on members along their training: records per member, operation and steps since grokking.

Conventions. A point is one member at one kept step outside loss spikes. `since` is the step minus the member's grok
step, None for a member that has not grokked; it is measured at its last kept step outside spikes and says so.
What was measured is kept beside the member, under the hash of the code that measured it and of what was asked.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lmprobe.grokking import fourier, measures
from lmprobe.grokking.history import held_out
from lmprobe.grokking.measures import K_MAX, geometry, overlaps, read, removal, removal_record, require_clean
from lmprobe.grokking.members import Member, last_clean, read_member
from probecore import geometry as core_geometry
from probecore import removal as core_removal
from probecore.errors import InputError
from probecore.provenance import digest
from probecore.results import Row, plain
from probecore.runs import parallel_map
from probecore.store import write_bytes

AFTER = 500  # steps after the grok step at which members are compared


@dataclass(frozen=True)
class Point:
    """One member at one step: a flat record per operation, its curves, and the overlap of two operations."""

    member: Member
    step: int
    records: dict[str, Row] = field(repr=False)
    curves: dict[str, dict[str, Any]] = field(repr=False)
    overlap: tuple[Row, ...] = field(repr=False)

    @property
    def since(self) -> int | None:
        """Steps since grokking."""
        grok = self.member.phases.grok
        return None if grok is None or self.step < grok else self.step - grok

    def value(self, metric: str, op: str) -> float | None:
        """Return a number of one operation; a censored k is the least it can be."""
        record = self.records[op]
        if record.get(f"{metric}_censored"):
            if metric == "frequencies95":  # counted in frequencies, not in directions
                return float(len(self.curves[op]["whole frequencies"]))
            return float(record["k_max"] + 1)
        found = record.get(metric)
        return None if found is None else float(found)

    def censored(self, metric: str, op: str) -> bool:
        """Tell whether the number is only the least it can be."""
        return bool(self.records[op].get(f"{metric}_censored"))

    def overlap_at(self, k: int) -> Row | None:
        """Return the overlap of the two operations' first k directions."""
        return next((row for row in self.overlap if row["k"] == k), None)


def measured(
    members: Sequence[Member],
    *,
    after: int | None = None,
    k_max: int = K_MAX,
    contrast: str = "class-mean",
    jobs: int = 1,
    quiet: bool = True,
) -> tuple[Point, ...]:
    """Return the points of members: all kept steps from the grok step on, or only the one at grok + `after`.

    A member that has not grokked, or not for `after` steps, has one point, its last kept step outside spikes; one that
    has none (it never learned its training inputs, or collapsed) has no point.
    """
    asked = [(member, step) for member in members for step in steps_of(member, after)]
    tasks = [(str(member.folder), step, k_max, contrast) for member, step in asked]
    left = [task for task in tasks if not _path(*task).exists()]
    if left:
        parallel_map(_measure, left, jobs=min(jobs, len(left)), description="measuring members", quiet=quiet)
    return tuple(_point(member, *task[1:]) for (member, _), task in zip(asked, tasks, strict=True))


def steps_of(member: Member, after: int | None) -> list[int]:
    """Return the steps at which a member is measured."""
    grok = member.phases.grok
    if grok is not None:
        later = [step for step in sorted(member.snapshots) if step >= grok + (after or 0)]
        if later:
            return later if after is None else later[:1]
    last = last_clean(member)
    return [] if last is None else [last]


def at_phase(points: Sequence[Point], after: int = AFTER, *, within: int | None = None) -> dict[str, Point]:
    """Return each member's first point at or after its grok step + `after`, by the key of its spec.

    within : steps that it may be later (None: any). Members without one are left out: they have no state of that phase.
    """
    found: dict[str, Point] = {}
    for point in sorted(points, key=lambda point: point.step):
        if point.since is not None and point.since >= after:
            found.setdefault(point.member.spec.key, point)
    return {k: p for k, p in found.items() if within is None or (p.since or 0) <= after + within}


def phase_note(points: Sequence[Point], spacing: int = 100) -> str:
    """Return a warning where points that are compared lie at different times after grokking; "" where they do not."""
    since = [point.since for point in points if point.since is not None]
    if not since or max(since) - min(since) <= spacing:
        return ""
    return (
        f"PHASES DIFFER: members are compared {min(since)} to {max(since)} steps after grokking, and every number here "
        "moves with that time; read the table 'trajectory'"
    )


def member_row(member: Member) -> Row:
    """Return what happened to a member as a flat record: its spec, its steps, how it ended."""
    spec, found = member.spec, member.phases
    status = {"steps": "not grokked within its steps", "": "under way"}.get(member.status, member.status)
    return {
        "size": spec.size, "ops": "+".join(spec.ops), "p": spec.p, "weight_decay": spec.weight_decay,
        "fraction": spec.fraction, "batch": spec.batch, "init": spec.init, "adversarial": spec.adversarial,
        "adversarial_k": spec.adversarial_k if spec.adversarial else None,
        "adversarial_basis": spec.adversarial_basis if spec.adversarial else "", "seed": spec.seed,
        "n_parameters": spec.shape.n_parameters, "memorise_step": found.memorise, "half_step": found.half,
        "step95": found.nearly, "grok_step": found.grok, "grok_after": None if found.grok is None else
        max(0, found.grok - found.spacing), "steady_step": found.steady, "last_step": member.step, "status": status,
        "train_acc": member.last["train_acc"], "held_out": held_out(member.last), "n_spikes": len(member.spikes),
        "member": spec.key[:12],
    }  # fmt: skip


def point_rows(point: Point) -> list[Row]:
    """Return a flat record per operation of a point, with its member's."""
    shared = {k: v for k, v in member_row(point.member).items() if k not in ("train_acc", "held_out")}
    return [
        {**shared, "step": point.step, "since_grok": point.since, "op": op, **record}
        for op, record in point.records.items()
    ]


def curve_rows(point: Point, condition: str) -> list[Row]:
    """Return the removal curves of a point as records (condition, seed, op, removed, k, accuracy)."""
    shared = {"condition": condition, "seed": point.member.spec.seed, "since_grok": point.since, "step": point.step}
    rows = []
    for op, curves in point.curves.items():
        for name, curve in curves.items():
            rows += [{**shared, "op": op, "removed": name, "k": k, "accuracy": value} for k, value in enumerate(curve)]
    return rows


@cache
def _code() -> str:
    """Return the hash of what measures."""
    return digest(*(inspect.getsource(module) for module in (measures, fourier, core_removal, core_geometry)))[:12]


def _path(folder: str, step: int, k_max: int, contrast: str) -> Path:
    return Path(folder) / f"measured-{step:06d}-{contrast}-{k_max}-{_code()}.json"


def _measure(folder: str, step: int, k_max: int, contrast: str) -> None:
    member = read_member(Path(folder))
    if member is None:
        raise InputError(f"a member must be there to be measured; {Path(folder).name} is not: train it anew")
    reading = read(member, step)
    require_clean(reading, f"step {step} of {member.spec.size} seed {member.spec.seed}")
    found: dict[str, Any] = {"records": {}, "curves": {}, "overlap": []}
    for i, op in enumerate(member.spec.ops):
        curves = removal(reading, i, k_max=k_max, contrast=contrast, seed=member.spec.seed)
        found["records"][op] = removal_record(curves) | geometry(reading, i)
        found["curves"][op] = {
            "its directions": curves.own, "random directions": curves.random.mean(0),
            "weakest directions": curves.weakest, "whole frequencies": curves.frequencies,
            **{f"its directions, on {other}": curve for other, curve in curves.others.items()},
        }  # fmt: skip
    if len(member.spec.ops) == 2:
        found["overlap"] = overlaps(reading)
    write_bytes(_path(folder, step, k_max, contrast), json.dumps(plain(found), allow_nan=False).encode())


def _point(member: Member, step: int, k_max: int, contrast: str) -> Point:
    path = _path(str(member.folder), step, k_max, contrast)
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path.name} of {path.parent.name} cannot be read: remove it and measure again") from error
    return Point(member, step, found["records"], found["curves"], tuple(found["overlap"]))
