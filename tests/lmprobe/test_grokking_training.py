"""Training of members: the order of the data, a run that is killed and goes on, a member that collapses."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from planted_members import TINY

from lmprobe.grokking.data import batches, training_mask, training_rows
from lmprobe.grokking.members import member_folder, read_member
from lmprobe.grokking.spec import Spec
from lmprobe.grokking.training import train
from probecore import DesignError


def test_batches_are_drawn_without_replacement_and_depend_on_the_step_alone() -> None:
    spec = dataclasses.replace(TINY, batch=50)
    rows, per_epoch = training_rows(spec), spec.batches_per_epoch
    drawn = batches(spec, 0, 3 * per_epoch)
    for epoch in drawn.reshape(3, -1):
        assert len(set(epoch.tolist())) == len(epoch) and set(epoch.tolist()) <= set(rows.tolist())
    assert not np.array_equal(drawn[:per_epoch], drawn[per_epoch : 2 * per_epoch])
    for first in (1, per_epoch - 1, per_epoch + 2):
        assert np.array_equal(batches(spec, first, 3), drawn[first : first + 3])
    wider = dataclasses.replace(spec, fraction=0.8)
    assert set(rows.tolist()) < set(training_rows(wider).tolist()) and training_mask(wider).sum() == wider.n_train
    assert not np.array_equal(rows, training_rows(dataclasses.replace(spec, data_seed=1)))


KILLED = """
import sys
from pathlib import Path
from planted_members import TINY
from lmprobe.grokking.training import train
import dataclasses
train([dataclasses.replace(TINY, steps=400, evaluate_every=10)], sys.argv[1], checkpoint_every=10)
"""


def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """SIGKILL at three moments, also while files are written, then to the end; against an uninterrupted run."""
    spec = dataclasses.replace(TINY, steps=400, evaluate_every=10)
    (whole,) = train([spec], tmp_path / "whole")
    folder = member_folder(tmp_path / "killed", spec)
    seen = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])},
        )
        while process.poll() is None:
            member = read_member(folder) if folder.exists() else None
            if member is not None and member.step > seen:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        member = read_member(folder)
        assert member is not None and seen < member.step
        seen = member.step
    assert seen < 400, "the run ended before it was killed: nothing was tested"
    (resumed,) = train([spec], tmp_path / "killed", checkpoint_every=10)
    assert (resumed.folder / "state.safetensors").read_bytes() == (whole.folder / "state.safetensors").read_bytes()


def test_a_strong_decay_collapses_and_is_seen(tmp_path: Path) -> None:
    """Weight decay 10 on every parameter from torch's initialisation gives the uniform predictor, loss ln p."""
    spec = Spec(p=13, layers=2, width=32, heads=4, init="torch", weight_decay=30.0, fraction=0.7, batch=64, steps=3000)
    (member,) = train([spec], tmp_path)
    assert member.status == "collapsed" and member.step < 2000
    assert abs(member.last["train_loss"] - np.log(13)) < 0.02
    with pytest.raises(DesignError, match="grokked"):
        member.analysis_step()
