"""`lmprobe reproduce research-log`: every claim of the research log as a row with estimate, interval and verdict.

Conventions. `log_claims` lists the claims and their rules, `log_evidence` reads the members, the core judges. A part is
one experiment; its members lie in one folder and are shared between parts, so that a run that was stopped goes on and
parts can be run one at a time. What was not run, or did not grok, leaves its claims undecided with the reason.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lmprobe.grokking import log_evidence as read
from lmprobe.grokking import plans
from lmprobe.grokking.batch_size import batch_size
from lmprobe.grokking.conditions import Condition, conditions
from lmprobe.grokking.confounds import confound_notes
from lmprobe.grokking.log_claims import (
    ADVERSARIAL,
    BATCH,
    CAPACITY,
    CLAIMS,
    CONFOUNDS,
    LOGS_SIZE,
    MULTITASK,
    PARTS,
    ROBUSTNESS,
    SWEEP,
    TRILEMMA,
)
from lmprobe.grokking.measures import K_MAX
from lmprobe.grokking.robustness import N_POPULATION, robustness
from lmprobe.grokking.setting import N_SEEDS, Setting
from lmprobe.grokking.spec import BASES, Spec
from lmprobe.grokking.sweep import made_by, standing_notes, sweep
from lmprobe.grokking.trajectory import AFTER, Point, measured, member_row
from lmprobe.grokking.trilemma import plan as trilemma_plan
from lmprobe.grokking.trilemma import trilemma
from lmprobe.grokking.two_operations import capacity, multitask, removal_resistant
from probecore.claims import COLUMNS, Part, claim_figures, claim_rows, claim_tables, refusals, rules_note
from probecore.errors import DesignError, InputError
from probecore.results import Result, Row
from probecore.verdicts import Evidence

Found = tuple[tuple[Condition, ...], tuple[Point, ...]]
NOT_ITS_SIZE = "a number of the log's own task and size; run with --full"
QUICK = Setting(quick=True)
TABLES_LEFT_OUT = ("trajectory", "curves", "learning", "members")


def research_log(
    setting: Setting = QUICK,
    *,
    parts: Sequence[str] | None = None,
    k_max: int = K_MAX,
    after: int = AFTER,
) -> Result:
    """Test every claim of the research log.

    setting : robustness takes twice its seeds; the same call goes on where it was stopped. parts : the experiments to
    run (None: all); the claims of others are not decided.

    Returns a `Result` of kind "claims". Raises `InputError` for an unknown part, `DesignError` where nothing is to be
    trained and no member is there.
    """
    chosen = PARTS if parts is None or not list(parts) else tuple(parts)
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        raise InputError(f"parts must be among {', '.join(PARTS)}; got {', '.join(unknown)}")
    notes = _standing(chosen, setting)
    measured_parts = {name: _part(name, setting, k_max, after, chosen) for name in PARTS}
    rows = [_finished(row) for row in claim_rows(CLAIMS, measured_parts)]
    decided = sum(row["verdict"] != "not decided" for row in rows)
    tables = {
        name: found
        for name, found in claim_tables(measured_parts).items()
        if not any(name.endswith(f"-{left}") for left in TABLES_LEFT_OUT)
    }
    figures = tuple(f for f in claim_figures(measured_parts) if f.table in tables)
    return Result(
        kind="claims",
        title=f"Claims of the research log: {'small tasks and models' if setting.quick else 'its own sizes'}, "
              f"{setting.n_seeds} seeds",
        rows=tuple(rows),
        columns=COLUMNS,
        notes=(
            *(["--quick: small tasks and models. A verdict is about these, not about the log's; its printed numbers "
               "are not tested here"] if setting.quick else []),
            *notes,
            f"{decided} of {len(rows)} claims are decided, with {setting.n_seeds} seeds of each condition",
            f"members are compared at the first clean step at least {after} steps after their own grok step",
            *refusals(measured_parts),
            *confound_notes(tables.get(f"{SWEEP}-confounds", ())),
            rules_note(len(CLAIMS)),
            *(f"could also make '{row['claim']}' come out so: {row['confounds']}" for row in rows),
        ),
        provenance=made_by(setting, full=not setting.quick, parts=list(chosen), k_max=k_max, after=after),
        tables={"all_members": tuple(_all_members(setting)), **tables},
        figures=figures,
    )  # fmt: skip


def _finished(row: Row) -> Row:
    """Add the confounds, and say what an interval without an upper end is."""
    row = {**row, "confounds": CONFOUNDS[row["claim"]]}
    if row["ci_low"] is not None and (row["ci_high"] is None or row["ci_high"] == math.inf):
        row["ci_note"] = f"from {row['ci_low']:.3g} upwards: members that had not grokked make the value a lower bound"
    return row


def _part(name: str, setting: Setting, k_max: int, after: int, chosen: Sequence[str]) -> Part:
    if name not in chosen:
        return Part(reason="not among the parts asked for")
    setting = _told(name, setting)
    compared_at = {} if name == BATCH else {"k_max": k_max, "after": after}
    try:
        result = EXPERIMENTS[name](setting, **compared_at)
        return Part(result, EVIDENCE[name](setting, result, k_max, after))
    except DesignError as error:
        specs = _plan(name, setting)
        absent = read.untrained_members(conditions(setting.trained(specs), specs), name) if setting.trained_only else ""
        return Part(reason=absent or str(error))


def _told(name: str, setting: Setting) -> Setting:
    """Return the setting of a part: a correlation over members needs more of them."""
    if name == ROBUSTNESS and setting.n_seeds >= N_SEEDS:
        return replace(setting, n_seeds=max(N_POPULATION, 2 * setting.n_seeds))
    return setting


def _plan(name: str, setting: Setting) -> tuple[Spec, ...]:
    """Return the members of a part."""
    if name == TRILEMMA:
        return trilemma_plan(setting)
    plan = {SWEEP: plans.sweep, MULTITASK: plans.multitask, ADVERSARIAL: plans.adversarial, CAPACITY: plans.capacity,
            BATCH: plans.batch_sizes, ROBUSTNESS: plans.population}[name]  # fmt: skip
    return plan(setting.quick, setting.seeds)


def _standing(chosen: Sequence[str], setting: Setting) -> list[str]:
    """Return the note on how many members there are where none is to be trained; refused where there is none."""
    if not setting.trained_only:
        return []
    specs = [spec for name in chosen for spec in _plan(name, _told(name, setting))]
    return standing_notes(conditions(setting.train(specs), specs), setting)


def _found(name: str, setting: Setting, k_max: int) -> Found:
    """Return conditions and points of members that an experiment has trained and measured just before."""
    specs = _plan(name, setting)
    members = setting.trained(specs)
    base = plans.base(setting.quick) if name == SWEEP else None
    return conditions(members, specs, base), measured(members, k_max=k_max, jobs=setting.processes, quiet=True)


def _logs_own(setting: Setting, found: Mapping[str, Evidence]) -> dict[str, Evidence]:
    """Replace what is said of the log's numbers where the sizes are not the log's."""
    return {k: Evidence(reason=NOT_ITS_SIZE) if setting.quick and k in LOGS_SIZE else e for k, e in found.items()}


def _sweep(setting: Setting, _: Result, k_max: int, after: int) -> dict[str, Evidence]:
    found, points = _found(SWEEP, setting, k_max)
    base = plans.base(setting.quick)
    size, own = {"layers": base.layers, "width": base.width}, {"fraction": base.fraction, "init": base.init}
    other = {"fraction": base.fraction, "init": plans.OTHER_INIT}
    none, weak, one = (read.find(found, weight_decay=w, **size, **own) for w in (0.0, 0.1, plans.HEAD))
    none_other, weak_other, one_other = (
        read.find(found, weight_decay=w, **size, **other) for w in (0.0, 0.1, plans.HEAD)
    )
    most, much = (read.find(found, **{**size, **own, "fraction": f}, weight_decay=plans.HEAD) for f in (0.9, 0.7))
    large, small = (
        read.find(found, layers=layers, width=width, weight_decay=plans.HEAD, **own)
        for layers, width in ((2, 64 if setting.quick else 128), (1, 64))
    )
    op = base.ops
    return _logs_own(setting, {
        "sooner": read.grok_ratio(none, one), "32x": read.grok_ratio(none, one),
        "sooner-fan-in": read.grok_ratio(none_other, one_other),
        "data": read.grok_ratio(most, much),
        "small-sooner": read.grok_ratio(large, small),
        "diffuse": read.rank_at_end(none, one, points, after),
        "sweet-spot": read.compared(weak, one, points, "k95", op, after),
        "sweet-fan-in": read.compared(weak_other, one_other, points, "k95", op, after),
        "rank-decay": read.compared(weak, one, points, "rank99", op, after),
        "rank99-27": read.of_condition(one, points, "rank99", op[0], after),
        "k95-11": read.of_condition(one, points, "k95", op[0], after),
        "survives-30": read.of_condition(weak, points, "k95", op[0], after),
    })  # fmt: skip


def _multitask(setting: Setting, _: Result, k_max: int, after: int) -> dict[str, Evidence]:
    found, points = _found(MULTITASK, setting, k_max)
    both, alone = read.find(found, ops=plans.BOTH), read.find(found, ops=("add",))
    return _logs_own(setting, {
        "company": read.compared(alone, both, points, "k95", ("add",), after),
        "k95-2": read.of_condition(both, points, "k95", "add", after),
        "orthogonal": read.overlap_evidence(both, points, 10, after, beyond=True),
        "overlap-10": read.overlap_evidence(both, points, 10, after, beyond=False),
        "overlap-30": read.overlap_evidence(both, points, 30, after, beyond=False),
        "collateral": read.over_operations(both, points, "collateral10", after),
        "selective": read.selective_share(both, points, after),
    })  # fmt: skip


def _adversarial(setting: Setting, _: Result, k_max: int, after: int) -> dict[str, Evidence]:
    found, points = _found(ADVERSARIAL, setting, k_max)
    plain = read.find(found, adversarial=0.0)
    against, control = (read.find(found, adversarial=0.1, adversarial_basis=basis) for basis in BASES)
    rank = read.compared(against, plain, points, "rank95", plans.BOTH, after, ratio=True)
    return {
        "spreads": rank, "twice": rank,
        "not-the-loss": read.compared(against, control, points, "rank95", plans.BOTH, after, ratio=True),
        "resists": read.compared(against, plain, points, "k95", plans.BOTH, after),
        "entangles": read.overlap_difference(against, plain, points, 10, after),
    }  # fmt: skip


def _capacity(setting: Setting, _: Result, k_max: int, after: int) -> dict[str, Evidence]:
    found, points = _found(CAPACITY, setting, k_max)
    base = plans.base_of_two(setting.quick)
    one, two = (read.find(found, layers=n, width=base.width, init=base.init) for n in (1, 2))
    small = [c for c in found if c.spec.width == 32]
    return {
        "capacity": read.overlap_difference(one, two, points, 10, after),
        "too-small": read.best_accuracy(small),
    }


def _batch(setting: Setting, _: Result, k_max: int, after: int) -> dict[str, Evidence]:
    specs = _plan(BATCH, setting)
    found = conditions(setting.trained(specs), specs)
    return {
        "small-batch": read.batch_evidence(found, scaled=False),
        "not-decay": read.batch_evidence(found, scaled=True),
    }


def _robustness(setting: Setting, result: Result, k_max: int, after: int) -> dict[str, Evidence]:
    row = next(r for r in result.rows if r["condition"] == "within weight decay" and "k@95" in r["metric"])
    specs = _plan(ROBUSTNESS, setting)
    absent = read.untrained_members(conditions(setting.trained(specs), specs), ROBUSTNESS)
    return {"geometry": read.row_evidence(row, row["n_members"], absent)}


def _trilemma(setting: Setting, result: Result, k_max: int, after: int) -> dict[str, Evidence]:
    row = next(r for r in result.rows if r["metric"] == "Spearman of separability and robustness")
    specs = [spec for spec in _plan(TRILEMMA, setting) if len(spec.ops) == 2]
    absent = read.untrained_members(conditions(setting.trained(specs), specs), "two operations")
    return {"trilemma": read.row_evidence(row, row["n_members"], absent)}


EXPERIMENTS: Mapping[str, Callable[..., Result]] = {
    SWEEP: sweep, MULTITASK: multitask, ADVERSARIAL: removal_resistant, CAPACITY: capacity, BATCH: batch_size,
    ROBUSTNESS: robustness, TRILEMMA: trilemma,
}  # fmt: skip
EVIDENCE: Mapping[str, Callable[[Setting, Result, int, int], dict[str, Evidence]]] = {
    SWEEP: _sweep, MULTITASK: _multitask, ADVERSARIAL: _adversarial, CAPACITY: _capacity, BATCH: _batch,
    ROBUSTNESS: _robustness, TRILEMMA: _trilemma,
}  # fmt: skip


def _all_members(setting: Setting) -> list[Row]:
    every = {
        spec.key: spec for name in (SWEEP, MULTITASK, ADVERSARIAL, CAPACITY, BATCH) for spec in _plan(name, setting)
    }
    return [member_row(member) for member in setting.trained(list(every.values()))]
