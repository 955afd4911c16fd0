"""Many independent tasks: run side by side, kept one by one, taken up again where a run was stopped.

Conventions. A task is a name and the arguments of a function that gives a record of JSON types. Its chance comes from
the run's seed and its own name (`seeds.generator(seed, name)`), so that neither the number of jobs nor the order in
which tasks end changes a number.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from probecore.errors import InputError
from probecore.progress import meter
from probecore.provenance import digest
from probecore.results import plain
from probecore.store import write_bytes
from probecore.validation import at_least

T = TypeVar("T")


def parallel_map(
    function: Callable[..., T],
    arguments: Iterable[Sequence[Any]],
    *,
    jobs: int = 1,
    description: str = "tasks",
    quiet: bool = True,
) -> list[T]:
    """Return `[function(*args) for args in arguments]`, in that order, computed by `jobs` processes.

    Each process has one thread, so that jobs do not fight for cores. The first error ends the map and is raised as it
    was, also a `ProbeError`.
    """
    jobs, listed = at_least(jobs, 1, "jobs"), [tuple(args) for args in arguments]
    results: list[T] = []
    with meter(len(listed), description, quiet=quiet) as advance, warnings.catch_warnings():
        # joblib replaces a process that has grown and warns in the thread that does it. Where warnings are errors that
        # would end the thread, and the map would wait for ever.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")
        for result in _each(function, listed, min(jobs, len(listed))):
            results.append(result)
            advance(1)
    return results


class RunFolder:
    """A folder that keeps the record of every finished task of one run.

    folder : made when missing. key : a record of JSON types that names all the tasks depend on (settings, seed, data
    and model hashes, versions).

    Raises `InputError` when the folder belongs to another run, or holds files of something else.

    >>> run = RunFolder(getfixture("tmp_path") / "run", {"seed": 0})
    >>> run.map(lambda strength: {"effect": 2 * strength}, {"weak": (1,), "strong": (3,)})
    {'weak': {'effect': 2}, 'strong': {'effect': 6}}
    >>> run.done(["weak", "other"])
    ['weak']
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any]) -> None:
        self.folder, self.key = Path(folder), plain(dict(key))
        path = self.folder / "run.json"
        if path.exists():
            met = _record(path)
            if met != self.key:
                differ = sorted(k for k in {*met, *self.key} if met.get(k) != self.key.get(k))
                was, now = ({k: record.get(k) for k in differ} for record in (met, self.key))
                raise InputError(f"{self.folder} belongs to a run with {was}, not {now}; give another folder")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty and holds no run; give a new folder")
        else:
            write_bytes(path, json.dumps(self.key, indent=1).encode())

    def done(self, names: Iterable[str]) -> list[str]:
        """Return the names whose record is kept."""
        return [name for name in names if self._path(name).exists()]

    def map(
        self,
        function: Callable[..., Mapping[str, Any]],
        tasks: Mapping[str, Sequence[Any]],
        *,
        jobs: int = 1,
        description: str = "tasks",
        quiet: bool = True,
    ) -> dict[str, dict[str, Any]]:
        """Return the record of every task, by name; only those that are not kept are computed."""
        kept = set(self.done(tasks))
        left = [(function, self._path(name), args) for name, args in tasks.items() if name not in kept]
        parallel_map(_keep, left, jobs=jobs, description=description, quiet=quiet or not left)
        return {name: _record(self._path(name)) for name in tasks}

    def _path(self, name: str) -> Path:
        return self.folder / "tasks" / f"{digest(name)}.json"


def _each(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterable[T]:
    if jobs <= 1:
        return (function(*args) for args in arguments)
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=1):
        results: Iterable[T] = Parallel(n_jobs=jobs, return_as="generator")(delayed(function)(*a) for a in arguments)
    return results


def _keep(function: Callable[..., Mapping[str, Any]], path: Path, args: Sequence[Any]) -> None:
    write_bytes(path, json.dumps(plain(dict(function(*args))), allow_nan=False).encode())


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}; remove it and run again") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} is not a record; remove it and run again")
    return record
