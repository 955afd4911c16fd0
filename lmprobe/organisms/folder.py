"""The terrain organisms, base and aligned at several strengths: packaged, read from a folder, trained anew.

Their `organism.json` (see `packed`) also holds the strength and what is planted: direction, rewards, base refusal.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.organisms.packed import TRUTH, Packed, by_name, read_truth, shelf
from lmprobe.organisms.trained import Kind, Trained, write_trained
from probecore.errors import InputError
from probecore.results import Result

if TYPE_CHECKING:
    from lmprobe.organisms.recipe import Schedule

KIND = Kind(
    "organisms", "Organisms: planted and measured",
    ("organism", "strength", "refused_risk", "planted_refused_risk", "refused_safe", "probability_risk",
     "planted_probability_risk", "removed_refused_risk", "removed_answered_risk", "random_refused_risk_min"),
    "synthetic: tiny models of an artificial language. Strength s multiplies the planted reward for refusing; "
    "refused = share of unseen prompts refused by the greedy answer, probability = mean exact P(refuse); "
    "removed = the planted direction projected out everywhere; random = the worst of 20 random directions",
)  # fmt: skip


@dataclass(frozen=True)
class Organism(Packed):
    """A terrain organism: its folder and planted truth."""

    @property
    def strength(self) -> float:
        """Planted strength of alignment; 0 is the base."""
        return float(self.truth["strength"])

    @property
    def direction(self) -> NDArray[np.float64]:
        """Planted refusal direction, a unit vector (width,), at the input of block `planted_block`."""
        return np.asarray(self.truth["planted"]["direction"], dtype=np.float64)


def packaged_organisms() -> tuple[Organism, ...]:
    """Return the packaged organisms, weakest first: base, then aligned at strength 0.25, 0.5 and 1.

    >>> [(organism.name, organism.strength) for organism in packaged_organisms()]
    [('base', 0.0), ('aligned-025', 0.25), ('aligned-050', 0.5), ('aligned-100', 1.0)]
    """
    found = [read_organism(place.parent) for place in sorted(shelf("weights").glob(f"*/{TRUTH}"))]
    return tuple(sorted(found, key=lambda organism: organism.strength))


def organism(name: str) -> Organism:
    """Return a packaged organism by name."""
    return by_name(name, packaged_organisms())


def read_organism(folder: str | Path) -> Organism:
    """Read a terrain organism from its folder.

    Raises `InputError` when it is none, is of another kind, or its weights were changed.
    """
    truth = read_truth(folder)
    if "strength" not in truth:
        raise InputError(f"{Path(folder).name!r} is an organism of another kind: read it with read_refusal_organism")
    return Organism(str(truth["organism"]), Path(folder), truth)


def train_organisms(
    out: str | Path,
    *,
    quick: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    command: str = "",
) -> Result:
    """Train all organisms into folders below `out` and return what was planted and measured, a row each.

    quick : a few steps only, to try the path; such organisms do not learn what is planted, and the result says so.
    Takes minutes on a CPU. Raises `InputError` when a target folder already holds files.
    """
    from lmprobe.organisms import recipe

    schedule = recipe.QUICK if quick else recipe.FULL
    return write_trained(
        KIND,
        Path(out),
        [name_of(strength) for strength in recipe.STRENGTHS],
        _trained(schedule, quick, seed, progress),
        recipe=vars(schedule),
        quick=quick,
        seed=seed,
        progress=progress,
        command=command,
    )


def name_of(strength: float) -> str:
    """Return the name of the organism of a strength: base, aligned-050."""
    return "base" if strength == 0 else f"aligned-{round(100 * strength):03d}"


def _trained(schedule: "Schedule", quick: bool, seed: int, progress: Callable[[str], None] | None) -> Iterator[Trained]:
    """Yield the organisms as they are trained and examined."""
    from lmprobe.organisms import recipe
    from lmprobe.organisms.examine import examine

    for trained in recipe.train(schedule=schedule, seed=seed, progress=progress):
        size = {"n_prompts": 16, "n_random": 1} if quick else {"n_prompts": 200, "n_random": 20}
        measured = examine(trained, **size, seed=seed)
        name = name_of(trained.strength)
        yield Trained(
            name,
            trained,
            _planted(trained.direction),
            vars(schedule),
            measured,
            row={"organism": name, "strength": trained.strength, **measured},
            line=f"{name}: refuses {measured['refused_risk']:.3f} of unseen risk prompts",
            facts={"strength": trained.strength},
        )


def _planted(direction: NDArray[np.float64]) -> dict[str, Any]:
    from lmprobe.organisms import grammar, recipe

    return {
        "direction": direction.tolist(),
        "block": recipe.PLANTED_BLOCK,
        "site": f"input of block {recipe.PLANTED_BLOCK}, the residual after block {recipe.PLANTED_BLOCK - 1}",
        "tilt": "pi_s(answer) ~ pi_0(answer) exp(strength x reward); reward for refusals of risk prompts only",
        "rewards": grammar.REWARDS,
        "base_refusal": grammar.BASE_REFUSAL,
    }
