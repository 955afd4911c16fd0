"""The result of a k-sweep: rows in reading order, what a reader must know, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmprobe.generate import not_applied
from lmprobe.k_overlap import behaviour_curve_rows, overlap_rows
from lmprobe.k_rows import Resamples, crossing_rows, curve_rows, over_rows, rank_rows, size_rows
from lmprobe.refusal_result import FACTS
from lmprobe.refusal_setting import FEW, form_notes
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.stats.multiple import holm

if TYPE_CHECKING:
    from lmprobe.k_curves import Options
    from lmprobe.k_sweep import Sweep

COLUMNS = (
    "metric", "model", "k", "value", "reads", "ci_low", "ci_high", "planted", "control", "null_mean", "null_low",
    "null_high", "chance", "p_value", "p_adjusted", "n_prompts",
)  # fmt: skip
SHOWN = 30  # singular values in the picture


def k_result(found: Sequence[Sweep], options: Options, *, packaged: bool, command: str) -> Result:
    """Return the result of models measured with the same options; `packaged` says that no model was named."""
    rows: list[Row] = []
    tables: dict[str, list[Row]] = {"curves": [], "over_refusal": [], "behaviours": [], "overlap": [], "spectrum": []}
    for each in found:
        draws = Resamples(each, options)
        pair, overlap = overlap_rows(each, options, draws)
        rows += [*crossing_rows(each, options, draws), *size_rows(each, options, draws), *rank_rows(each), *pair]
        tables["curves"] += curve_rows(each, draws)
        tables["over_refusal"] += over_rows(each, draws)
        tables["behaviours"] += behaviour_curve_rows(each, draws)
        tables["overlap"] += overlap
        tables["spectrum"] += _spectrum(each)
    for row in rows:
        row["detail"] = bool(row.get("detail"))
    _adjust(rows)
    order = list(dict.fromkeys(row["metric"] for row in rows))
    rows.sort(key=lambda row: (row["detail"], order.index(row["metric"])))
    given = found[0].given
    return Result(
        kind="k-sweep",
        title=f"Removal of the first k directions of refusal: {', '.join(each.name for each in found)}",
        rows=tuple(rows),
        columns=tuple(name for name in COLUMNS if any(row.get(name) is not None for row in rows if not row["detail"])),
        notes=tuple(_notes(found, options, packaged)),
        provenance=provenance(
            seed=options.seed,
            device=", ".join(dict.fromkeys(str(each.lm.device) for each in found)),
            command=command,
            prompts={"source": given.prompts.source, "hash": given.prompts.digest, **given.prompts.counts},
            splits=given.split.sizes,
            contrast=options.contrast,
            at=options.at,
            detector=options.detector.name,
            max_new_tokens=options.max_new_tokens,
            control_frames=options.n_random,
            permutations=options.n_permutations,
            bootstrap=options.n_bootstrap,
            models=[
                {"model": each.name, "site": each.site, "position": each.position, "k_star": each.k_star,
                 **{name: each.lm.info.get(name) for name in FACTS}}
                for each in found
            ],
        ),
        tables={name: tuple(table) for name, table in tables.items() if table},
        figures=tuple(_figures(tables, options)),
    )  # fmt: skip


def _adjust(rows: list[Row]) -> None:
    """Add Holm's p over all models and controls of one measure."""
    for measure in dict.fromkeys(row["measure"] for row in rows):
        tested = [row for row in rows if row["measure"] == measure and row["p_value"] is not None]
        if tested:
            for row, p in zip(tested, holm([row["p_value"] for row in tested]).tolist(), strict=True):
                row["p_adjusted"] = p


def _spectrum(found: Sweep) -> list[Row]:
    spectrum, rows = found.spectrum, []
    line = spectrum.threshold()
    for i, value in enumerate(spectrum.singular_values[:SHOWN].tolist(), start=1):
        rows.append({"model": found.name, "index": i, "value": value, "arm": "contrast"})
        rows.append({"model": found.name, "index": i, "value": line, "arm": "largest under permuted labels, 95 %"})
    return rows


