"""Robustness: whether the geometry of a representation says how well a member withstands attacks on its input.

Conventions. One value per member, at the same time after grokking; rank correlation (Spearman) over members. Members of
one seed share their data split, so intervals come from a bootstrap of whole seeds. Weight decay moves geometry and
robustness alike and would correlate them by itself; "within weight decay" correlates ranks inside each decay only, and
its p comes from exchanging robustness among members of one decay.
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmprobe.grokking import attack as attacks
from lmprobe.grokking import plans
from lmprobe.grokking.attack import RADII, attack
from lmprobe.grokking.conditions import Condition, conditions, metric_rows
from lmprobe.grokking.measures import K_MAX
from lmprobe.grokking.members import read_member, read_members
from lmprobe.grokking.setting import Setting
from lmprobe.grokking.sweep import made_by, not_grokked_notes, task_words
from lmprobe.grokking.trajectory import AFTER, Point, at_phase, measured, member_row, phase_note
from probecore.errors import DesignError, InputError
from probecore.provenance import digest
from probecore.results import Figure, Result, Row, plain
from probecore.runs import parallel_map
from probecore.seeds import generator
from probecore.stats.bootstrap import expanded_interval
from probecore.stats.multiple import holm
from probecore.store import write_bytes

Floats = NDArray[np.float64]
N_POPULATION = 10  # seeds of each of five weight decays: 50 members
POPULATION = Setting(n_seeds=N_POPULATION)
GEOMETRY = {
    "k@95": "k95", "rank99 of class means": "rank99", "answer frequencies": "n_freq",
    "participation ratio": "participation", "rank99 of states": "pca_rank99",
}  # fmt: skip
LEAST, RESAMPLES, EXCHANGES = 20, 1000, 4999


def robustness(
    setting: Setting = POPULATION,
    *,
    run: str | Path | None = None,
    k_max: int = K_MAX,
    after: int = AFTER,
) -> Result:
    """Attack the inputs of a population of members and correlate what they withstand with their geometry.

    run : a folder of members; None trains `plans.population`, five weight decays and the setting's seeds.

    Returns a `Result` of kind "grok-robustness". Raises `DesignError` for fewer than 20 members that grokked.
    """
    asked = plans.population(setting.quick, setting.seeds)
    members = setting.train(asked) if run is None else read_members(run)
    at = at_phase(measured(members, after=after, k_max=k_max, jobs=setting.processes, quiet=setting.quiet), after)
    points = list(at.values())
    if len(points) < LEAST:
        raise DesignError(
            f"a rank correlation over members needs at least {LEAST}; {len(points)} of {len(members)} have a step "
            f"{after} steps after grokking: train more seeds"
        )
    attacked = attack_records(points, jobs=setting.processes, quiet=setting.quiet)
    found = conditions(members, asked if run is None else None)
    with_attack = {key: _with(point, attacked[key]) for key, point in at.items()}
    rows = correlations(list(with_attack.values()), setting.seed)
    rows += metric_rows(found, with_attack, {"epsilon50": "epsilon50"}) + metric_rows(
        found, with_attack, {"input accuracy, random perturbation of that norm": "random_at"}
    )
    warning = phase_note(points)
    beyond = sum(bool(record["epsilon50_censored"]) for record in attacked.values())
    far = [f"{beyond} members withstand the largest radius: epsilon50 is {RADII[-1]:g} or more"] if beyond else []
    few = [] if len(points) >= 50 else [f"{len(points)} members: fewer than the 50 asked for"]
    return Result(
        kind="grok-robustness",
        title=f"Geometry and robustness: {task_words(members)}",
        rows=tuple(rows),
        columns=("metric", "condition", "op", "value", "ci_low", "ci_high", "p_value", "p_adjusted", "n_members"),
        notes=(
            *not_grokked_notes(found, setting),
            *few,
            *far,
            *([warning] if warning else []),
            "epsilon50: L2 radius of an attack on an input's embeddings, in mean norms of a number's embedding, at "
            "which half of the held-out answers are wrong; an upper bound, as a better attack may exist",
            "p: exchanges of epsilon50 among members of one weight decay, adjusted (Holm) over the measures; over all "
            "members there is no p, as weight decay moves both",
        ),
        provenance=made_by(setting, k_max=k_max, after=after, radii=list(RADII)),
        tables={
            "members": tuple(_member_rows(with_attack)),
            "attack": tuple(_attack_table(found, attacked, at)),
        },
        figures=(
            Figure("robustness", "scatter", "members", "Geometry and robustness of every member",
                   "One point a member. Points of one weight decay lie together where decay moves both.",
                   {"x": "k95", "y": "epsilon50", "series": "condition", "x_title": "k@95", "y_title": "epsilon50"}),
            Figure("attack", "lines", "attack", "Held-out accuracy under attack",
                   "Mean over members. 'random' is a random perturbation of the same norm.",
                   {"x": "radius", "y": "accuracy", "series": "condition", "facet": "perturbation", "log": True,
                    "x_title": "Radius (mean embedding norms)", "y_title": "Accuracy", "zero": True}),
        ),
    )  # fmt: skip


def attack_records(points: Sequence[Point], *, jobs: int = 1, quiet: bool = True) -> dict[str, Row]:
    """Return what the attack found on each point, by the key of its spec; kept beside the member."""
    tasks = [(str(point.member.folder), point.step) for point in points]
    left = [task for task in tasks if not _path(*task).exists()]
    if left:
        parallel_map(_attack, left, jobs=min(jobs, len(left)), description="attacking members", quiet=quiet)
    return {
        point.member.spec.key: json.loads(_path(*task).read_text()) for point, task in zip(points, tasks, strict=True)
    }


def correlations(points: Sequence[Point], seed: int = 0) -> list[Row]:
    """Return Spearman correlations of each measure of geometry with epsilon50, over all members and within decays."""
    op = points[0].member.spec.ops[0]
    decays = np.unique([p.member.spec.weight_decay for p in points], return_inverse=True)[1]
    seeds = np.unique([p.member.spec.seed for p in points], return_inverse=True)[1]
    robust = np.array([float(p.value("epsilon50", op) or 0.0) for p in points])
    every: list[Row] = []
    inner: list[Row] = []
    for name, metric in GEOMETRY.items():
        values = np.array([float(v) if (v := p.value(metric, op)) is not None else np.nan for p in points])
        kept = np.isfinite(values)
        for inside, where in ((False, every), (True, inner)):
            groups = decays[kept] if inside else np.zeros(int(kept.sum()), dtype=np.int64)
            rho = rank_correlation(values[kept], robust[kept], groups)
            low, high = bootstrap(values[kept], robust[kept], groups, seeds[kept], seed)
            p = exchange_p(values[kept], robust[kept], groups, seed) if inside else None
            where.append(
                {"metric": f"Spearman of {name} and epsilon50", "condition": "within weight decay" if inside else
                 "all members", "op": op, "value": rho, "ci_low": low, "ci_high": high, "p_value": p,
                 "p_note": "" if inside else "weight decay moves both: exchanging members says nothing",
                 "ci_note": "" if np.isfinite(low) else "fewer than two seeds, or no spread", "n_members":
                 int(kept.sum()), "n_seeds": len(np.unique(seeds[kept])), "p_adjusted": None}
            )  # fmt: skip
    for row, adjusted in zip(inner, holm([row["p_value"] for row in inner]), strict=True):
        row["p_adjusted"] = float(adjusted)
    return [*every, *inner]


def rank_correlation(x: Floats, y: Floats, groups: NDArray[np.int64], weights: Floats | None = None) -> float:
    """Return Spearman's rank correlation; with several groups, of ranks inside groups minus the groups' means.

    weights : how often each member counts. Ties have their mean rank. NaN where one side has no spread.
    """
    w = np.ones(len(x)) if weights is None else weights
    a, b = _centred_ranks(x, y, groups, w)
    spread = float(np.sqrt((w * a * a).sum() * (w * b * b).sum()))
    return float((w * a * b).sum() / spread) if spread > 0 else float("nan")


def bootstrap(
    x: Floats, y: Floats, groups: NDArray[np.int64], seeds: NDArray[np.int64], seed: int
) -> tuple[float, float]:
    """Return the interval of `rank_correlation` when whole seeds are drawn."""
    rng, codes = generator(seed, "robustness bootstrap"), np.unique(seeds, return_inverse=True)[1]
    n = int(codes.max()) + 1
    if n < 2:
        return float("nan"), float("nan")
    counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)[:, codes].astype(np.float64)
    values = np.array([rank_correlation(x, y, groups, w) for w in counts])
    return expanded_interval(values, n)


def exchange_p(x: Floats, y: Floats, groups: NDArray[np.int64], seed: int) -> float:
    """Return the two-sided p of `rank_correlation` when y is exchanged inside groups."""
    rng = generator(seed, "robustness exchanges")
    a, b = _centred_ranks(x, y, groups, np.ones(len(x)))
    spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
    if spread == 0:
        return float("nan")
    # an exchange inside groups moves ranks inside groups and changes neither their mean nor their spread
    null = np.zeros(EXCHANGES)
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        null += rng.permuted(np.tile(b[own], (EXCHANGES, 1)), axis=1) @ a[own]
    extreme = np.abs(null) >= abs(float((a * b).sum())) - 1e-9 * spread
    return (int(extreme.sum()) + 1) / (EXCHANGES + 1)


def _centred_ranks(x: Floats, y: Floats, groups: NDArray[np.int64], weights: Floats) -> tuple[Floats, Floats]:
    """Return the ranks of both inside each group, minus the group's mean rank."""
    a, b = np.zeros(len(x)), np.zeros(len(x))
    for group in np.unique(groups):
        own = (groups == group) & (weights > 0)
        if own.any():
            for values, ranks in ((x, a), (y, b)):
                found = _weighted_ranks(values[own], weights[own])
                ranks[own] = found - np.average(found, weights=weights[own])
    return a, b


