"""--trained-only: what is said of members that are finished, under way, or not there, and that none is trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from planted_members import NOTHING, SMALL, member, planted, tiny_plans

from lmprobe.grokking import plans
from lmprobe.grokking.batch_size import batch_size
from lmprobe.grokking.conditions import conditions
from lmprobe.grokking.log_claims import CLAIMS, SWEEP
from lmprobe.grokking.log_evidence import best_accuracy, find, grok_ratio, rank_at_end, row_evidence
from lmprobe.grokking.members import member_folder
from lmprobe.grokking.research_log import research_log
from lmprobe.grokking.robustness import robustness
from lmprobe.grokking.setting import Setting
from lmprobe.grokking.spec import grid
from lmprobe.grokking.trajectory import steps_of
from probecli.lm import main
from probecore import DesignError
from probecore.verdicts import Rule, judge

EXPERIMENTS = (
    "train", "sweep", "abliterate", "multitask", "adversarial", "capacity", "batch-size", "robustness", "trilemma",
)  # fmt: skip
QUICK = {"abliterate": []}  # has no other size


def command(name: str, folder: Path, *words: str) -> Result:
    path = ["reproduce", name] if name == "research-log" else ["grok", name]
    asked = [*path, *QUICK.get(name, ["--quick"]), "--trained-only", "--out", str(folder), "--jobs", "1", "--quiet"]
    return CliRunner().invoke(main, [*asked, *words])


def states(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("state.safetensors")}


@pytest.mark.parametrize("name", [*EXPERIMENTS, "research-log"])
def test_without_any_member_there_is_one_line_with_the_next_step(name: str, tmp_path: Path) -> None:
    done = command(name, tmp_path)
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "have not been trained" in done.stderr and "without --trained-only" in done.stderr
    assert not states(tmp_path) and "holds 0 others" in done.stderr
    planted(tmp_path, NOTHING, None)
    assert "holds 1 others" in command(name, tmp_path).stderr


@pytest.mark.parametrize("name", [*EXPERIMENTS, "research-log"])
def test_with_members_of_some_conditions_every_command_answers_and_trains_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One condition of each plan, its seeds finished, under way, and not there. Where an experiment needs members that
    grokked and can be measured it says so in one line."""
    tiny_plans(monkeypatch)
    parts = (plans.sweep, plans.multitask, plans.capacity, plans.batch_sizes, plans.population)
    for first, second, *_ in (grid(NOTHING, seed=range(5)), *(plan(True, range(5)) for plan in parts)):
        planted(tmp_path, first, None)
        planted(tmp_path, second, None, under_way=True)
    before = states(tmp_path)
    done = command(name, tmp_path)
    assert states(tmp_path) == before
    if name in ("abliterate", "robustness", "trilemma"):
        assert done.exit_code == 1 and done.stderr.count("\n") == 1, done.output
    else:
        assert done.exit_code == 0, done.output
        assert "under way" in done.stdout and (tmp_path / "report.html").exists()


def test_rows_show_what_is_there_of_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = grid(SMALL, weight_decay=[0.0, 0.1, 1.0], seed=range(5))
    monkeypatch.setattr(plans, "sweep", lambda quick, seeds: specs)
    for spec in specs:
        if spec.weight_decay == 1.0 and spec.seed < 3:
            planted(tmp_path, spec, 300)
        elif spec.weight_decay == 0.1 and spec.seed < 2:
            planted(tmp_path, spec, None, last=5000, under_way=True)
    found = json.loads(command("sweep", tmp_path, "--json").stdout)
    none, weak, one = (row for row in found["rows"] if row["metric"] == "grok step")
    assert (none["condition"], none["value"], none["n_seeds"], none["n_of"]) == ("WD 0", None, 0, 5)
    assert none["value_note"].startswith("5 of 5 have not been trained;")
    assert weak["value_note"].startswith(
        "3 of 5 have not been trained; 2 of 5 are under way, not grokked at 5000 steps"
    )
    assert one["value"] == pytest.approx(300) and (one["n_seeds"], one["n_of"]) == (3, 5)
    assert {row["n_of"] for row in found["rows"]} == {5}
    assert "--trained-only: of 15 members 3 are finished, 2 under way, 10 not started" in found["notes"]
    assert not any("not every member grokked" in note for note in found["notes"])
    members = (tmp_path / "members.csv").read_text().splitlines()[1:]
    assert len(members) == 5 and sum("under way" in row for row in members) == 2


