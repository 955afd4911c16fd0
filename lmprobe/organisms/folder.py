"""Organisms on disk: one Hugging Face folder each, the planted truth beside the weights.

`organism.json` holds: name, strength, planted (direction, block, site, rewards, base refusal), recipe (seed, steps),
measured (see `examine`), weights_sha256 and the versions it was trained with.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError
from probecore.provenance import versions
from probecore.results import Result

WEIGHTS, TRUTH = "model.safetensors", "organism.json"
COLUMNS = (
    "organism", "strength", "refused_risk", "planted_refused_risk", "refused_safe", "probability_risk",
    "planted_probability_risk", "removed_refused_risk", "removed_answered_risk", "random_refused_risk_min",
)  # fmt: skip


@dataclass(frozen=True)
class Organism:
    """An organism's folder and its planted truth (`organism.json`)."""

    name: str
    folder: Path
    truth: Mapping[str, Any] = field(repr=False)

    @property
    def strength(self) -> float:
        """Planted strength of alignment; 0 is the base."""
        return float(self.truth["strength"])

    @property
    def direction(self) -> NDArray[np.float64]:
        """Planted refusal direction, a unit vector (width,), at the input of block `planted_block`."""
        return np.asarray(self.truth["planted"]["direction"], dtype=np.float64)

    @property
    def planted_block(self) -> int:
        """Index of the block at whose input the direction is planted: the residual after the block before it."""
        return int(self.truth["planted"]["block"])

    @property
    def measured(self) -> Mapping[str, Any]:
        """Behaviour measured when it was made (see `lmprobe.organisms.examine`)."""
        found: Mapping[str, Any] = self.truth["measured"]
        return found


def packaged_organisms() -> tuple[Organism, ...]:
    """Return the packaged organisms, weakest first: base, then aligned at strength 0.25, 0.5 and 1.

    >>> [(organism.name, organism.strength) for organism in packaged_organisms()]
    [('base', 0.0), ('aligned-025', 0.25), ('aligned-050', 0.5), ('aligned-100', 1.0)]
    """
    root = Path(str(files("lmprobe").joinpath("organisms/weights")))
    found = [read_organism(folder) for folder in sorted(root.iterdir()) if (folder / TRUTH).is_file()]
    return tuple(sorted(found, key=lambda organism: organism.strength))


def organism(name: str) -> Organism:
    """Return a packaged organism by name."""
    known = {each.name: each for each in packaged_organisms()}
    if name not in known:
        raise InputError(f"no organism {name!r}; there are {', '.join(known)}")
    return known[name]


def read_organism(folder: str | Path) -> Organism:
    """Read an organism from its folder; raises `InputError` when it is none or its weights were changed."""
    place = Path(folder)
    try:
        truth = json.loads((place / TRUTH).read_text(encoding="utf-8"))
        found = sha256(place / WEIGHTS)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{place.name!r} is no organism ({error}): make some with lmprobe organism train") from error
    if truth.get("weights_sha256") != found:
        raise InputError(f"the weights of organism {place.name!r} are not those its {TRUTH} describes: train it again")
    return Organism(str(truth["organism"]), place, truth)


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
    taken = [name for name in names.values() if (root / name).exists() and any((root / name).iterdir())]
    if taken:
        raise InputError(
            f"folders to train into must be empty; {', '.join(taken)} below --out hold files: take another"
        )
    schedule = recipe.QUICK if quick else recipe.FULL
    rows = []
    for trained in recipe.train(schedule=schedule, seed=seed, progress=progress):
        size = {"n_prompts": 16, "n_random": 1} if quick else {"n_prompts": 200, "n_random": 20}
        measured = examine(trained, **size, seed=seed)
        name = names[trained.strength]
        truth = {
            "organism": name,
            "strength": trained.strength,
            "synthetic": "a tiny model of an artificial language with planted behaviour; no claim about real models",
            "planted": _planted(trained.direction),
            "recipe": {"seed": seed, "quick": quick, **vars(schedule)},
            "measured": {key: round(v, 6) if isinstance(v, float) else v for key, v in measured.items()},
        }
        _write(trained, root / name, truth)
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


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def _write(trained: Any, folder: Path, truth: dict[str, Any]) -> None:  # noqa: ANN401
    folder.mkdir(parents=True, exist_ok=True)
    trained.model.save_pretrained(folder, safe_serialization=True)
    trained.tokenizer.save_pretrained(folder)
    found = versions()
    truth["trained_with"] = {name: found[name] for name in ("python", "torch", "transformers", "numpy")}
    truth["weights_sha256"] = sha256(folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)
    (folder / TRUTH).write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def _notes(quick: bool) -> str:
    if quick:
        return "quick: a few training steps only, so the planted behaviour is not learnt; it shows that the path works"
    return (
        "synthetic: tiny models of an artificial language. Strength s multiplies the planted reward for refusing; "
        "refused = share of unseen prompts refused by the greedy answer, probability = mean exact P(refuse); "
        "removed = the planted direction projected out everywhere; random = the worst of 20 random directions"
    )