def _weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Return mean ranks of values that stand for `weights` copies each."""
    order = np.argsort(values, kind="stable")
    ordered, w = values[order], weights[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    totals = np.add.reduceat(w, starts)
    middle = np.cumsum(totals) - totals / 2 + 0.5
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(middle, np.diff(np.r_[starts, len(values)]))
    return ranks


def _with(point: Point, record: Row) -> Point:
    op = point.member.spec.ops[0]
    shared = {**point.records[op], "epsilon50": record["epsilon50"], "random_at": record["random_at"]}
    return Point(point.member, point.step, {**point.records, op: shared}, point.curves, point.overlap)


def _member_rows(at: dict[str, Point]) -> list[Row]:
    rows = []
    for point in at.values():
        op = point.member.spec.ops[0]
        record = {**member_row(point.member), "since_grok": point.since, **point.records[op]}
        rows.append({**record, "k95": point.value("k95", op), "condition": f"WD {point.member.spec.weight_decay:g}"})
    return rows


def _attack_table(found: Sequence[Condition], attacked: dict[str, Row], at: dict[str, Point]) -> list[Row]:
    rows = []
    for condition in found:
        records = [attacked[point.member.spec.key] for point in condition.points(at)]
        for kind, field in (("attack", "accuracy"), ("random", "random")):
            curves = np.array([record[field] for record in records])
            for radius, values in zip(RADII, curves.T, strict=False):  # no radius where nobody was attacked
                rows.append({"condition": condition.name, "perturbation": kind, "radius": radius,
                             "accuracy": float(values.mean()), "n_members": len(records)})  # fmt: skip
    return rows


def _path(folder: str, step: int) -> Path:
    return Path(folder) / f"attacked-{step:06d}-{digest(inspect.getsource(attacks))[:12]}.json"


def _attack(folder: str, step: int) -> None:
    member = read_member(Path(folder))
    if member is None:
        raise InputError(f"a member must be there to be attacked; {Path(folder).name} is not: train it anew")
    found = attack(member, step)
    nearest = int(np.argmin(np.abs(np.log(np.array(RADII)) - np.log(found.epsilon50))))
    record = {
        "epsilon50": found.epsilon50, "epsilon50_censored": found.censored, "alpha50": found.alpha50,
        "accuracy": found.accuracy, "random": found.random, "random_at": float(found.random[nearest]),
    }  # fmt: skip
    write_bytes(_path(folder, step), json.dumps(plain(record), allow_nan=False).encode())
