"""The parts of the terrain post's reproduction that no other command measures: the pair, its axes, annotation.

Conventions. A part that these models or prompts cannot answer has no evidence and says why. Artefacts are records as
`post_evidence` makes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.contrasts import Contrast
from lmprobe.entropy import MODES
from lmprobe.loading import opened
from lmprobe.mixing import pair_models
from lmprobe.model_list import Model
from lmprobe.models import LanguageModel, Template
from lmprobe.post_evidence import pair_evidence
from lmprobe.potential import potential
from lmprobe.prompts import Prompts
from lmprobe.score import log_softmax, scan_logits
from probecore.activations import Label
from probecore.claims import Part
from probecore.errors import DesignError, InputError
from probecore.probes.layers import probe_layers
from probecore.results import Result, Row
from probecore.stats.bootstrap import t_quantile
from probecore.validation import codes_of
from probecore.verdicts import Evidence

Floats = NDArray[np.float64]


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


def pair_part(run: Run) -> tuple[Part, list[Row]]:
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
    found, artefacts = pair_evidence(result)
    return Part(result, found), artefacts


def axis_part(run: Run) -> tuple[Part, list[Row]]:
    """Measure along how many axes the aligned model's next-token log-probabilities differ from the base's."""
    how: dict[str, Any] = {"revision": run.revision, "device": run.device, "quiet": run.quiet}
    lms = [opened(run.models[role], **how) for role in ("base", "aligned")]
    floor = None if run.null is None else opened(run.null, **how)
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


def annotation_part(run: Run, measured: Result) -> Part:
    """Tell risk from safe by the entropies of the aligned model in three modes, on families the rule has not seen."""
    main = run.main
    means = mean_entropies(measured, run.names["aligned"], run.prompts)
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


def annotation_artefacts(measured: Result, run: Run) -> list[Row]:
    """Return what words, length and states alone tell of the category, beside the field metrics."""
    name = run.names["aligned"]
    at = {row["metric"]: row for row in measured.rows if row["model"] == name}
    wanted = {"bag of words": "separability control, bag of words", "length": "separability control, length",
              "the best layer's states": "separability, best layer"}  # fmt: skip
    return [
        {"claim": "annotation", "artefact": f"accuracy of {words}", "value": at[metric]["value"],
         "ci_low": at[metric].get("ci_low"), "ci_high": at[metric].get("ci_high"), "p_value": at[metric].get("p_value")}
        for words, metric in wanted.items() if metric in at
    ]  # fmt: skip


def mean_entropies(measured: Result, name: str, prompts: Prompts) -> dict[str, Floats]:
    """Return the mean entropy of every prompt of the set, by mode."""
    place = {item: i for i, item in enumerate(prompts.ids)}
    means = {mode: np.full(len(prompts), np.nan) for mode in MODES}
    for row in measured.tables["prompts"]:
        if row["model"] == name:
            means[row["mode"]][place[row["item"]]] = row["entropy"]
    return means