def _notes(found: Sequence[Sweep], options: Options, packaged: bool) -> list[str]:
    given = found[0].given
    split = given.split
    notes = []
    if packaged:
        notes.append(
            "no --model was given: these are packaged organisms, tiny SYNTHETIC models of an artificial language with "
            "1 and 4 planted refusal directions; nothing here is a finding about a real language model"
        )
    where = "everything the model writes" if options.at == "writes" else "the site where they were read"
    notes.append(
        f"k directions of a {options.contrast} contrast (harmful states minus the mean harmless one, never centred by "
        f"their own mean), found on {split.sizes['extract']} prompts at "
        + ", ".join(f"{each.site}, position {each.position} ({each.name})" for each in found)
        + f", removed from {where}; rates of written answers ({options.detector.name}, {options.max_new_tokens} "
        f"tokens) to {split.sizes['test']} test prompts that chose nothing"
    )
    notes.append(
        f"k@q: from this k on a share q of the refusals is gone, with at least {options.keeps:g} of capability left; "
        "capability is the share of the tokens of the untouched model's own answers to neutral prompts that stay the "
        "most probable ones. k* is k@95 % on the select split, K where it is not reached there"
    )
    notes.append(
        f"random frames are uniform, covariance-matched ones lie where harmless states vary; {options.n_random} of "
        "each at k*, a removal that costs capability counts as none; p adj.: Holm over models and controls of a measure"
    )
    notes.append(
        "intervals resample clusters of test prompts, with the directions as they are; 'directions of resampled "
        "prompts' is what other extract prompts would have given"
    )
    for each in found:
        name = each.name
        if each.why_none:
            notes.append(f"{each.why_none}: no k@q, no controls, no overlap")
        if each.relaxed:
            notes.append(
                f"{name}: NO candidate passes the rule that chooses the site; given up: {', '.join(each.relaxed)}. "
                "Directions at another site may do with fewer"
            )
        if each.k_max < options.k_max:
            notes.append(f"{name}: k goes to {each.k_max}, as many as prompts and width allow")
        n = int(each.is_signal.sum())
        rank = each.spectrum.signal_rank()
        notes.append(
            f"{name}: signal rank {rank} with n = {n} harmful and {len(each.x) - n} harmless extract prompts: "
            "dimensions in which the prompts differ, whether or not refusal reads them"
        )
        few = [str(c.shape[0]) for c in each.clusters if c.shape[0] < FEW]
        if few:
            notes.append(f"{name}: only {', '.join(few)} test prompts of a kind: rates are coarse")
        notes += [f"{name}: {note}" for note in form_notes(given, [len(t.split()) for t in given.prompts.texts])]
        ignored = not_applied(each.lm)
        if ignored:
            notes.append(f"{name}: decoded greedily; its generation config asks for {', '.join(ignored)}, not applied")
    return list(dict.fromkeys(notes))


def _figures(tables: dict[str, list[Row]], options: Options) -> list[Figure]:
    found = [
        Figure(
            "k_sweep", "lines", "curves", "Refusal and capability when the first k directions are removed",
            "Band of the contrast and of single frames: .95 interval over clusters of test prompts; of random and "
            f"covariance-matched frames: the range of {options.n_curves} frames. Refusal counts as removed only while "
            "capability holds.",
            {"x": "k", "y": "value", "series": "arm", "facet": "panel", "columns": 2,
             "x_title": "Directions removed (k)", "y_title": "Share", "zero": True},
        ),
        Figure(
            "spectrum", "lines", "spectrum", "Singular values of the contrast",
            "The flat line is the 95th percentile of the largest singular value under permuted labels; values above it "
            "make the signal rank.",
            {"x": "index", "y": "value", "series": "arm", "facet": "model", "x_title": "Index",
             "y_title": "Singular value", "zero": True},
        ),
    ]  # fmt: skip
    if tables["behaviours"]:
        found.append(
            Figure(
                "behaviours", "lines", "behaviours", "What the directions of one behaviour do to another",
                "Refusals of each behaviour's test prompts, and capability, when the first k directions of one "
                "behaviour are removed; bands are .95 intervals over clusters of prompts.",
                {"x": "k", "y": "value", "series": "of", "facet": "panel", "columns": 2,
                 "x_title": "Directions removed (k)", "y_title": "Share", "zero": True},
            )
        )  # fmt: skip
        found.append(
            Figure(
                "overlap", "lines", "overlap", "Overlap of the first k directions of two behaviours",
                "Mean squared cosine of the principal angles. Random subspaces have k / d; frames with the "
                "covariance of harmless states (band: .95 of 50 pairs) overlap more: both lie where the states vary.",
                {"x": "k", "y": "overlap", "series": "arm", "facet": "model", "x_title": "Directions of each (k)",
                 "y_title": "Overlap", "zero": True},
            )
        )  # fmt: skip
    return found
