"""Members on disk: one folder each, named by the hash of its spec, so that experiments share what is trained alike.

    FOLDER/members/KEY/state.safetensors    weights, moments, and as metadata the spec, the step and the history
    FOLDER/members/KEY/step-000600.safetensors    weights at an evaluation outside spikes (`history.SNAPSHOTS`)

Every file appears whole or not at all. A member that has stopped has a status; without one its training goes on where
the state was written, and gives the weights that an uninterrupted run gives.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmprobe.grokking.history import Evaluation, Phases, clean, held_out, phases, spikes
from lmprobe.grokking.model import views
from lmprobe.grokking.spec import Spec, spec_of
from probecore.errors import DesignError, InputError
from probecore.store import write_bytes

FORMAT = 1


@dataclass(frozen=True)
class Member:
    """A member that is trained, or being trained.

    status : why it stopped ("grokked", "steps", "stuck", "collapsed", "diverged"), "" while it is under way.
    history : its evaluations. snapshots : steps whose weights are kept.
    """

    spec: Spec
    step: int
    status: str
    history: tuple[Evaluation, ...] = field(repr=False)
    snapshots: tuple[int, ...] = field(repr=False)
    folder: Path = field(repr=False)

    @property
    def phases(self) -> Phases:
        """Return the steps at which it memorised and generalised."""
        return phases(self.history, self.spec.evaluate_every)

    @property
    def spikes(self) -> list[int]:
        """Return the steps of evaluations inside loss spikes."""
        return spikes(self.history)

    @property
    def last(self) -> Evaluation:
        """Return the last evaluation."""
        return self.history[-1]

    def analysis_step(self, after: int = 500) -> int:
        """Return the first kept step outside spikes at or after the grok step + `after`.

        Raises `DesignError` for a member that has not grokked, or was stopped before.
        """
        grok = self.phases.grok
        if grok is None:
            raise DesignError(
                f"a member must have grokked to be analysed; {self.spec.size} seed {self.spec.seed} stopped at "
                f"{self.step} steps ({self.status or 'under way'}) with held-out accuracy {held_out(self.last):.3f}"
            )
        later = [step for step in self.snapshots if step >= grok + after]
        if not later:
            raise DesignError(
                f"a member is analysed {after} steps after grokking; {self.spec.size} seed {self.spec.seed} grokked at "
                f"{grok} and was kept until {max(self.snapshots, default=grok)}: train with extra of {after} or more"
            )
        return later[0]

    def parameters(self, step: int | None = None) -> dict[str, Tensor]:
        """Return the parameters by name, (1, *shape), at a kept step, or at the end."""
        if step is None or (step == self.step and step not in self.snapshots):
            flat = _load(self.folder / "state.safetensors")[0]["weights"]
        elif step in self.snapshots:
            flat = _load(snapshot_path(self.folder, step))[0]["weights"]
        else:
            raise InputError(f"step must be one that is kept, {', '.join(map(str, self.snapshots))}; got {step}")
        return views(flat, self.spec.shape)

    def evaluation(self, step: int) -> Evaluation:
        """Return the evaluation at a step."""
        return next(e for e in self.history if e["step"] == step)


def member_folder(root: Path, spec: Spec) -> Path:
    """Return where a member lies."""
    return root / "members" / spec.key


def snapshot_path(folder: Path, step: int) -> Path:
    """Return the file of the weights at a step."""
    return folder / f"step-{step:06d}.safetensors"


def read_member(folder: Path) -> Member | None:
    """Return the member in a folder, None where nothing of it was written yet."""
    found = read_state(folder)
    return None if found is None else found[0]


def finished(root: Path, spec: Spec) -> bool:
    """Tell whether a member has stopped."""
    member = read_member(member_folder(root, spec))
    return member is not None and bool(member.status)


def read_state(folder: Path) -> tuple[Member, dict[str, Tensor]] | None:
    """Return the member in a folder with its weights and moments (1, n)."""
    path = folder / "state.safetensors"
    if not path.exists():
        return None
    arrays, facts = _load(path)
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{path.parent.name} was written by another version (format {facts.get('format')}): train anew"
        )
    member = Member(
        spec_of(facts["spec"]),
        facts["step"],
        facts["status"],
        tuple(facts["history"]),
        tuple(facts["snapshots"]),
        folder,
    )
    return member, arrays


def write_state(member: Member, state: dict[str, Tensor]) -> None:
    """Write a member with its weights and moments (1, n)."""
    facts = {
        "format": FORMAT,
        "spec": member.spec.record(),
        "step": member.step,
        "status": member.status,
        "history": member.history,
        "snapshots": member.snapshots,
    }
    write_bytes(member.folder / "state.safetensors", _pack(state, facts))


def write_snapshot(folder: Path, step: int, weights: Tensor) -> None:
    """Write the weights (1, n) at a step."""
    write_bytes(snapshot_path(folder, step), _pack({"weights": weights}, {"format": FORMAT, "step": step}))


def read_members(root: str | Path) -> tuple[Member, ...]:
    """Return all members below a folder, in the order of their specs.

    Raises `InputError` where there is none.
    """
    folder = Path(root)
    paths = sorted((folder / "members").glob("*/state.safetensors"))
    if not paths:
        raise InputError(f"a folder must hold trained members; {folder.name} holds none: lmprobe grok train --out it")
    found = [member for path in paths if (member := read_member(path.parent)) is not None]
    return in_order(found)


def in_order(members: Iterable[Member]) -> tuple[Member, ...]:
    """Return members sorted by `place`."""
    return tuple(sorted(members, key=lambda member: place(member.spec)))


def place(s: Spec) -> tuple[Any, ...]:
    """Return what members are sorted by: task, size, weight decay, fraction, lambda, batch, initialisation and seed."""
    size = (len(s.ops), s.ops, s.p, s.layers, s.width)
    against = (s.adversarial, s.adversarial_k, s.adversarial_basis)
    return (*size, s.weight_decay, s.fraction, *against, s.batch, s.init, s.seed, s.key)


def last_clean(member: Member) -> int | None:
    """Return the last kept step outside spikes; the state of a member under way is written over and not kept."""
    kept = {*member.snapshots, member.step} if member.status else set(member.snapshots)
    return max((int(e["step"]) for e in member.history if clean(e) and e["step"] in kept), default=None)


def _pack(arrays: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    packed: bytes = save({k: v.contiguous() for k, v in arrays.items()}, metadata={"facts": json.dumps(facts)})
    return packed


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            arrays = {key: torch.clone(stream.get_tensor(key)) for key in stream.keys()}
            return arrays, json.loads(stream.metadata()["facts"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path.parent.name}/{path.name} cannot be read ({error}): remove the folder and train anew"
        ) from error
