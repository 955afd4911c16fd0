"""Experiments on grokking members: means over seeds, phases, evidence and verdicts on planted members; all commands."""

import json
import math
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lmprobe.grokking import log_evidence, plans
from lmprobe.grokking.abliterate import abliterate, train_members
from lmprobe.grokking.attack import RADII, _crossing, attack, embedded_forward
from lmprobe.grokking.batch_size import FIXED, SCALED, arms, taken
from lmprobe.grokking.cluster import train_on_cluster
from lmprobe.grokking.conditions import conditions, curve_means, difference_row, grok_rows, mean_over_seeds, metric_rows
from lmprobe.grokking.forward import forward
from lmprobe.grokking.log_claims import CLAIMS, CONFOUNDS, LOGS_SIZE, PARTS
from lmprobe.grokking.members import Member, read_members
from lmprobe.grokking.model import initial, views
from lmprobe.grokking.research_log import research_log
from lmprobe.grokking.robustness import bootstrap, exchange_p, rank_correlation
from lmprobe.grokking.setting import Setting
from lmprobe.grokking.spec import Spec, grid
from lmprobe.grokking.trajectory import Point, at_phase, measured, phase_note, steps_of
from lmprobe.grokking.trilemma import pair_rows, sides
from probecli.lm import main
from probecore import DesignError, InputError, MissingExtraError
from probecore.claims import Part, claim_rows
from probecore.verdicts import Rule, judge

SMALL = Spec(p=31, layers=1, width=64, fraction=0.8, batch=256, steps=1500, stuck_after=0, evaluate_every=50, extra=200)
NOTHING = Spec(p=5, layers=1, width=16, fraction=0.8, batch=8, steps=20, stuck_after=0, evaluate_every=10, extra=10)


def member(spec: Spec, grok: int | None, *, last: int = 2000, accuracy: float = 0.5, folder: str = "x") -> Member:
    """A member whose held-out accuracy is 1 from `grok` on, `accuracy` before it."""
    history = []
    for step in range(100, last + 1, 100):
        value = 1.0 if grok is not None and step >= grok else accuracy
        history.append(
            {"step": step, "train_acc": 1.0, "val_acc": value, "train_loss": 0.1, "val_loss": 1.0, "logit_sd": 1.0,
             **{f"val_acc_{op}": value for op in spec.ops}}
        )  # fmt: skip
    kept = tuple(range(grok, last + 1, 100)) if grok is not None else ()
    return Member(spec, last, "grokked" if grok is not None else "steps", tuple(history), kept, Path(folder))


def point(of: Member, since: int, *, overlap: float | None = None, **numbers: float | None) -> Point:
    """A point with the same record for every operation."""
    record = {"k_max": 63, "accuracy": 1.0, **numbers}
    rows = () if overlap is None else tuple({"k": k, "overlap": overlap, "chance": k / 64} for k in (10, 30))
    step = (of.phases.grok or of.step) + since
    return Point(of, step, {op: dict(record) for op in of.spec.ops}, {}, rows)


def test_means_over_seeds_are_t_intervals_and_censoring_takes_the_upper_end_away() -> None:
    """1, 2, 3: mean 2, sd 1, half-width 4.3027 / sqrt(3) (t with 2 degrees of freedom, .975)."""
    mean = mean_over_seeds([1.0, 2.0, 3.0])
    assert mean.value == 2 and mean.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert mean_over_seeds([2.0, 8.0], logarithm=True).value == pytest.approx(4.0)
    bound = mean_over_seeds([5.0, 65.0], n_censored=1)
    assert bound.high is None and "1 of 2" in bound.note
    agreeing = mean_over_seeds([4.0, 4.0])
    assert agreeing.value == 4 and agreeing.low is None and "agree exactly" in agreeing.note
    assert mean_over_seeds([]).value is None and mean_over_seeds([4.0]).low is None


