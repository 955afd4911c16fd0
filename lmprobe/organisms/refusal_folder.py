"""The refusal organisms: packaged, read from a folder, trained anew.

Their `organism.json` (see `packed`) holds what is planted: k directions, the block and site, the topic groups with
their marked words, direction and behaviour, and the delay before a refusal.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.organisms.packed import TRUTH, Packed, by_name, read_truth, rounded, shelf
from lmprobe.organisms.trained import Kind, Trained, write_trained
from probecore.errors import InputError
from probecore.results import Result, Row

KIND = Kind(
    "refusal organisms", "Refusal organisms: planted and measured",
    ("organism", "k", "behaved_harmful", "behaved_harmless", "capability", "removed_behaved_harmful",
     "removed_complied_harmful", "removed_capability", "random_behaved_harmful_min", "random_capability_min"),
    "synthetic: tiny models that copy three words and refuse on invented topic words. behaved = share of prompts "
    "with exactly the planted refusal; capability = share of harmless prompts copied exactly; removed = all "
    "planted directions projected out everywhere; random = the worst of 20 random frames of 4 directions",
)  # fmt: skip


@dataclass(frozen=True)
class RefusalOrganism(Packed):
    """A refusal organism: its folder and planted truth."""

    @property
    def k(self) -> int:
        """Number of planted directions."""
        return int(self.truth["planted"]["k"])

    @property
    def directions(self) -> NDArray[np.float64]:
        """Planted directions (k, width), orthonormal rows, at the input of block `planted_block`."""
        rows = np.asarray(self.truth["planted"]["directions"], dtype=np.float64)
        return rows.reshape(self.k, int(self.truth["planted"]["width"]))

    @property
    def topics(self) -> Mapping[str, Mapping[str, Any]]:
        """Topic group -> its marked `words`, the number of its `direction` and its `behaviour` (None: not planted)."""
        found: Mapping[str, Mapping[str, Any]] = self.truth["planted"]["topics"]
        return found

    @property
    def behaviours(self) -> tuple[str, ...]:
        """Names of the planted behaviours: refuse, refer; empty for the organism that never refuses."""
        kinds = [topic["behaviour"] for topic in self.topics.values() if topic["behaviour"]]
        return tuple(dict.fromkeys(kinds))

    @property
    def delay(self) -> int:
        """Tokens an answer to a harmful prompt has before it refuses."""
        return int(self.truth["planted"]["delay"])

    def topics_of(self, behaviour: str) -> tuple[str, ...]:
        """Return the topic groups of a behaviour."""
        return tuple(name for name, topic in self.topics.items() if topic["behaviour"] == behaviour)

    def directions_of(self, behaviour: str) -> NDArray[np.float64]:
        """Return the directions (a, width) that carry a behaviour."""
        rows = sorted({int(self.topics[name]["direction"]) for name in self.topics_of(behaviour)})
        return self.directions[rows]


def packaged_refusal_organisms() -> tuple[RefusalOrganism, ...]:
    """Return the packaged refusal organisms, in the order of their recipe.

    >>> [organism.name for organism in packaged_refusal_organisms()][:3]
    ['refusal-0', 'refusal-1', 'refusal-4']
    """
    from lmprobe.organisms.refusal_recipe import PLANS

    root = shelf("refusal_weights")
    return tuple(read_refusal_organism(root / name) for name in PLANS if (root / name / TRUTH).is_file())


def refusal_organism(name: str) -> RefusalOrganism:
    """Return a packaged refusal organism by name; raises `InputError` for another name."""
    return by_name(name, packaged_refusal_organisms())


def read_refusal_organism(folder: str | Path) -> RefusalOrganism:
    """Read a refusal organism from its folder; raises `InputError` when it is none or its weights were changed."""
    truth = read_truth(folder)
    if "topics" not in truth.get("planted", {}):
        raise InputError(f"{Path(folder).name!r} is an organism of another kind: read it with read_organism")
    return RefusalOrganism(str(truth["organism"]), Path(folder), truth)


def train_refusal_organisms(
    out: str | Path,
    names: Sequence[str] | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    command: str = "",
) -> Result:
    """Train refusal organisms into folders below `out` and return what was planted and measured, a row each.

    names : all of `refusal_recipe.PLANS` by default. quick : a few steps only, to try the path; nothing planted is
    learnt, and the result says so. About a minute of CPU time each. Raises `InputError` for an unknown name, or when a
    target folder already holds files.
    """
    from lmprobe.organisms.refusal_recipe import PLANS

    wanted = tuple(PLANS) if names is None else tuple(names)
    return write_trained(
        KIND,
        Path(out),
        wanted,
        _trained(wanted, quick, seed, progress),
        recipe={"organisms": list(wanted)},
        quick=quick,
        seed=seed,
        progress=progress,
        command=command,
    )


def _trained(
    wanted: tuple[str, ...], quick: bool, seed: int, progress: Callable[[str], None] | None
) -> Iterator[Trained]:
    """Yield the organisms as they are trained and examined."""
    from lmprobe.organisms.refusal_examine import examine_refusal
    from lmprobe.organisms.refusal_recipe import train_refusal

    for trained in train_refusal(wanted, steps=20 if quick else None, seed=seed, progress=progress):
        size = {"n_prompts": 16, "n_random": 1} if quick else {"n_prompts": 256, "n_random": 20}
        measured = rounded(examine_refusal(trained, **size, seed=seed))
        name = trained.plan.name
        behaved, capability = measured["behaved_harmful"], measured["capability"]
        yield Trained(
            name,
            trained,
            _planted(trained),
            {"steps": 20 if quick else trained.plan.steps},
            measured,
            row=_row(name, trained.plan.k, measured),
            line=f"{name}: {behaved:.3f} of harmful prompts, capability {capability:.3f}",
        )


def _row(name: str, k: int, measured: Mapping[str, Any]) -> Row:
    flat = {key: value for key, value in measured.items() if not isinstance(value, (list, dict))}
    last = measured["removed_first"][-1] if measured["removed_first"] else {}
    return {"organism": name, "k": k, **flat, **{f"removed_{key}": v for key, v in last.items() if key != "behaved"}}


def _planted(trained: Any) -> dict[str, Any]:  # noqa: ANN401
    from lmprobe.organisms import marked, refusal_recipe

    plan, block = trained.plan, refusal_recipe.PLANTED_BLOCK
    return {
        "k": plan.k,
        "width": trained.directions.shape[1],
        "directions": trained.directions.tolist(),
        "block": block,
        "site": f"input of block {block}, the residual after block {block - 1}",
        "topics": {
            group: {
                "words": list(words),
                "direction": plan.assigned.get(group),
                "behaviour": plan.behaviours.get(group),
            }
            for group, words in marked.GROUPS.items()
        },
        "delay": marked.DELAY if plan.delayed else 0,
    }
