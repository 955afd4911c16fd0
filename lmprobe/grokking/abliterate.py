"""Removal from trained members: k-curves with their controls, for every condition in a folder.

Conventions. A folder is what `lmprobe grok train --out` (or any other experiment) wrote. Members that have not grokked
are listed with the reason and not measured: of a model that has not learned nothing can be removed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmprobe.grokking import plans
from lmprobe.grokking.conditions import COLUMNS, conditions, grok_rows
from lmprobe.grokking.history import held_out
from lmprobe.grokking.measures import CONTRASTS, K_MAX
from lmprobe.grokking.members import read_members
from lmprobe.grokking.setting import DEFAULT, Setting
from lmprobe.grokking.spec import Spec, grid
from lmprobe.grokking.sweep import examined, learning_rows, made_by, standing_notes, task_words
from lmprobe.grokking.trajectory import AFTER, measured, member_row
from probecore.errors import DesignError
from probecore.results import Figure, Result
from probecore.validation import one_of

TRAIN_COLUMNS = (
    "size", "ops", "weight_decay", "seed", "memorise_step", "half_step", "grok_step", "last_step", "held_out",
    "n_spikes", "status",
)  # fmt: skip


def train_members(
    setting: Setting = DEFAULT, *, spec: Spec | None = None, weight_decay: Sequence[float] = (1.0,)
) -> Result:
    """Train members of one spec at each weight decay.

    spec : None takes the log's (or the quick plan's) base.

    Returns a `Result` of kind "grok-train", a row per member: when it memorised and grokked, and how it ended.
    """
    start = plans.base(setting.quick) if spec is None else spec
    asked = grid(start, weight_decay=list(weight_decay), seed=setting.seeds)
    members = setting.train(asked)
    found = conditions(members, asked)
    rows = [
        row | {"grok_note": "" if row["grok_step"] is not None else f"{row['status']}, held-out {row['held_out']:.2f}"}
        for row in map(member_row, members)
    ]
    return Result(
        kind="grok-train",
        title=f"Trained: {task_words(members)}",
        rows=tuple(rows),
        columns=TRAIN_COLUMNS,
        notes=(
            *standing_notes(found, setting),
            f"a grok step is the first evaluation with held-out accuracy of .99 or more, known up to the "
            f"{start.evaluate_every} steps before it",
            f"initialisation {start.init}, fraction {start.fraction:g}, batch {start.batch}, {start.norm}-norm, "
            f"{start.activation}; {start.shape.n_parameters:,} parameters",
        ),
        provenance=made_by(setting, spec=start.record(), weight_decay=list(weight_decay)),
        tables={"learning": tuple(learning_rows(found)), "conditions": tuple(grok_rows(found))},
        figures=(
            Figure("learning", "lines", "learning", "Held-out accuracy while training",
                   "Mean over seeds still trained, t interval inside 0 to 1; members stop some steps after grokking.",
                   {"x": "step", "y": "accuracy", "series": "condition", "x_title": "Step", "zero": True,
                    "y_title": "Held-out accuracy"}),
        ),
    )  # fmt: skip


def abliterate(
    setting: Setting = DEFAULT,
    *,
    run: str | Path | None = None,
    k_max: int = K_MAX,
    contrast: str = "class-mean",
    after: int = AFTER,
) -> Result:
    """Remove the directions of what members learned, one after another, and say when it is gone.

    run : folder of trained members; None trains small ones at weight decays .1 and 1. k_max : directions removed at
    most (width - 1 where that is less). contrast : whose directions, "class-mean", "pca" or "head". after : steps after
    the grok step at which members are compared.

    Returns a `Result` of kind "grok-abliterate". Raises `InputError` for a folder without members, `DesignError` where
    none has grokked.
    """
    one_of(contrast, CONTRASTS, "contrast")
    setting = replace(setting, quick=run is None)
    notes = []
    if run is None:
        asked = grid(plans.base(True), weight_decay=[0.1, 1.0], seed=setting.seeds)
        members = setting.train(asked)
        found = conditions(members, asked)
        notes.append("no RUN was given: small members at weight decays .1 and 1 were trained for this")
    else:
        members = read_members(run)
        found = conditions(members)
    grokked = [member for member in members if member.phases.grok is not None]
    if not grokked:
        best = max(held_out(member.last) for member in members)
        raise DesignError(
            f"at least one member must have grokked; none of {len(members)} did (best held-out accuracy {best:.2f}): "
            "train for more steps"
        )
    latest = max(member.step - (member.phases.grok or 0) for member in grokked)
    if after > latest:
        raise DesignError(
            f"members are compared {after} steps after grokking, but were trained until {latest} after it at most: "
            "give a smaller --after"
        )
    if contrast != "class-mean":
        notes.append(f"directions removed: {contrast}; ranks and Fourier columns stay those of the class means")
    if all(k_max >= member.spec.width for member in members):
        notes.append(f"--k-max {k_max} reaches the width: curves end one below it")
    title = f"Removal of what was learned: {task_words(members)}"
    points = measured(members, k_max=k_max, contrast=contrast, jobs=setting.processes, quiet=setting.quiet)
    result = examined("grok-abliterate", title, members, found, points, setting, k_max=k_max, after=after,
                      contrast=contrast,
                      settings={"seeds": len({m.spec.seed for m in members}), "members": len(members)},
                      notes=notes)  # fmt: skip
    controls = Figure(
        "controls", "lines", "curves", "The same number of other directions",
        "Mean over seeds with t interval. For whole frequencies k counts frequencies, two directions each.",
        {"x": "k", "y": "accuracy", "series": "removed", "facet": "condition", "x_title": "Directions removed",
         "y_title": "Held-out accuracy", "zero": True},
    )  # fmt: skip
    return replace(result, columns=COLUMNS, figures=(*result.figures, controls))