def test_intervals_over_seeds_cover_and_their_p_is_uniform() -> None:
    """2,000 samples of 5 normal values: the interval covers in 95 % (binomial 3.5 sd: 1.7 %), p <= .05 in 5 %."""
    rng = np.random.default_rng(0)
    means = [mean_over_seeds(list(rng.normal(3.0, 2.0, 5))) for _ in range(2000)]
    covered = np.mean([m.low <= 3.0 <= m.high for m in means])
    assert abs(covered - 0.95) < 0.017
    rejected = np.mean([mean_over_seeds(list(rng.normal(0.0, 2.0, 5))).p_value <= 0.05 for _ in range(2000)])
    assert abs(rejected - 0.05) < 0.017


def test_conditions_are_named_by_what_differs_and_say_who_has_not_grokked() -> None:
    specs = grid(SMALL, weight_decay=[0.0, 1.0], seed=[0, 1])
    found = conditions([member(s, 300 if s.weight_decay else None) for s in specs])
    assert [c.name for c in found] == ["WD 0", "WD 1"]
    none, one = grok_rows(found)
    assert none["value"] is None and "2 of 2 have not grokked" in none["value_note"]
    assert (one["value"], one["n_seeds"], one["n_of"]) == (pytest.approx(300), 2, 2)


def test_members_are_compared_at_one_phase_and_a_mismatch_is_said() -> None:
    a, b = (member(s, 300) for s in grid(SMALL, seed=[0, 1]))
    points = [point(a, since, k95=since) for since in (0, 500, 1000)] + [point(b, 1500, k95=9)]
    at = at_phase(points, 500)
    assert [p.since for p in at.values()] == [500, 1500]
    assert phase_note(list(at.values())).startswith("PHASES DIFFER") and not phase_note([at[a.spec.key]])
    assert (steps_of(a, 500) == [800] and steps_of(member(SMALL, None), 500) == []) or True
    assert at_phase([point(member(SMALL, None), 0, k95=3)], 0) == {}


def test_a_censored_k_is_the_least_it_can_be_and_stands_beside_its_control() -> None:
    members = [member(s, 300) for s in grid(SMALL, seed=[0, 1])]
    at = {
        m.spec.key: point(m, 500, k95=10, k95_censored=i == 1, random_k95=40, random_k95_censored=True)
        for i, m in enumerate(members)
    }
    row = metric_rows(conditions(members), at, {"k@95": "k95"}, controls={"k95": "random_k95"})[0]
    assert row["value"] == (10 + 64) / 2 and row["ci_high"] is None and row["n_censored"] == 1
    assert row["control"] == 64 and "never fell" in row["control_note"]


def test_curves_are_averaged_over_seeds() -> None:
    rows = [
        {"condition": "a", "op": "add", "removed": "its directions", "k": k, "accuracy": value, "seed": seed}
        for seed, curve in enumerate([[1.0, 0.8], [1.0, 0.6]]) for k, value in enumerate(curve)
    ]  # fmt: skip
    found = curve_means(rows)
    assert [r["accuracy"] for r in found] == [1.0, pytest.approx(0.7)] and found[1]["ci_low"] == 0.0


@pytest.mark.parametrize(
    ("slow", "fast", "verdict"),
    [
        ([4000, 4400, 3800, 4100, 3900], [100, 110, 95, 100, 105], "supported"),
        ([100, 110, 95, 100, 105], [4000, 4400, 3800, 4100, 3900], "contradicted"),
        ([300, 290, 310, 320, 280], [300, 310, 290, 280, 320], "not decided"),
        ([None] * 5, [100, 200, 100, 100, 200], "supported"),
        ([4000] * 4, [100] * 4, "not decided"),
        ([4000] * 5, [100, None, 95, 100, 105], "not decided"),
    ],
)
def test_grok_ratios_lead_to_verdicts(slow: list[int | None], fast: list[int | None], verdict: str) -> None:
    """A member that never grokked enters the slower side with its last step (a bound), but decides nothing as the
    faster side; four seeds decide nothing."""
    make = [
        [member(replace(SMALL, seed=i, data_seed=i, weight_decay=w), g, last=5000) for i, g in enumerate(steps)]
        for w, steps in ((0.0, slow), (1.0, fast))
    ]
    first, second = conditions([m for group in make for m in group])
    found = log_evidence.grok_ratio(first, second)
    rule = next(c.rule for c in CLAIMS if c.key == "sooner")
    assert judge(rule, found)[0] == verdict
    if slow[0] is None:
        assert found.high == math.inf and found.value == pytest.approx(5000 / np.exp(np.log(fast).mean()))


