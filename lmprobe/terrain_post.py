"""`lmprobe reproduce terrain-post`: every claim of the terrain post as a row with estimate, interval and verdict.

Conventions. `post_claims` lists the claims and their rules, `post_evidence` reads the measurements, the core judges.
All parts use the same prompts. A part that these models or prompts cannot answer leaves its claims undecided with the
reason; no claim is ever dropped. Beside every claim stand the artefacts it could be, measured (table "artefacts").
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmprobe.contrasts import contrast
from lmprobe.entropy import FIRST_MODE
from lmprobe.model_list import Model, model_names
from lmprobe.models import Template
from lmprobe.post_claims import (
    ALPHAS,
    ANNOTATION,
    AXIS,
    CLAIMS,
    GAPS,
    ORDER,
    PAIR,
    ROLES,
    TERRAIN,
)
from lmprobe.post_evidence import (
    beside,
    order_artefacts,
    order_evidence,
    published,
    terrain_evidence,
)
from lmprobe.post_parts import (
    Run,
    annotation_artefacts,
    annotation_part,
    axis_part,
    mean_entropies,
    pair_part,
)
from lmprobe.prompts import Prompts, load_prompts, main_categories
from lmprobe.terrain import terrain
from probecore.claims import COLUMNS, Part, claim_figures, claim_rows, claim_tables, part_of, refusals, rules_note
from probecore.errors import InputError
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.stats.variance_ratio import alpha_null_interval

CHANGED = (
    ", but for 'lambda' and 'converges', whose rules were changed after a first run on the organisms, which is no test "
    "of them (docs/terrain-post.md)"
)

Floats = NDArray[np.float64]


def terrain_post(
    models: Mapping[str, Model] | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    null: Model | None = None,
    max_new_tokens: int = 30,
    template: Template = "auto",
    revision: str | None = None,
    n_permutations: int = 999,
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Test every claim of the terrain post on three models.

    models : one for each of the roles base, partly and aligned; None takes the packaged organisms of strength 0, .5 and
        1, whose verdicts are known. prompts, max_new_tokens, template, revision, n_permutations, n_bootstrap : as
        `terrain` takes them. null : as `potential` takes it.

    Returns a `Result` of kind "claims", a row per claim: `says` (the post), `estimand`, value with interval, p,
    `verdict`, `why`, `rule`, and `beside`, the artefacts measured. Raises `InputError` for a missing role.
    """
    packaged = models is None
    if models is None:
        models, null = _organisms(null)
    if set(models) != set(ROLES):
        raise InputError(
            f"the post has the roles {', '.join(ROLES)}, one model each; got {', '.join(models) or 'none'}: name a "
            "model for every role"
        )
    given = load_prompts("default" if prompts is None else prompts)
    first, second = main_categories(given)
    main = contrast(given, first, second, n_permutations=n_permutations, n_bootstrap=n_bootstrap, seed=seed)
    ordered = {role: models[role] for role in ROLES}
    run = Run(ordered, _names(ordered), null, given, main, max_new_tokens, template, revision, n_permutations,
              n_bootstrap, seed, device, quiet)  # fmt: skip
    measured = terrain(
        list(ordered.values()), given, max_new_tokens=max_new_tokens, template=template, revision=revision,
        n_permutations=n_permutations, n_bootstrap=n_bootstrap, seed=seed, device=device, quiet=quiet,
    )  # fmt: skip
    found, artefacts = terrain_evidence(measured, run.names)
    means = {role: mean_entropies(measured, run.names[role], given)[FIRST_MODE][main.items] for role in ROLES}
    parts = {
        TERRAIN: Part(measured, found),
        ORDER: Part(evidence={"alpha-grows": order_evidence(means, main)}),
    }
    artefacts += order_artefacts()
    parts[PAIR], more = pair_part(run)
    artefacts += more
    parts[AXIS], more = axis_part(run)
    artefacts += more
    parts[ANNOTATION] = part_of(lambda one: annotation_part(one, measured), run)
    artefacts += annotation_artefacts(measured, run)
    rows = [{**row, "beside": beside(artefacts, row["claim"])} for row in claim_rows(CLAIMS, parts)]
    tables = {name: rows_ for name, rows_ in claim_tables(parts).items() if not name.endswith("traces")}
    return Result(
        kind="claims",
        title=f"Claims of the terrain post: {', '.join(f'{role} {name}' for role, name in run.names.items())}",
        rows=tuple(rows),
        columns=COLUMNS,
        notes=(
            *_notes(run, packaged),
            *refusals(parts),
            rules_note(len(CLAIMS), CHANGED),
            *(f"beside {row['claim']}: {row['beside']}" for row in rows if row["beside"]),
            *measured.notes,
        ),
        provenance={**measured.provenance, **provenance(
            seed=seed, device=str(measured.provenance.get("device", device)), command=command,
            settings={"roles": dict(run.names), "tokens": max_new_tokens, "permutations": n_permutations,
                      "bootstrap": n_bootstrap, "template": template},
        )},
        tables={
            "artefacts": tuple(artefacts),
            "published": published(),
            "alpha_and_null": _alpha_table(measured, run),
            "gap_by_unit": _unit_table(artefacts, run),
            "dimension_figure": _dimension_table(rows, artefacts),
            **tables,
        },
        figures=(*_figures(), *claim_figures(parts)),
    )  # fmt: skip


