"""The benchmark of codecs runs: a tiny codec, three ways of tokenizing, and the codes that a padded batch changes."""

import importlib.util
import re
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "codec.py"


@pytest.mark.transformers
def test_the_tiny_run_prints_what_it_compares(capsys) -> None:
    spec = importlib.util.spec_from_file_location("codec_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--tiny", "--clips", "3", "--repeats", "1", "--device", "cpu", "--threads", "1"])
    printed = capsys.readouterr().out
    assert "qwen-tts" in printed and "on cpu, 1 threads" in printed
    found = re.findall(r"^  (.+?) {2,}.*?(\d+) of (\d+) frames \((\d+) inner\), (\d+) of (\d+) codes", printed, re.M)
    assert [name for name, *_ in found] == ["wrapper, clip by clip", "wrapper, padded batch", "ours"]
    differ = {name: int(frames) for name, frames, *_ in found}
    assert differ["wrapper, clip by clip"] == 0
    assert differ["wrapper, padded batch"] > 0
    assert found[2][3] == "0"  # ours differs in last frames only