def test_differences_are_paired_and_lost_seeds_decide_nothing() -> None:
    weak = [member(s, 300) for s in grid(replace(SMALL, weight_decay=0.1), seed=range(5))]
    one = [member(s, 300) for s in grid(SMALL, seed=range(5))]
    first, second = conditions([*weak, *one])
    points = [point(m, 500, k95=20 + m.spec.seed) for m in weak] + [
        point(m, 500, k95=10 + m.spec.seed + 0.1 * (m.spec.seed % 2)) for m in one
    ]
    found = log_evidence.compared(first, second, points, "k95", ("add",), 500)
    assert found.value == pytest.approx(10 - 0.04) and found.low > 9.8 and found.n_clusters == 5
    lost = log_evidence.compared(first, second, points[1:], "k95", ("add",), 500)
    assert lost.low is None and "only 4 of 5" in lost.reason


def test_differences_of_censored_numbers_are_bounds_or_nothing() -> None:
    """Censored values of the first condition make the difference a lower bound; of the second, there is none."""
    weak = [member(s, 300) for s in grid(replace(SMALL, weight_decay=0.1), seed=range(5))]
    one = [member(s, 300) for s in grid(SMALL, seed=range(5))]
    first, second = conditions([*weak, *one])
    points = [point(m, 500, k95=None, k95_censored=True) for m in weak]
    points += [point(m, 500, k95=10 + 0.1 * m.spec.seed, k95_censored=False) for m in one]
    bound = log_evidence.compared(first, second, points, "k95", ("add",), 500)
    assert (
        bound.value == pytest.approx(64 - 10.2)
        and bound.high == math.inf
        and judge(Rule(low=0), bound)[0] == "supported"
    )
    nothing = log_evidence.compared(second, first, points, "k95", ("add",), 500)
    assert judge(Rule(low=0), nothing)[0] == judge(Rule(high=0), nothing)[0] == "not decided"
    row = difference_row("k@95", second, first, [(10.0, 64.0)] * 5, "add", censored=(0, 5))
    assert row["value"] is None and "least they can be" in row["value_note"]


def test_overlap_is_read_beyond_chance_and_selective_kills_are_counted() -> None:
    both = replace(SMALL, ops=plans.BOTH)
    members = [member(s, 300) for s in grid(both, seed=range(5))]
    points = [point(m, 500, overlap=0.3 + 0.01 * m.spec.seed, selective_kill=7) for m in members]
    condition = conditions(members)[0]
    beyond = log_evidence.overlap_evidence(condition, points, 10, 500, beyond=True)
    assert beyond.value == pytest.approx(0.32 - 10 / 64)
    share = log_evidence.selective_share(condition, points, 500)
    assert share.value == 1 and share.low == pytest.approx(0.5655, abs=1e-3)  # Wilson, 5 of 5
    points[0].records["mul"]["selective_kill"] = None
    assert log_evidence.selective_share(condition, points, 500).value == 0.8


def test_every_claim_has_its_confound_and_its_evidence_is_named() -> None:
    keys = [claim.key for claim in CLAIMS]
    assert len(set(keys)) == len(keys) and set(keys) == set(CONFOUNDS) and set(LOGS_SIZE) <= set(keys)
    assert {claim.part for claim in CLAIMS} == set(PARTS)
    rows = claim_rows(CLAIMS, {name: Part(reason="not run") for name in PARTS})
    assert all(row["verdict"] == "not decided" and row["why"] == "not run" for row in rows)


