"""The terrain organisms, base and aligned at several strengths: packaged, read from a folder, trained anew.

Their `organism.json` (see `packed`) also holds the strength and what is planted: direction, rewards, base refusal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.organisms.packed import (
    QUICK_NOTE,
    SYNTHETIC,
    TRUTH,
    Packed,
    by_name,
    read_truth,
    require_empty,
    rounded,
    shelf,
    write_organism,
)
from probecore.errors import InputError
from probecore.results import Result

COLUMNS = (
    "organism", "strength", "refused_risk", "planted_refused_risk", "refused_safe", "probability_risk",
    "planted_probability_risk", "removed_refused_risk", "removed_answered_risk", "random_refused_risk_min",
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
    from lmprobe.organisms.examine import examine
    from probecore.provenance import provenance

    root = Path(out)
    names = {strength: name_of(strength) for strength in recipe.STRENGTHS}
    require_empty(root, names.values())
    schedule = recipe.QUICK if quick else recipe.FULL
    rows = []
    for trained in recipe.train(schedule=schedule, seed=seed, progress=progress):
        size = {"n_prompts": 16, "n_random": 1} if quick else {"n_prompts": 200, "n_random": 20}
        measured = examine(trained, **size, seed=seed)
        name = names[trained.strength]
        truth = {
            "organism": name,
            "strength": trained.strength,
            "synthetic": SYNTHETIC,
            "planted": _planted(trained.direction),
            "recipe": {"seed": seed, "quick": quick, **vars(schedule)},
            "measured": rounded(measured),
        }
        write_organism(trained, root / name, truth)
        rows.append({"organism": name, "strength": trained.strength, **measured})
        if progress:
            progress(f"{name}: refuses {measured['refused_risk']:.3f} of unseen risk prompts")
    return Result(
        kind="organisms",
        title="Organisms: planted and measured",
        rows=tuple(rows),
        columns=COLUMNS,
        notes=(_notes(quick),),
        provenance=provenance(seed=seed, command=command, recipe={"quick": quick, **vars(schedule)}),
    )


def name_of(strength: float) -> str:
    """Return the name of the organism of a strength: base, aligned-050."""
    return "base" if strength == 0 else f"aligned-{round(100 * strength):03d}"


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


def _notes(quick: bool) -> str:
    if quick:
        return QUICK_NOTE
    return (
        "synthetic: tiny models of an artificial language. Strength s multiplies the planted reward for refusing; "
        "refused = share of unseen prompts refused by the greedy answer, probability = mean exact P(refuse); "
        "removed = the planted direction projected out everywhere; random = the worst of 20 random directions"
    )
