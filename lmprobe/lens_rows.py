"""The rows of a lens: what each layer says of one text, and how two sets of prompts differ in it.

Conventions. Rows about one text have model, prompt (its number), position, token, layer, lens ("plain", "tuned") and
the measures of that cell; they describe one text exactly, so they have no interval and no p, and `noise_floor` says
below which KL a difference is one of padding. Rows about two sets of prompts have layer, metric, the mean of each set,
their contrast (first - second) with interval and p. Layers are named as everywhere: "embed", "block 0" .. "block L-1".

A contrast that no exchange of categories brings above rounding (`resolution` nats, its square for H2) is not tested: a
layer at which all prompts are in the same state would otherwise be ranked by the padding of its batches.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lmprobe.contrast_statistics import Statistic, gap
from lmprobe.contrasts import Contrast
from lmprobe.entropy_tables import family_interval
from lmprobe.lens_contrast import SetReading, hellinger_contrast, jackknife_interval
from lmprobe.lens_reading import Reading
from lmprobe.prompts import Prompts
from lmprobe.tuned_lens import TunedLens
from probecore.ablation.paired import paired_effects
from probecore.results import Row
from probecore.stats.multiple import holm
from probecore.stats.permutation import max_t

Floats = NDArray[np.float64]
TEXT_COLUMNS = (
    "model", "prompt", "token", "lens", "layer", "entropy_nats", "kl_to_final_nats", "noise_floor", "rank_of_final",
    "prob_of_final", "says",
)  # fmt: skip
SET_COLUMNS = (
    "model", "lens", "metric", "layer", "first", "second", "value", "ci_low", "ci_high", "p_value", "p_adjusted",
    "n_prompts", "n_families", "says_more",
)  # fmt: skip
SAID, ENTROPY, KL, FINAL = "what is said (H²)", "entropy (nats)", "KL to final (nats)", "log p of final choice (nats)"
ONE_TEXT = "one text, read exactly: there is nothing to test"
ONE_TEXT_CI = "one text, read exactly: other texts are other rows"
EXACT = "the layer is what it is compared with: 0 by construction"
HELD_OUT = "held-out KL to final, tuned - plain (nats)"


def text_rows(
    model: str,
    number: int,
    reading: Reading,
    labels: Sequence[str],
    said: Sequence[Sequence[Sequence[str]]],
    targets: Sequence[str],
    kind: str,
    *,
    held_out: Floats | None = None,
    detail: bool,
) -> list[Row]:
    """Return a row per layer and position.

    labels : of the text's tokens. said : (layers, positions, top) labels of the most probable ids. held_out : (layers -
    1,) loss of this lens on held-out texts. detail : whether all rows stay out of the printed table; else only those of
    the last position are in it.
    """
    lens, rows = reading.lens, []
    floor = float(reading.noise.max())
    for t, label in enumerate(labels):
        for k, layer in enumerate(reading.layers):
            row: Row = {
                "model": model, "prompt": number, "position": t, "token": label, "lens": kind, "layer": layer,
                "entropy_nats": lens.entropy[k, t], "kl_to_final_nats": lens.kl_to_final[k, t], "noise_floor": floor,
                "rank_of_final": int(lens.rank[k, t]), "prob_of_final": float(np.exp(lens.log_prob[k, t])),
                "says": says(said[k][t], lens.top_prob[k, t]), "first_choice": said[k][t][0],
                "p_first_choice": float(lens.top_prob[k, t, 0]), "p_value": None, "p_note": ONE_TEXT,
                "ci_low": None, "ci_high": None, "ci_note": ONE_TEXT_CI,
                "detail": detail or t < len(labels) - 1,
            }  # fmt: skip
            if held_out is not None:
                row["held_out_kl_nats"] = float(held_out[k]) if k < len(held_out) else None
                if k == len(held_out):
                    row["held_out_kl_note"] = EXACT
            for j, target in enumerate(targets):
                row[f"rank_of_{target!r}"] = int(lens.target_rank[k, t, j])
                row[f"log_prob_of_{target!r}"] = lens.target_log_prob[k, t, j]
            rows.append(row)
    return rows


def text_columns(targets: Sequence[str], tuned: bool) -> tuple[str, ...]:
    """Return the columns of the printed table of texts."""
    held_out = ("held_out_kl_nats",) if tuned else ()
    followed = (name for target in targets for name in (f"rank_of_{target!r}", f"log_prob_of_{target!r}"))
    return (*TEXT_COLUMNS[:-1], *held_out, *followed, TEXT_COLUMNS[-1])


def says(labels: Sequence[str], probabilities: Floats) -> str:
    """Return the most probable tokens with their probabilities, as cells show them.

    >>> says(["Paris", "the"], np.array([0.314, 0.0009]))
    'Paris .31, the <.01'
    """
    shown = [f"{p:.2f}".removeprefix("0") if p >= 0.01 else "<.01" for p in probabilities.tolist()]
    return ", ".join(f"{label} {p}" for label, p in zip(labels, shown, strict=True))


def contrast_rows(
    model: str,
    found: SetReading,
    contrast: Contrast,
    targets: Sequence[str],
    names: Mapping[int, str],
    kind: str,
    *,
    resolution: float = 1e-6,
) -> list[Row]:
    """Return a row per metric and layer: the contrast of the two sets with interval, p and p adjusted over layers.

    resolution : nats below which a difference between prompts is rounding.
    """
    lens, items = found.lens, contrast.items
    measures: dict[str, Floats] = {
        ENTROPY: lens.entropy[:, items], KL: lens.kl_to_final[:, items], FINAL: lens.log_prob[:, items],
    }  # fmt: skip
    measures |= {f"log p of {t!r} (nats)": lens.target_log_prob[:, items, j] for j, t in enumerate(targets)}
    rows: list[Row] = []
    overlaps = [found.overlap[k][np.ix_(items, items)] for k in range(len(found.layers))]
    rows += _family(
        model, SAID, [hellinger_contrast(o) for o in overlaps], contrast, found.layers, kind, jackknife=True,
        one_sided=True, notes={}, values=None, resolution=resolution**2,
    )  # fmt: skip
    for k, row in enumerate(rows):
        row["says_more"] = _moved(found.more[k], names) or None
        row["says_less"] = _moved(found.less[k], names) or None
    for metric, values in measures.items():
        zero = {len(values) - 1: EXACT} if metric == KL else {}
        rows += _family(
            model, metric, [gap(v) for v in values], contrast, found.layers, kind, jackknife=False, one_sided=False,
            notes=zero, values=values, resolution=resolution,
        )  # fmt: skip
    shown = {SAID, ENTROPY, *(m for m in measures if m.startswith("log p of '"))}
    for row in rows:
        row["detail"] = row["metric"] not in shown
    return rows


def _family(
    model: str,
    metric: str,
    statistics: Sequence[Statistic],
    contrast: Contrast,
    layers: Sequence[str],
    kind: str,
    *,
    jackknife: bool,
    one_sided: bool,
    notes: Mapping[int, str],
    values: Floats | None,
    resolution: float,
) -> list[Row]:
    """Return the rows of one metric over all layers; p adjusted over them by the maximum of the labelings."""
    nulls = np.full((len(layers), contrast.labelings.shape[1]), np.nan)
    rows: list[Row] = []
    for k, (layer, statistic) in enumerate(zip(layers, statistics, strict=True)):
        if jackknife:
            ends = jackknife_interval(contrast, statistic) if contrast.resamples.shape[1] else None
        else:
            ends = contrast.interval(statistic)
        row: Row = {
            "model": model, "lens": kind, "metric": metric, "layer": layer, "value": contrast.observed(statistic),
            "first_category": contrast.first, "second_category": contrast.second,
            "ci_low": None if ends is None else ends[0], "ci_high": None if ends is None else ends[1],
            "n_prompts": contrast.n_prompts, "n_families": contrast.n_families, "p_value": None, "p_adjusted": None,
            "null": 0.0,
        }  # fmt: skip
        if ends is None:
            row["ci_note"] = "no resamples were asked for, or too few families"
        if values is not None:
            first, second = contrast.split(values[k])
            row |= {"first": float(first.mean()), "second": float(second.mean())}
        else:
            row |= {"first": None, "second": None}
        rows.append(row)
        if k in notes or contrast.labelings.shape[1] < 2:
            row["p_note"] = notes.get(k, contrast.reason or "no permutations were asked for")
            continue
        null = contrast.null(statistic)
        if not np.isfinite(null).all():
            row["p_note"] = "undefined in some labelling"
            continue
        if float(np.abs(null).max()) <= resolution:
            row["p_note"] = "within rounding under every labelling: prompts do not differ here"
            continue
        nulls[k] = null if one_sided else np.abs(null if contrast.symmetric else null - null.mean())
        row["p_value"] = float((nulls[k] >= nulls[k, 0] - 1e-9 * np.abs(nulls[k]).max()).mean())
    for row, p in zip(rows, max_t(nulls), strict=True):
        row["p_adjusted"] = None if np.isnan(p) else float(p)
    return rows


def category_profile(model: str, found: SetReading, prompts: Prompts, kind: str) -> list[Row]:
    """Return the mean of each measure by layer and category, with t intervals over families."""
    lens, categories, families = found.lens, np.asarray(prompts.categories), np.asarray(prompts.families)
    rows: list[Row] = []
    for metric, values in ((ENTROPY, lens.entropy), (KL, lens.kl_to_final), (FINAL, lens.log_prob)):
        for category in prompts.counts:
            mask = categories == category
            for layer, own in zip(found.layers, values[:, mask], strict=True):
                low, high = family_interval(own, families[mask])
                rows.append(
                    {
                        "model": model, "lens": kind, "metric": metric, "category": category, "layer": layer,
                        "value": float(own.mean()), "ci_low": low, "ci_high": high, "n_prompts": int(mask.sum()),
                    }
                )  # fmt: skip
    return rows


def held_out_rows(model: str, tuned: TunedLens, layers: Sequence[str], *, seed: int, detail: bool) -> list[Row]:
    """Return per layer the held-out KL to the final distribution, plain and tuned, and their difference by text."""
    rows: list[Row] = []
    plain, own = tuned.held_out
    for k, layer in enumerate(layers[:-1]):
        found = paired_effects(own[k][None], plain[k], clusters=np.arange(plain.shape[1]), seed=seed)[0]
        rows.append(
            {
                "model": model, "lens": "tuned", "metric": HELD_OUT, "layer": layer, "first": found["value"],
                "second": found["unablated_value"], "value": found["effect"], "ci_low": found["effect_low"],
                "ci_high": found["effect_high"], "p_value": found["p_value"], "p_note": found["p_note"],
                "ci_note": found["ci_note"], "n_texts": plain.shape[1], "first_category": "tuned",
                "second_category": "plain", "detail": detail,
            }
        )  # fmt: skip
    adjusted = holm([np.nan if row["p_value"] is None else row["p_value"] for row in rows])
    for row, p in zip(rows, adjusted, strict=True):
        row["p_adjusted"] = None if np.isnan(p) else float(p)
        for note in ("p_note", "ci_note"):
            if not row[note]:
                del row[note]
    return rows


def _moved(pairs: Sequence[tuple[int, float]], names: Mapping[int, str]) -> str:
    return ", ".join(f"{names[i]} {value:+.2f}" for i, value in pairs if value >= 0.005)
