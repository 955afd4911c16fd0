"""The grokking commands as a whole: members are trained, taken apart and attacked; all parts of the research log."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from planted_members import NOTHING, SMALL, tiny_plans

from lmprobe.grokking.abliterate import abliterate, train_members
from lmprobe.grokking.attack import attack
from lmprobe.grokking.log_claims import CLAIMS
from lmprobe.grokking.members import read_members
from lmprobe.grokking.research_log import research_log
from lmprobe.grokking.setting import Setting
from lmprobe.grokking.trajectory import measured, steps_of
from probecli.lm import main
from probecore import DesignError, InputError


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
    tiny_plans(monkeypatch)
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
