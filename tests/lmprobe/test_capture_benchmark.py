"""The benchmark of capture runs on a tiny model, its arms agree, and what it calls exact, alive and met is so."""

import re
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import capture

        yield capture
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in ("capture", "capture_arms"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def work(benchmark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    benchmark.build(folder, "tiny")
    return benchmark.load(folder, "tiny", "cpu", "sdpa")


@pytest.mark.filterwarnings("ignore")  # the benchmark switches them off, as one that imports four libraries must
def test_the_tiny_run_compares_our_arms_with_output_hidden_states(benchmark, capsys) -> None:
    benchmark.main(["--size", "tiny", "--repeats", "1", "--one-process", "--only", "Hugging Face", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "transformers" in printed and "on cpu, 1 threads" in printed
    rows = dict(re.findall(r"^  (\S.*?) {2,}.*\d\.\d+ \(.*\) .*?   (yes|no: .*)$", printed, re.M))
    assert rows["lmprobe"] == "yes" and rows["lmprobe (suffix replay)"] == "yes" == rows["full runs with a hook"]
    assert rows["output_hidden_states"].startswith("no: last block")  # it shows the last block after the final norm
    assert "others 0e+00" in rows["output_hidden_states"]
    assert printed.count("met    bitwise equal: yes") == 3 and "not run" not in printed


def test_a_library_that_is_not_installed_is_named_with_the_reason(benchmark, monkeypatch) -> None:
    monkeypatch.setitem(benchmark.capture_arms.PACKAGES, "nnsight", "no_such_package")
    assert benchmark.missing("lmprobe") == ""
    assert benchmark.missing("nnsight").startswith("no_such_package is not installed: pip install -r benchmarks/")


def test_the_batches_are_those_of_capture_and_hold_every_prompt_once(work) -> None:
    batches = list(work.batches())
    assert sorted(i for batch in batches for i in batch.numbers) == list(range(len(work.prompts)))
    for batch in batches:
        for row, i in enumerate(batch.numbers):
            assert batch.ids[row, : batch.last[row] + 1].tolist() == work.prompts[i]
            assert batch.inputs()["position_ids"][row, batch.last[row]] == len(work.prompts[i]) - 1
    assert len(batches) > 1 and any(int(batch.mask.min()) == 0 for batch in batches)  # padding is part of the task


def test_a_wrong_state_is_not_called_exact(benchmark, work) -> None:
    with torch.inference_mode():
        right = benchmark.capture_arms.reference(work, "capture", "right")
    references = {"": right, " (left padding)": right + 1}
    assert benchmark.exactness(right.clone(), references) == "yes"
    assert benchmark.exactness(right + 1, references) == "yes (left padding)"
    off = right.clone()
    off[0, 0, 0] = torch.nextafter(off[0, 0, 0], torch.tensor(torch.inf))
    assert benchmark.exactness(off, references).startswith("no: ")
    off = right.clone()
    off[:, -1] += 2
    assert benchmark.exactness(off, {"": right}) == "no: last block 2e+00, others 0e+00"


def test_goals_are_judged_by_the_lowest_times_and_show_the_turns(benchmark) -> None:
    own, peer = {"seconds": [2.0, 1.2, 3.0]}, {"seconds": [1.0, 2.0, 2.0]}
    assert benchmark.goal("level", own, peer, 1.2) == ("level", True, "1.20 by the lowest; turns 1.50 (0.60 - 2.00)")
    assert benchmark.goal("faster", own, peer, 1.0)[1] is False


def test_peak_memory_is_what_was_alive_at_once_in_bytes(benchmark, work) -> None:
    """Two tensors of 1 MiB one after the other count once, at the same time twice; numbers are exact, not resident."""
    arms = object.__new__(benchmark.Arms)
    arms.work, arms.cuda = work, False
    one = 2**18

    def apart():
        for _ in range(3):
            torch.empty(one)

    def together():
        return torch.empty(one), torch.empty(one)

    arms.arms = {"capture": {"apart": apart, "together": together, "nothing": lambda: None}}
    assert [arms.memory("capture", arm, None) for arm in ("nothing", "apart", "together")] == [0, 2**20, 2**21]