def _alpha_table(measured: Result, run: Run) -> tuple[Row, ...]:
    rows: list[Row] = []
    low, high = alpha_null_interval(int((~run.main.is_first).sum()), int(run.main.is_first.sum()))
    for role, name in run.names.items():
        row = next(r for r in measured.rows if r["model"] == name and r["metric"] == "alpha A1, between prompts")
        shared: Row = {"label": f"{role} ({name})"}
        values = (
            ("measured", row["value"], row["ci_low"], row["ci_high"]),
            ("when nothing differs", 0.0, low, high),
            ("printed in the post", ALPHAS[role], None, None),
        )
        rows += [
            {**shared, "series": series, "value": value, "ci_low": left, "ci_high": right}
            for series, value, left, right in values if value is not None
        ]  # fmt: skip
    return tuple(rows)


def _unit_table(artefacts: list[Row], run: Run) -> tuple[Row, ...]:
    rows = []
    for role, name in run.names.items():
        for one in artefacts:
            words = str(one["artefact"])
            if one["claim"] == f"gap-{role}" and (words.endswith("prompts") or "tokens" in words):
                series = "tokens taken for independent" if "tokens" in words else "prompts"
                rows.append({**one, "label": f"{role} ({name})", "series": series})
        rows.append({"label": f"{role} ({name})", "series": "printed in the post", "value": GAPS[role], "ci_low": None,
                     "ci_high": None})  # fmt: skip
    return tuple(rows)


def _dimension_table(rows: list[Row], artefacts: list[Row]) -> tuple[Row, ...]:
    main = next(row for row in rows if row["claim"] == "pc1")
    first = {"label": "prompts, as is", "value": main["value"], "ci_low": main["ci_low"], "ci_high": main["ci_high"]}
    others = [
        {"label": one["artefact"], "value": one["value"], "ci_low": one["ci_low"], "ci_high": one["ci_high"]}
        for one in artefacts if one["claim"] == "pc1" and one["value"] is not None
    ]  # fmt: skip
    return tuple(row for row in (first, *others) if row["value"] is not None)


def _notes(run: Run, packaged: bool) -> tuple[str, ...]:
    notes = []
    if packaged:
        notes.append(
            "no --model was given: base, partly and aligned are the packaged organisms of planted strength 0, .5 and "
            "1, tiny SYNTHETIC models; the verdicts are those of their planted truth, not of GPT-2, Phi-2 or Qwen"
        )
    notes.append(
        "claims that name a model are tested on the model in its role; 'beside CLAIM' below holds the artefacts that a "
        "claim could be, measured on the same data; table 'published' holds what the printed numbers allow"
    )
    return tuple(notes)


def _figures() -> tuple[Figure, ...]:
    return (
        Figure("alpha", "bars_with_intervals", "alpha_and_null", "alpha, and what it is when nothing differs",
               "Whiskers: family bootstrap of the measured value; range of alpha for two samples of equal spread.",
               {"label": "label", "series": "series", "value_title": "alpha"}),
        Figure("gap", "bars_with_intervals", "gap_by_unit", "The entropy gap, and what tokens would have claimed",
               "Own text. Prompts: family bootstrap interval. Tokens: Welch's interval that takes every token for an "
               "observation of its own, as a test over tokens does.",
               {"label": "label", "series": "series", "value_title": "Gap (nats)"}),
        Figure("first_component", "bars_with_intervals", "dimension_figure", "Share of PC 1, and what it can be",
               "The base's last block: prompts as they are (jackknife interval), beside other items, coordinates "
               "and random weights.",
               {"label": "label", "value_title": "Share of PC 1"}),
    )  # fmt: skip


def _names(models: Mapping[str, Model]) -> dict[str, str]:
    """Return the name of every role's model as `terrain` shows it."""
    return dict(zip(models, model_names(list(models.values())), strict=True))


def _organisms(null: Model | None) -> tuple[dict[str, Model], Model]:
    from lmprobe.organisms.folder import organism
    from lmprobe.organisms.null import null_organism

    chosen = dict(zip(ROLES, ("base", "aligned-050", "aligned-100"), strict=True))
    found: dict[str, Model] = {role: organism(name).folder for role, name in chosen.items()}
    return found, null_organism().folder if null is None else null