def test_claims_of_what_there_is_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members under way bound when they grok from below; a condition that is not whole decides nothing, and says so."""
    tiny_plans(monkeypatch)
    setting = Setting(True, 5, folder=tmp_path, jobs=1, trained_only=True)
    base = grid(NOTHING, seed=range(5))
    for i, spec in enumerate(base):
        planted(tmp_path, spec, 100 + 100 * (i % 2))
        planted(tmp_path, replace(spec, weight_decay=0.0), None, last=5000, under_way=True)
    rows = {row["claim"]: row for row in research_log(setting, parts=[SWEEP]).rows}
    assert [*rows] == [claim.key for claim in CLAIMS]
    assert rows["sooner"]["verdict"] == "supported" and rows["sooner"]["ci_low"] > 1
    assert rows["diffuse"]["why"].startswith("5 of 5 members of") and "are under way" in rows["diffuse"]["why"]
    absent = "have not been trained: run the same command without --trained-only"
    assert rows["data"]["why"].count("5 of 5 members of") == 2 and rows["data"]["why"].endswith(absent)
    assert rows["small-batch"]["why"] == "not among the parts asked for"

    shutil.rmtree(member_folder(tmp_path, replace(base[2], weight_decay=0.0)))
    result = research_log(setting)
    rows = {row["claim"]: row for row in result.rows}
    row = rows["sooner"]
    assert row["verdict"] == "not decided" and row["why"].startswith("1 of 5 members of ") and absent in row["why"]
    assert row["value"] > 1 and row["ci_low"] is None
    assert rows["small-batch"]["verdict"] == rows["geometry"]["verdict"] == "not decided"
    assert rows["geometry"]["why"].endswith(f"members of robustness {absent}")
    counts = next(note for note in result.notes if note.startswith("--trained-only"))
    assert "5 are finished, 4 under way" in counts


def test_what_is_under_way_is_never_taken_for_finished() -> None:
    """Accuracy so far is no limit, the last step no end, and weights that training writes over are not measured."""
    specs = grid(replace(SMALL, width=32), seed=range(5))
    stopped = [member(s, None, accuracy=0.03 + 0.001 * s.seed) for s in specs]
    going = [replace(m, status="") for m in stopped]
    rule = Rule(high=0.1)
    assert judge(rule, best_accuracy(conditions(stopped)))[0] == "supported"
    assert judge(rule, best_accuracy(conditions(going)))[0] == "not decided"
    learned = [replace(member(s, None, accuracy=0.5 + 0.01 * s.seed), status="") for s in specs]
    assert judge(rule, best_accuracy(conditions(learned)))[0] == "contradicted"
    assert steps_of(stopped[0], None) == [2000] and steps_of(going[0], None) == []
    (one,) = conditions([member(s, 300) for s in specs])
    (none,) = conditions(going)
    assert "5 of 5 members of" in rank_at_end(none, one, [], 500).reason


def test_a_member_under_way_may_still_grok_within_the_horizon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_plans(monkeypatch)
    long = [replace(s, steps=1000) for s in plans.batch_sizes(True, range(4))]
    monkeypatch.setattr(plans, "batch_sizes", lambda quick, seeds: long)
    for spec in long:
        if spec.batch == 4 and spec.seed < 3:  # grokked; past the horizon; may still
            planted(tmp_path, spec, 200 if spec.seed == 0 else None, last=[500, 1200, 500][spec.seed], under_way=True)
    rows = batch_size(Setting(True, 4, folder=tmp_path, jobs=1, trained_only=True)).rows
    share = next(r for r in rows if r["metric"] == "share grokked within 1000 steps, WD fixed")
    assert (share["value"], share["n_seeds"], share["n_of"]) == (0.5, 2, 4)
    steps = next(r for r in rows if r["metric"] == "steps to grok, WD fixed")
    assert steps["value_note"] == "1 of 4 have not been trained; 2 of 4 are under way"


def test_a_condition_that_the_plan_lacks_leaves_its_claim_open() -> None:
    found = conditions([member(s, 300) for s in grid(SMALL, weight_decay=[0.0, 1.0], seed=range(5))])
    gone = grok_ratio(find(found, weight_decay=7.0), find(found, weight_decay=1.0))
    assert gone.value is None and "0 conditions with weight_decay 7.0" in gone.reason
    several = grok_ratio(find(found, layers=1), find(found, weight_decay=1.0))
    assert several.value is None and "2 conditions with layers 1" in several.reason
    row = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    assert row_evidence(row, 50).low == 0.4
    assert row_evidence(row, 50, "12 of 50 are missing").low is None


def test_a_population_that_is_too_small_so_far_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_plans(monkeypatch)
    for spec in plans.population(True, range(2)):
        planted(tmp_path, spec, 300)
    with pytest.raises(DesignError, match="at least 20"):
        robustness(Setting(True, 5, folder=tmp_path, jobs=1, trained_only=True))
