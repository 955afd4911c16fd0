"""Tasks side by side: same numbers for any number of jobs, nothing done twice, nothing lost when stopped."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from probecore import InputError, MissingExtraError, RunFolder, parallel_map
from probecore.progress import meter, progress
from probecore.seeds import generator

KEY = {"seed": 0, "model": "organism", "strengths": (0.5, 1.0)}


def draw(name: str) -> dict:
    return {"name": name, "value": float(generator(0, "task", name).normal())}


def fail(name: str) -> dict:
    if name == "b":
        raise MissingExtraError("this task", "qwen")
    return {"name": name}


GROWS = """
import sys, time
from probecore import parallel_map

def grow(i):
    sys.kept = [*getattr(sys, "kept", []), b"x" * (1 + (i > 1) * 400_000_000)]  # 300 MB more, and joblib replaces it
    time.sleep(1.2)  # it looks once a second
    return i

print(parallel_map(grow, [(i,) for i in range(6)], jobs=2))
"""


def test_a_process_that_grows_is_replaced_also_where_warnings_are_errors() -> None:
    """Without care joblib's warning ends the thread that would start the new process, and the map waits for ever."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", GROWS], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4, 5]", done.stderr[-2000:]


def test_the_number_of_jobs_changes_no_number_and_no_order() -> None:
    arguments = [(name,) for name in "abcdefg"]
    one = parallel_map(draw, arguments)
    assert [record["name"] for record in one] == list("abcdefg")
    assert parallel_map(draw, arguments, jobs=2) == one


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_a_task_comes_back_as_it_was(jobs: int) -> None:
    with pytest.raises(MissingExtraError, match="this task needs the 'qwen' extra") as met:
        parallel_map(fail, [("a",), ("b",), ("c",)], jobs=jobs)
    assert met.value.extra == "qwen"


def test_no_task_is_no_work_and_jobs_are_checked() -> None:
    assert parallel_map(draw, [], jobs=4) == []
    with pytest.raises(InputError, match="jobs must be an int of at least 1; got 0"):
        parallel_map(draw, [("a",)], jobs=0)


def count_and_draw(name: str, log: str) -> dict:
    with Path(log).open("a") as stream:
        stream.write(name)
    return draw(name)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_computes_only_what_is_missing(tmp_path: Path, jobs: int) -> None:
    log = tmp_path / "log"
    tasks = {name: (name, str(log)) for name in "abc"}
    run = RunFolder(tmp_path / "run", KEY)
    first = run.map(count_and_draw, {name: tasks[name] for name in "ac"}, jobs=jobs)
    assert sorted(log.read_text()) == ["a", "c"] and run.done("abc") == ["a", "c"]
    again = RunFolder(tmp_path / "run", KEY).map(count_and_draw, tasks, jobs=jobs)
    assert sorted(log.read_text()) == ["a", "b", "c"]
    assert list(again) == ["a", "b", "c"] and again == {name: draw(name) for name in "abc"}
    assert first["a"] == again["a"]


def test_what_finished_before_an_error_is_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", KEY)
    with pytest.raises(MissingExtraError):
        run.map(fail, {name: (name,) for name in "abc"})
    assert run.done("abc") == ["a"]


SLOW = """
import sys, time
from probecore.runs import RunFolder
def task(i):
    time.sleep(0.02)
    return {"i": i}
RunFolder(sys.argv[1], {"seed": 0}).map(task, {str(i): (i,) for i in range(1000)})
"""


def test_a_run_that_was_killed_holds_only_whole_records(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, root / "shared")))}
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path / "run")], env=environment)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "run").glob("tasks/*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = RunFolder(tmp_path / "run", {"seed": 0})
    done = run.done(map(str, range(1000)))
    assert 5 <= len(done) < 1000

    def never(i: int) -> dict:
        raise AssertionError("this task was done before")

    assert run.map(never, {name: (int(name),) for name in done}) == {name: {"i": int(name)} for name in done}


def test_a_folder_of_another_run_is_refused_and_says_where_they_differ(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", KEY)
    RunFolder(tmp_path / "run", {**KEY, "strengths": [0.5, 1.0]})
    with pytest.raises(
        InputError, match=r"belongs to a run with \{'extra': None, 'seed': 0\}, not \{'extra': 1, 'seed': 1\}"
    ):
        RunFolder(tmp_path / "run", {**KEY, "seed": 1, "extra": 1})


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty and holds no run"):
        RunFolder(tmp_path, KEY)
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(InputError, match="is not a record"):
        RunFolder(tmp_path, KEY)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        RunFolder(tmp_path, KEY)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_a_line_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, quiet, check in (
        (io.StringIO(), False, lambda text: text == "encoding: 3\n"),
        (io.StringIO(), True, lambda text: text == ""),
        (Terminal(), True, lambda text: text == ""),
        (Terminal(), False, lambda text: "encoding" in text),
    ):
        monkeypatch.setattr("sys.stderr", stream)
        assert list(progress(["a", "b", "c"], "encoding", quiet=quiet)) == ["a", "b", "c"]
        assert check(stream.getvalue())


def test_progress_of_unknown_length_and_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress(iter("ab"), "reading")) == ["a", "b"]
    with pytest.raises(KeyError), meter(2, "failing") as advance:
        advance(1)
        raise KeyError("x")
    assert stream.getvalue() == "reading\nfailing: 2\n"


def test_progress_writes_nothing_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress(range(3), "counting"))
    assert capsys.readouterr().out == ""
