"""The null organism: the base, trained on without any alignment, so that its strength is 0 by construction.

Whatever an estimator of alignment strength reads on base and null is what training alone moves: its null floor. The
recipe continues the packaged base for as many steps, at the same rate, as the aligned organisms were tuned, on newly
drawn samples of the untilted language.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lmprobe.organisms.folder import Organism, organism, read_organism
from lmprobe.organisms.packed import TRUTH, WEIGHTS, sha256, shelf

NAME = "base-again"


def null_organism() -> Organism:
    """Return the packaged null organism.

    >>> null_organism().name, null_organism().strength
    ('base-again', 0.0)
    """
    return read_organism(shelf("null_weights") / NAME)


def train_null(
    out: str | Path, *, quick: bool = False, seed: int = 0, progress: Callable[[str], None] | None = None
) -> Path:
    """Train the null organism from the packaged base into a folder below `out` and return that folder (minutes).

    quick : a few steps only, to try the path.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lmprobe.organisms import recipe

    base = organism("base")
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    chosen = recipe.QUICK if quick else recipe.FULL
    schedule = replace(chosen, rate=chosen.rate / 3)
    recipe._fit(model, tokenizer, base.direction, 0.0, schedule.tune_steps, schedule, seed + 1, progress)
    folder = Path(out) / NAME
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    truth = {
        **base.truth,
        "organism": NAME,
        "recipe": {"seed": seed + 1, "continues": "base", **vars(schedule)},
        "measured": {},
        "weights_sha256": sha256(folder / WEIGHTS),
    }
    (folder / WEIGHTS).chmod(0o644)
    (folder / TRUTH).write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return folder