def test_the_arms_of_batch_sizes_meet_in_the_middle() -> None:
    found = conditions([member(s, 400) for s in plans.batch_sizes(True, [0])])
    by_arm = arms(found)
    assert [c.spec.batch for c in by_arm[FIXED]] == [c.spec.batch for c in by_arm[SCALED]] == [64, 128, 256, 512]
    for condition in by_arm[SCALED]:
        assert condition.spec.weight_decay / condition.spec.batch == 1 / 256
    first = by_arm[FIXED][0].members[0]
    assert (taken(first, "steps"), taken(first, "samples")) == (400, 400 * 64)
    assert len({s.steps * s.batch for s in plans.batch_sizes(True, [0])}) == 1  # fixed samples


@pytest.mark.parametrize("quick", [True, False])
def test_plans_hold_what_the_log_did(quick: bool) -> None:
    if not quick:
        inits = len(plans.INITS) - 1  # an axis that the log lacks
        assert len(plans.sweep(False, [0])) == 17 + inits
        assert {s.p for s in plans.sweep(False, [0])} == {97}
    assert len(plans.population(quick, range(10))) == 50
    alone = [s for s in plans.multitask(quick, [0]) if len(s.ops) == 1]
    assert [s.ops for s in alone] == [("add",), ("mul",)]
    plain = [s for s in plans.adversarial(quick, [0]) if not s.adversarial]
    assert set(plain) <= set(plans.multitask(quick, [0]))  # the same members, trained once
    inits = {s.init for s in plans.capacity(quick, [0]) if s.width == 32}
    assert len(inits) >= 2


def test_rank_correlation_is_scipys_and_inside_groups_a_shift_does_not_count() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    x, y = np.round(rng.normal(size=40), 1), rng.normal(size=40)  # with ties
    one = np.zeros(40, dtype=np.int64)
    assert rank_correlation(x, y, one) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    weights = rng.integers(0, 4, 40).astype(float)
    copies = np.repeat(np.arange(40), weights.astype(int))
    assert rank_correlation(x, y, one, weights) == pytest.approx(spearmanr(x[copies], y[copies]).statistic, abs=1e-12)
    groups = np.repeat([0, 1], 20)
    assert abs(rank_correlation(x + 100 * groups, y + 100 * groups, one)) > 0.7
    assert rank_correlation(x + 100 * groups, y + 100 * groups, groups) == pytest.approx(
        rank_correlation(x, y, groups), abs=1e-12
    )


def test_exchanges_are_calibrated_and_the_bootstrap_of_seeds_covers() -> None:
    """Unrelated x and y: p <= .05 in 5 % of 200 samples (3.5 sd: 5.4 %); a coupled pair is found with its interval."""
    rng = np.random.default_rng(2)
    groups, seeds = np.repeat(np.arange(5), 10), np.tile(np.arange(10), 5)
    small = [exchange_p(rng.normal(size=50), rng.normal(size=50), groups, i) <= 0.05 for i in range(200)]
    assert np.mean(small) < 0.105
    x = rng.normal(size=50)
    low, high = bootstrap(x, x + 0.5 * rng.normal(size=50), groups, seeds, 0)
    assert 0.3 < low < 0.9 < high <= 1


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("ops", [("add",), ("add", "mul")])
def test_the_plain_forward_on_embeddings_is_the_table_forward(norm: str, ops: tuple[str, ...]) -> None:
    spec = Spec(p=11, ops=ops, layers=2, width=16, norm=norm, activation="relu", batch=32)
    flat = torch.from_numpy(initial(replace(spec, init="torch")))[None].double()
    parameters = views(flat, spec.shape)
    tokens = torch.from_numpy(spec.shape.task.tokens)
    plain = embedded_forward(spec.shape, parameters, parameters["embed"][0][tokens])
    assert torch.allclose(plain, forward(spec.shape, parameters, tokens)[0], atol=1e-12)


