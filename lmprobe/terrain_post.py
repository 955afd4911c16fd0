"""`lmprobe reproduce terrain-post`: every claim of the terrain post as a row with estimate, interval and verdict.

Conventions. `post_claims` lists the claims and their rules, `post_evidence` reads the measurements, the core judges.
All parts use the same prompts. A part that these models or prompts cannot answer leaves its claims undecided with the
reason; no claim is ever dropped. Beside every claim stand the artefacts it could be, measured (table "artefacts").
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.contrasts import Contrast, contrast
from lmprobe.entropy import FIRST_MODE, MODES
from lmprobe.loading import open_model
from lmprobe.mixing import pair_models
from lmprobe.models import LanguageModel, Template
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
    pair_evidence,
    published,
    terrain_evidence,
)
from lmprobe.potential import potential
from lmprobe.prompts import Prompts, load_prompts, main_categories
from lmprobe.score import log_softmax, scan_logits
from lmprobe.terrain import terrain
from probecore.activations import Label
from probecore.claims import COLUMNS, Part, claim_figures, claim_rows, claim_tables, part_of, refusals, rules_note
from probecore.errors import DesignError, InputError
from probecore.probes.layers import probe_layers
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.stats.bootstrap import t_quantile
from probecore.stats.variance_ratio import alpha_null_interval
from probecore.validation import codes_of
from probecore.verdicts import Evidence

Floats = NDArray[np.float64]
Model = str | os.PathLike[str] | LanguageModel


@dataclass(frozen=True)
class Run:
    """What every part shares: models and their names by role, prompts, the contrast of their categories, options."""

    models: Mapping[str, Model]
    names: Mapping[str, str]
    null: Model | None
    prompts: Prompts
    main: Contrast
    max_new_tokens: int
    template: Template
    revision: str | None
    n_permutations: int
    n_bootstrap: int
    seed: int
    device: str
    quiet: bool


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
    means = {role: _means(measured, run.names[role], given)[FIRST_MODE][main.items] for role in ROLES}
    parts = {
        TERRAIN: Part(measured, found),
        ORDER: Part(evidence={"alpha-grows": order_evidence(means, main)}),
    }
    artefacts += order_artefacts()
    parts[PAIR], more = _pair_part(run)
    artefacts += more
    parts[AXIS], more = _axis_part(run)
    artefacts += more
    parts[ANNOTATION] = part_of(lambda one: _annotation_part(one, measured), run)
    artefacts += _annotation_artefacts(measured, run)
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
            rules_note(len(CLAIMS)),
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


def _pair_part(run: Run) -> tuple[Part, list[Row]]:
    """Measure lambda, where the three models share a tokenizer."""
    try:
        result = potential(
            run.models["base"], [run.models["partly"], run.models["aligned"]], run.prompts, null=run.null,
            max_new_tokens=run.max_new_tokens, template=run.template, revision=run.revision,
            n_permutations=run.n_permutations, n_bootstrap=run.n_bootstrap, seed=run.seed, device=run.device,
            quiet=run.quiet,
        )  # fmt: skip
    except (DesignError, InputError) as error:
        return Part(reason=str(error)), []
    found, artefacts = pair_evidence(result, run.names["partly"])
    return Part(result, found), artefacts


def _axis_part(run: Run) -> tuple[Part, list[Row]]:
    """Measure along how many axes the aligned model's next-token log-probabilities differ from the base's."""
    lms = [_opened(run.models[role], run) for role in ("base", "aligned")]
    floor = None if run.null is None else _opened(run.null, run)
    try:
        share = first_axis(lms[0], lms[1], run)
        artefacts = []
        if floor is not None:
            noise = first_axis(lms[0], floor, run)
            artefacts.append({
                "claim": "not-one-axis", "artefact": f"floor: the same for {floor.name}", "value": noise.value,
                "ci_low": noise.low, "ci_high": noise.high, "p_value": None,
            })  # fmt: skip
    except (DesignError, InputError) as error:
        return Part(reason=str(error)), []
    return Part(evidence={"not-one-axis": share}), artefacts


def first_axis(base: LanguageModel, aligned: LanguageModel, run: Run) -> Evidence:
    """Return the share of the first component in the log-ratios at the prompts' ends, jackknife interval over families.

    Rows of the matrix are prompts, columns tokens: (ell - E_b ell) sqrt(mean base probability). Components are not
    centred over prompts: what alignment does to every prompt alike is its first axis, not an offset.
    """
    pair = pair_models(base, aligned)
    rows = pair.format_all(run.prompts.texts, run.template, 1)
    n = len(rows)
    ratios = np.empty((n, base.vocabulary), dtype=np.float32)
    weight = np.zeros(base.vocabulary)

    def keep(i: int, logits: list[Tensor], tokens: Tensor) -> None:
        log_b, log_a = (log_softmax(each, i)[0] for each in logits)
        p = log_b.exp()
        ell = torch.where(p > 0, log_a - log_b, torch.zeros_like(log_b))
        ratios[i, : len(p)] = (ell - (p * ell).sum()).cpu().numpy()
        weight[: len(p)] += p.cpu().numpy() / n

    scan_logits([base, aligned], [[*row, 0] for row in rows], [len(row) for row in rows], keep)
    scaled = ratios.astype(np.float64) * np.sqrt(weight)
    gram = scaled @ scaled.T
    if not np.trace(gram) > 0:
        return Evidence(reason="the two models give the same probabilities: nothing is changed")
    families = codes_of(run.prompts.families)[0]
    count = int(families.max()) + 1

    def share(keep_rows: NDArray[np.bool_]) -> float:
        values = np.linalg.eigvalsh(gram[np.ix_(keep_rows, keep_rows)])
        return float(values[-1] / values.sum())

    value = share(np.ones(n, dtype=bool))
    if count < 3:
        return Evidence(value, reason="fewer than 3 families: no interval", unit="share", n_items=n, n_clusters=count)
    left = np.array([share(families != family) for family in range(count)])
    half = t_quantile(count - 1) * float(np.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum()))
    return Evidence(value, max(value - half, 0.0), min(value + half, 1.0), None, "a share is read by its interval",
                    unit="share", n_items=n, n_clusters=count)  # fmt: skip


def _annotation_part(run: Run, measured: Result) -> Part:
    """Tell risk from safe by the entropies of the aligned model in three modes, on families the rule has not seen."""
    main = run.main
    means = _means(measured, run.names["aligned"], run.prompts)
    features = np.column_stack([means[mode][main.items] for mode in MODES])
    label = Label(np.where(main.is_first, main.first, main.second))
    (row,) = probe_layers(
        {"field metrics": features}, label, groups=main.families, n_permutations=run.n_permutations,
        n_bootstrap=min(run.n_bootstrap, 200), seed=run.seed,
    ).rows  # fmt: skip
    if row["accuracy"] is None:
        raise DesignError(str(row["p_note"]))
    low, high = row.get("ci_low"), row.get("ci_high")
    return Part(evidence={"annotation": Evidence(
        row["accuracy"], low, high, row["p_adjusted"], str(row["p_note"] or "p of chance, exchanged categories"),
        reason="" if low is not None else "the design gives no interval over families",
        detail=f"chance {row['chance']:.2f}", unit="accuracy", n_items=main.n_prompts, n_clusters=main.n_families,
    )})  # fmt: skip


def _annotation_artefacts(measured: Result, run: Run) -> list[Row]:
    name = run.names["aligned"]
    at = {row["metric"]: row for row in measured.rows if row["model"] == name}
    wanted = {"bag of words": "separability control, bag of words", "length": "separability control, length",
              "the best layer's states": "separability, best layer"}  # fmt: skip
    return [
        {"claim": "annotation", "artefact": f"accuracy of {words}", "value": at[metric]["value"],
         "ci_low": at[metric].get("ci_low"), "ci_high": at[metric].get("ci_high"), "p_value": at[metric].get("p_value")}
        for words, metric in wanted.items() if metric in at
    ]  # fmt: skip


def _means(measured: Result, name: str, prompts: Prompts) -> dict[str, Floats]:
    """Return the mean entropy of every prompt of the set, by mode."""
    place = {item: i for i, item in enumerate(prompts.ids)}
    means = {mode: np.full(len(prompts), np.nan) for mode in MODES}
    for row in measured.tables["prompts"]:
        if row["model"] == name:
            means[row["mode"]][place[row["item"]]] = row["entropy"]
    return means


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
    from lmprobe.terrain import model_names

    return dict(zip(models, model_names(list(models.values())), strict=True))


def _opened(model: Model, run: Run) -> LanguageModel:
    if isinstance(model, LanguageModel):
        return model
    return open_model(model, revision=run.revision, device=run.device, quiet=run.quiet)


def _organisms(null: Model | None) -> tuple[dict[str, Model], Model]:
    from lmprobe.organisms.folder import organism
    from lmprobe.organisms.null import null_organism

    chosen = dict(zip(ROLES, ("base", "aligned-050", "aligned-100"), strict=True))
    found: dict[str, Model] = {role: organism(name).folder for role, name in chosen.items()}
    return found, null_organism().folder if null is None else null
