"""Training: members that are not finished yet, side by side, resumed where they were stopped.

Conventions. On a CPU every member is a task of its own in one single-threaded process, `jobs` of them at a time: at
the sizes in question a leading axis over members buys nothing there. On a GPU members of one pack (`pack.pack_key`)
train in one step; those that stop leave it at the next evaluation and the rest goes on. The state is written every
`checkpoint_every` steps, at an evaluation; a run that was killed, at whatever moment, goes on there and ends with the
same bytes (on a CPU).
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lmprobe.grokking.data import training_mask
from lmprobe.grokking.history import evaluate, stop_reason, wants_snapshot
from lmprobe.grokking.members import (
    Member,
    finished,
    in_order,
    member_folder,
    read_member,
    read_state,
    write_snapshot,
    write_state,
)
from lmprobe.grokking.pack import Pack, pack_key
from lmprobe.grokking.spec import Spec
from probecore.devices import device_of
from probecore.progress import meter
from probecore.runs import parallel_map
from probecore.store import cache_dir
from probecore.validation import at_least

LARGEST_PACK = 64
Advance = Callable[[int], None]


def train(
    specs: Sequence[Spec],
    folder: str | Path | None = None,
    *,
    jobs: int = 1,
    device: str = "cpu",
    checkpoint_every: int = 1000,
    quiet: bool = True,
) -> tuple[Member, ...]:
    """Train every member that is not finished in `folder`, and return all, in the order of `in_order`.

    folder : where members lie; None takes the user's cache. jobs : processes on a CPU, one thread each.
    device : auto, cpu, cuda or cuda:N. checkpoint_every : steps between states on disk, rounded up to an evaluation.

    Members of equal spec are one. Raises `InputError` for a state of another version.
    """
    root = Path(folder) if folder is not None else cache_dir() / "grokking"
    at_least(checkpoint_every, 1, "checkpoint_every")
    wanted = {spec.key: spec for spec in specs}
    left = [spec for spec in wanted.values() if not finished(root, spec)]
    target = device_of(device)
    if left and target.type == "cuda":
        total = sum(spec.steps for spec in left)
        with meter(total, f"training {len(left)} members, steps at most", quiet=quiet) as advance:
            for packed in packs(left):
                _train_pack(packed, root, target, checkpoint_every, advance)
    elif left and at_least(jobs, 1, "jobs") == 1:
        with meter(sum(s.steps for s in left), f"training {len(left)} members, steps at most", quiet=quiet) as advance:
            for spec in left:
                _train_pack([spec], root, target, checkpoint_every, advance)
    elif left:
        longest_first = sorted(left, key=lambda spec: -spec.steps * spec.shape.n_parameters)
        tasks = [(spec.record(), str(root), checkpoint_every) for spec in longest_first]
        parallel_map(_train_alone, tasks, jobs=jobs, description="training members", quiet=quiet)
    found = [read_member(member_folder(root, spec)) for spec in wanted.values()]
    return in_order(member for member in found if member is not None)


def packs(specs: Sequence[Spec]) -> list[list[Spec]]:
    """Return packs of at most `LARGEST_PACK` members that can train in one step, the longest first."""
    by_key: dict[object, list[Spec]] = {}
    for spec in sorted(specs, key=lambda spec: -spec.steps):
        by_key.setdefault(pack_key(spec), []).append(spec)
    return [group[i : i + LARGEST_PACK] for group in by_key.values() for i in range(0, len(group), LARGEST_PACK)]


def _train_alone(record: dict[str, Any], root: str, checkpoint_every: int) -> None:
    from lmprobe.grokking.spec import spec_of

    _train_pack([spec_of(record)], Path(root), torch.device("cpu"), checkpoint_every, lambda _: None)


def _train_pack(
    specs: Sequence[Spec], root: Path, device: torch.device, checkpoint_every: int, advance: Advance
) -> None:
    """Train members together until each has stopped; those whose states were written at another step go first alone."""
    waiting = [_resume(root, spec) for spec in specs]
    at: dict[int, list[Any]] = {}
    for member, state in waiting:
        at.setdefault(member.step, []).append((member, state))
    with _one_thread(device):
        for group in at.values():
            _train_together(group, device, checkpoint_every, advance)


def _resume(root: Path, spec: Spec) -> tuple[Member, dict[str, Any] | None]:
    folder = member_folder(root, spec)
    found = read_state(folder)
    return found if found is not None else (Member(spec, 0, "", (), (), folder), None)


def _train_together(
    group: Sequence[tuple[Member, dict[str, Any] | None]], device: torch.device, checkpoint_every: int, advance: Advance
) -> None:
    members = [member for member, _ in group]
    states = [state for _, state in group]
    joined = None if states[0] is None else _joined([state for state in states if state is not None])
    pack = Pack([member.spec for member in members], device, joined)
    masks = [training_mask(member.spec) for member in members]
    spacing, step = members[0].spec.evaluate_every, members[0].step
    advance(sum(min(step, member.spec.steps) for member in members))
    while members:
        longest = min(member.spec.steps for member in members)
        n_steps = min(spacing - step % spacing, max(longest - step, 1))
        pack.run(step, n_steps)
        step += n_steps
        logits, _ = pack.read()
        members = [
            _noted(member, step, evaluate(member.spec, step, logits[e], pack.answers, masks[e]))
            for e, member in enumerate(members)
        ]
        stopped = [bool(member.status) for member in members]
        due = step // checkpoint_every > (step - n_steps) // checkpoint_every
        members = [_kept(member, pack, e) for e, member in enumerate(members)]
        for e, member in enumerate(members):
            if due or stopped[e]:
                write_state(member, {key: value[e : e + 1] for key, value in pack.state.items()})
            advance(n_steps + (member.spec.steps - step if stopped[e] else 0))
        if any(stopped):
            stay = [e for e, gone in enumerate(stopped) if not gone]
            left = {key: value[stay] for key, value in pack.state.items()}
            members, masks = [members[e] for e in stay], [masks[e] for e in stay]
            if members:
                pack = Pack([member.spec for member in members], device, left)


def _noted(member: Member, step: int, evaluation: dict[str, Any]) -> Member:
    history = (*member.history, evaluation)
    status = stop_reason(member.spec, history) or ""
    return Member(member.spec, step, status, history, member.snapshots, member.folder)


def _kept(member: Member, pack: Pack, e: int) -> Member:
    if not wants_snapshot(member.history, member.snapshots):
        return member
    write_snapshot(member.folder, member.step, pack.weights[e : e + 1].cpu())
    snapshots = (*member.snapshots, member.step)
    return Member(member.spec, member.step, member.status, member.history, snapshots, member.folder)


def _joined(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: torch.cat([state[key] for state in states]) for key in states[0]}


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Run torch on one thread, and let glibc keep what is freed: each step frees and takes the same megabytes again."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
        if sys.platform == "linux":
            mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
            if mallopt is not None:
                mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: smaller blocks come from the heap
                mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: up to 1 GiB of free heap stays
    try:
        yield
    finally:
        torch.set_num_threads(before)