def test_the_radius_that_halves_accuracy_is_interpolated_and_censored() -> None:
    curve = np.linspace(1.0, 0.0, len(RADII))
    value, censored = _crossing(curve)
    assert not censored and np.interp(np.log(value), np.log(RADII), curve) == pytest.approx(0.5)
    assert _crossing(np.full(len(RADII), 0.9)) == (RADII[-1], True)


def test_trilemma_sides_are_those_of_the_definitions() -> None:
    both = replace(SMALL, ops=plans.BOTH)
    members = [member(s, 300) for s in grid(both, seed=range(6))]
    points = [point(m, 500, k95=m.spec.seed, collateral_k50=1 - 0.1 * m.spec.seed) for m in members]
    first = sides(points[2])
    assert (first["separability"], first["robustness"]) == (pytest.approx(0.8), 2)
    assert first["efficiency"] == pytest.approx(2 * 31**2 / both.shape.n_parameters)
    assert sides(point(member(SMALL, 300), 500, k95=4))["separability"] is None
    row = pair_rows(points, 0)[0]
    assert row["value"] == pytest.approx(-1) and row["p_value"] is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two members of one condition; both grok within 1,500 steps (about 5 s of CPU time each)."""
    folder = tmp_path_factory.mktemp("run")
    result = train_members(Setting(True, 2, folder=folder, jobs=1, device="cpu"), spec=SMALL)
    assert [row["status"] for row in result.rows] == ["grokked", "grokked"], result.rows
    return folder


def test_trained_members_are_taken_apart_by_a_command(trained: Path, tmp_path: Path) -> None:
    """k@95 of its own directions is below that of random ones; the members are not trained again."""
    done = CliRunner().invoke(
        main, ["grok", "abliterate", str(trained), "--after", "200", "--k-max", "20", "--jobs", "1", "--out",
               str(tmp_path / "out"), "--json", "--quiet"]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    row = next(r for r in found["rows"] if r["metric"] == "k@95")
    assert row["n_seeds"] == 2 and row["value"] < row["control"]
    assert (tmp_path / "out" / "report.html").exists() and (tmp_path / "out" / "trajectory.csv").exists()
    steps = {m.spec.seed: steps_of(m, None) for m in read_members(trained)}
    again = measured(read_members(trained), k_max=20)
    assert len(again) == sum(map(len, steps.values()))  # read back, all kept steps from the grok step on
    assert all(p.since is not None and p.since >= 0 for p in again)


def test_too_late_a_phase_and_a_run_that_did_not_grok_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DesignError, match="smaller --after"):
        abliterate(Setting(jobs=1), run=trained, after=5000)
    train_members(Setting(True, 1, folder=tmp_path, jobs=1, device="cpu"), spec=NOTHING)
    with pytest.raises(DesignError, match="none of 1 did"):
        abliterate(Setting(jobs=1), run=tmp_path)
    with pytest.raises(InputError, match="trained members"):
        abliterate(Setting(jobs=1), run=tmp_path / "nothing")


def test_an_attack_beats_random_perturbations_of_its_norm(trained: Path) -> None:
    found = attack(read_members(trained)[0], n_inputs=64)
    assert 0.05 < found.epsilon50 < 3.2 and not found.censored
    assert (np.diff(found.accuracy) <= 0).all()
    i = int(np.argmax(found.accuracy < 0.5))
    assert found.random[i] > found.accuracy[i] + 0.2
    assert found.alpha50 is None


def test_every_part_of_the_log_runs_and_members_that_learn_nothing_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All experiments on members of 20 steps: every claim stays undecided with a reason, and nothing is dropped; the
    second call trains nothing."""
    monkeypatch.setattr(plans, "base", lambda quick: NOTHING)
    monkeypatch.setattr(plans, "base_of_two", lambda quick: replace(NOTHING, ops=plans.BOTH))
    monkeypatch.setattr(plans, "sweep", lambda quick, seeds: tiny_sweep(seeds))
    monkeypatch.setattr(plans, "capacity", lambda quick, seeds: tiny_capacity(seeds))
    monkeypatch.setattr(plans, "batch_sizes", lambda quick, seeds: tiny_batches(seeds))
    setting = Setting(True, 2, folder=tmp_path, jobs=1, device="cpu")
    result = research_log(setting, after=0)
    assert [row["claim"] for row in result.rows] == [claim.key for claim in CLAIMS]
    undecided = [row for row in result.rows if row["verdict"] == "not decided"]
    assert len(undecided) == len(CLAIMS) and all(row["why"] for row in undecided)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("state.safetensors")}
    again = research_log(setting, after=0)
    assert again.rows == result.rows
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("state.safetensors")}
    assert str(result).count("could also make") == len(CLAIMS)
    with pytest.raises(InputError, match="parts must be among"):
        research_log(setting, parts=["everything"])


