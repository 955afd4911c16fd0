"""Every example runs to its end, where its assertion stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example: Path, tmp_path: Path) -> None:
    folders = [ROOT, ROOT / "shared", ROOT / "cli"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    environment["CODECPROBE_CACHE"] = os.environ.get("CODECPROBE_CACHE", str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "assert" in example.read_text(), "an example ends in an assertion"
