"""Organisms on disk, of every kind: one Hugging Face folder each, `organism.json` with the planted truth beside it.

Conventions. The truth holds: organism (its name), planted (what, at which block), recipe (seed, steps), measured
(behaviour when it was made), weights_sha256 and the versions it was trained with. Weights that are not those the truth
describes are refused. A packaged organism is known by its name wherever a model is asked for.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from probecore.errors import InputError
from probecore.provenance import versions

WEIGHTS, TRUTH = "model.safetensors", "organism.json"
SHELVES = ("weights", "null_weights", "refusal_weights")
SYNTHETIC = "a tiny model of an artificial language with planted behaviour; no claim about real models"
QUICK_NOTE = "quick: a few training steps only, so the planted behaviour is not learnt; it shows that the path works"


@dataclass(frozen=True)
class Packed:
    """An organism's folder and its planted truth (`organism.json`)."""

    name: str
    folder: Path
    truth: Mapping[str, Any] = field(repr=False)

    @property
    def planted_block(self) -> int:
        """Index of the block at whose input the directions are planted: the residual after the block before it."""
        return int(self.truth["planted"]["block"])

    @property
    def measured(self) -> Mapping[str, Any]:
        """Behaviour measured when it was made (see `examine` and `refusal_examine`)."""
        found: Mapping[str, Any] = self.truth["measured"]
        return found


P = TypeVar("P", bound=Packed)


def shelf(name: str) -> Path:
    """Return the package's folder of one kind of organism."""
    return Path(str(files("lmprobe").joinpath(f"organisms/{name}")))


def organism_names() -> tuple[str, ...]:
    """Return the names of all packaged organisms, each of which `open_model` opens.

    >>> {"base", "aligned-100", "base-again", "refusal-1"} <= set(organism_names())
    True
    """
    return tuple(
        place.parent.name
        for name in SHELVES
        if shelf(name).is_dir()
        for place in sorted(shelf(name).glob(f"*/{TRUTH}"))
    )


def organism_folder(name: str) -> Path | None:
    """Return the folder of a packaged organism, None for a name that is none.

    Raises `InputError` when its weights were changed.
    """
    if name not in organism_names():
        return None
    folder = next(shelf(s) / name for s in SHELVES if (shelf(s) / name / TRUTH).is_file())
    read_truth(folder)
    return folder


def by_name(name: str, known: Sequence[P]) -> P:
    """Return the organism of a name; raises `InputError` with the names there are."""
    for each in known:
        if each.name == name:
            return each
    raise InputError(f"no organism {name!r} of this kind; there are {', '.join(each.name for each in known)}")


def truth_of(source: object) -> dict[str, Any] | None:
    """Return the truth of an organism given by its folder or packaged name, None for every other model."""
    if not isinstance(source, (str, Path)):
        return None
    folder = Path(source)
    place = folder if folder.is_dir() else organism_folder(str(source))
    return read_truth(place) if place is not None and (place / TRUTH).is_file() else None


def read_truth(folder: str | Path) -> dict[str, Any]:
    """Read an organism's truth; raises `InputError` when the folder holds none or its weights were changed."""
    place = Path(folder)
    try:
        truth: dict[str, Any] = json.loads((place / TRUTH).read_text(encoding="utf-8"))
        found = sha256(place / WEIGHTS)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{place.name!r} is no organism ({error}): make some with lmprobe organism train") from error
    if truth.get("weights_sha256") != found:
        raise InputError(f"the weights of organism {place.name!r} are not those its {TRUTH} describes: train it again")
    return truth


def require_empty(root: Path, names: Iterable[str]) -> None:
    """Raise `InputError` when one of the folders to train into holds files."""
    taken = [name for name in names if (root / name).exists() and any((root / name).iterdir())]
    if taken:
        raise InputError(
            f"folders to train into must be empty; {', '.join(taken)} below --out hold files: take another"
        )


def write_organism(trained: Any, folder: Path, truth: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Write a trained model and its tokenizer (attributes of `trained`) as a Hugging Face folder, the truth beside."""
    folder.mkdir(parents=True, exist_ok=True)
    trained.model.save_pretrained(folder, safe_serialization=True)
    trained.tokenizer.save_pretrained(folder)
    found = versions()
    whole = {
        **truth,
        "trained_with": {name: found[name] for name in ("python", "torch", "transformers", "numpy")},
        "weights_sha256": sha256(folder / WEIGHTS),
    }
    (folder / WEIGHTS).chmod(0o644)
    (folder / TRUTH).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:  # noqa: ANN401
    """Return measurements with floats to 6 digits, through lists and dicts."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
