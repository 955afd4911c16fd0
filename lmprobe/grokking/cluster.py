"""Training on more machines than this one, through Ray, where it is installed.

Conventions. Members are tasks of their own: each is trained by one Ray task with one CPU, resumes what a killed task
has written, and writes into the same folder, which all machines must share. Ray retries a task whose machine was lost.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lmprobe.grokking.members import finished
from lmprobe.grokking.spec import Spec, spec_of
from lmprobe.grokking.training import train
from probecore.errors import InputError, MissingExtraError
from probecore.progress import meter

RETRIES = 3


def train_on_cluster(specs: Sequence[Spec], folder: Path, address: str, *, quiet: bool = True) -> None:
    """Train every member that is not finished in `folder` as a task of the Ray cluster at `address`.

    address : as ray.init takes it ("auto", "ray://HOST:10001"), or "local" for one on this machine.
    Raises `MissingExtraError` without Ray, `InputError` where there is no cluster at the address.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise MissingExtraError("--cluster", "cluster") from error
    wanted = {spec.key: spec for spec in specs}
    left = [spec for spec in wanted.values() if not finished(folder, spec)]
    if not left:
        return
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--cluster must be the address of a Ray cluster; {address!r} is none: {reason}") from error
    try:
        task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(train_member)
        root = str(folder.resolve())
        longest_first = sorted(left, key=lambda spec: -spec.steps * spec.shape.n_parameters)
        waiting = [task.remote(spec.record(), root) for spec in longest_first]
        with meter(len(waiting), f"training members on {address}", quiet=quiet) as advance:
            while waiting:
                done, waiting = ray.wait(waiting, num_returns=1)
                ray.get(done)
                advance(len(done))
    finally:
        ray.shutdown()
    missing = [spec for spec in left if not finished(folder, spec)]
    if missing:
        raise InputError(
            f"all machines of a cluster must see the folder of --out; {len(missing)} of {len(left)} members did not "
            "appear in it: put it on a disk that they share"
        )


def train_member(record: dict[str, Any], folder: str) -> None:
    """Train one member on one CPU; what a Ray task runs."""
    train([spec_of(record)], folder, device="cpu")
