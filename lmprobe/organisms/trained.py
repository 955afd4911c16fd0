"""Trained organisms on their way to disk: each is measured, written with its truth, and becomes a row of a result.

Conventions. What kinds of organism have in common is here; what is planted in a kind and how it is examined stands with
the kind (`folder`, `refusal_folder`), which yields a `Trained` for each organism as soon as it is trained.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmprobe.organisms.packed import QUICK_NOTE, SYNTHETIC, require_empty, rounded, write_organism
from probecore.provenance import provenance
from probecore.results import Result, Row


@dataclass(frozen=True)
class Kind:
    """How the result of training one kind of organism is called; note : said of organisms that were trained in full."""

    kind: str
    title: str
    columns: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Trained:
    """A trained organism (attributes model and tokenizer) and what is written down of it.

    facts : truth that this kind has beside planted, recipe and measured. row : its row of the result. line : what
    progress is told.
    """

    name: str
    organism: Any = field(repr=False)
    planted: Mapping[str, Any] = field(repr=False)
    recipe: Mapping[str, Any]
    measured: Mapping[str, Any]
    row: Row
    line: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_trained(
    kind: Kind,
    root: Path,
    names: Sequence[str],
    trained: Iterable[Trained],
    *,
    recipe: Mapping[str, Any],
    quick: bool,
    seed: int,
    progress: Callable[[str], None] | None,
    command: str,
) -> Result:
    """Write organisms into folders below `root` as they are trained, and return a `Result` with a row each.

    names : of the folders. trained : is not asked for the first before the folders are known to be free. recipe : of
    all of them, for the provenance. Raises `InputError` when one of the folders holds files.
    """
    require_empty(root, names)
    rows = []
    for each in trained:
        truth = {
            "organism": each.name,
            **each.facts,
            "synthetic": SYNTHETIC,
            "planted": each.planted,
            "recipe": {"seed": seed, "quick": quick, **each.recipe},
            "measured": rounded(each.measured),
        }
        write_organism(each.organism, root / each.name, truth)
        rows.append(each.row)
        if progress:
            progress(each.line)
    return Result(
        kind=kind.kind,
        title=kind.title,
        rows=tuple(rows),
        columns=kind.columns,
        notes=(QUICK_NOTE if quick else kind.note,),
        provenance=provenance(seed=seed, command=command, recipe={"quick": quick, **recipe}),
    )