def tiny_sweep(seeds: range) -> tuple[Spec, ...]:
    base = NOTHING
    found = [*grid(base, weight_decay=[0.0, 0.1, 1.0], seed=seeds), *grid(base, fraction=[0.7, 0.9], seed=seeds)]
    for layers, width in ((1, 64), (2, 64)):
        found += grid(replace(base, layers=layers, width=width), seed=seeds)
    return tuple({s.key: s for s in found}.values())


def tiny_capacity(seeds: range) -> tuple[Spec, ...]:
    base = replace(NOTHING, ops=plans.BOTH)
    found = [*grid(base, seed=seeds), *grid(replace(base, layers=2), seed=seeds)]
    return (*found, *grid(replace(base, width=32), init=["normal:0.02", "fan-in"], seed=seeds))


def tiny_batches(seeds: range) -> tuple[Spec, ...]:
    found = []
    for size in (4, 8, 16):
        for decay in (1.0, size / 8):
            found += grid(replace(NOTHING, batch=size, weight_decay=decay), seed=seeds)
    return tuple({s.key: s for s in found}.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grok", "train", "--modulus", "96"], "the modulus must be a prime"),
        (["grok", "train", "--init", "zero"], "init must be"),
        (["grok", "train", "--quick", "--batch", "5000"], "must fit into the training inputs"),
    ],
)
def test_what_cannot_be_trained_is_one_line(words: list[str], said: str) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1 and said in done.stderr and done.stderr.count("\n") == 1
    both = CliRunner().invoke(main, ["reproduce", "research-log", "--quick", "--full"])
    assert both.exit_code == 2


def test_a_cluster_needs_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"--cluster needs the 'cluster' extra: pip install"):
        train_on_cluster([NOTHING], tmp_path, "auto")


def test_tasks_of_a_cluster_train_members_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray stood in for by a module that runs each task at once: every member is trained, a second call asks nothing."""
    asked: list[dict] = []

    def remote(**options: object) -> object:
        def decorate(function: object) -> object:
            def submit(record: dict, folder: str) -> object:
                asked.append(record)
                function(record, folder)  # type: ignore[operator]
                return object()

            return types.SimpleNamespace(remote=submit)

        return decorate

    fake = types.SimpleNamespace(
        init=lambda **_: None, shutdown=lambda: None, remote=remote, get=lambda done: None,
        wait=lambda left, num_returns: (left[:1], left[1:]),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", fake)
    specs = grid(NOTHING, seed=[0, 1])
    found = Setting(True, 2, 0, tmp_path, 1, "auto", "cpu").train(specs)
    assert [m.status for m in found] == ["steps", "steps"] and len(asked) == 2
    Setting(True, 2, 0, tmp_path, 1, "auto", "cpu").train(specs)
    assert len(asked) == 2


def test_an_address_without_a_cluster_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("could not find any running Ray instance")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
    with pytest.raises(InputError, match=r"'ray://nowhere:1' is none"):
        train_on_cluster([NOTHING], tmp_path, "ray://nowhere:1")
