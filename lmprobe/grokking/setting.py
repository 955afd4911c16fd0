"""Setting: what every experiment is told, and how its members are trained: here, on a GPU, or on a Ray cluster.

Conventions. Seeds are consecutive, from `seed` on; a seed is that of the initialisation, of the split and of the order
of batches. Members and what was measured on them lie in `folder` (None: the user's cache), each under the hash of its
spec, so that experiments in one folder share what is trained alike, and a run that was stopped goes on.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmprobe.grokking.cluster import train_on_cluster
from lmprobe.grokking.members import Member, in_order, member_folder, read_member
from lmprobe.grokking.spec import Spec
from lmprobe.grokking.training import train
from probecore.errors import DesignError
from probecore.store import cache_dir
from probecore.validation import at_least

N_SEEDS = 5


@dataclass(frozen=True)
class Setting:
    """How an experiment runs.

    quick : small tasks and models, minutes on two cores, not the log's sizes. n_seeds : members of each condition.
    folder : where members lie (None: the cache), for going on and for other experiments. device : auto, cpu, cuda or
    cuda:N. jobs : processes on a CPU, one thread each; 0 takes one per core. cluster : address of a Ray cluster
    ("local" starts one). trained_only : train nothing and take the members that there are, finished or under way.
    command : the command line, for the provenance.
    """

    quick: bool = False
    n_seeds: int = N_SEEDS
    seed: int = 0
    folder: Path | None = None
    jobs: int = 0
    cluster: str | None = None
    device: str = "auto"
    quiet: bool = True
    trained_only: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        at_least(self.n_seeds, 1, "n_seeds")
        at_least(self.jobs, 0, "jobs")

    @property
    def seeds(self) -> range:
        """Return the seeds of every condition."""
        return range(self.seed, self.seed + self.n_seeds)

    @property
    def root(self) -> Path:
        """Return the folder in which members lie."""
        return self.folder if self.folder is not None else cache_dir() / "grokking"

    @property
    def processes(self) -> int:
        """Return how many processes work side by side."""
        if self.jobs:
            return self.jobs
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def train(self, specs: Sequence[Spec]) -> tuple[Member, ...]:
        """Train what is not trained yet (with `trained_only` nothing), and return all members, in order (`in_order`).

        Raises `DesignError` where nothing is to be trained and there is no member.
        """
        if self.trained_only:
            return self._there(specs)
        if self.cluster is not None:
            train_on_cluster(specs, self.root, self.cluster, quiet=self.quiet)
        return train(specs, self.root, jobs=self.processes, device=self.device, quiet=self.quiet)

    def trained(self, specs: Sequence[Spec]) -> tuple[Member, ...]:
        """Return the members that are finished, with `trained_only` also those under way, without training any."""
        found = [read_member(member_folder(self.root, spec)) for spec in {spec.key: spec for spec in specs}.values()]
        return in_order(member for member in found if member and (member.status or self.trained_only))

    def _there(self, specs: Sequence[Spec]) -> tuple[Member, ...]:
        found = self.trained(specs)
        if not found:
            n = len({spec.key for spec in specs})
            others = len(list((self.root / "members").glob("*/state.safetensors")))
            raise DesignError(
                f"{n} of {n} members have not been trained in {self.root.name}, which holds {others} others: run the "
                "same command without --trained-only, or ask as those were trained"
            )
        return found


DEFAULT = Setting()
