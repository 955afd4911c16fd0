"""The rows, tables, notes and figures of a talker lens.

Conventions. `divergence` is, per text, (layers, a, b, frames, codes) in nats, the first `n_styles` instructions the
style. Layer 0 is the input of a stack, layer i the residual stream after block i. A row of layer null speaks about all
layers of its stack (where the effect peaks). Every row has model, stack, layer, metric, value, interval over texts, the
range of the neutral instructions (null), p, and how many texts and frames it stands on.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codecprobe.style_effect import LayerEffect, Peak, StyleEffect, parts_of, text_interval
from probecore.errors import shorten
from probecore.lens import Lens
from probecore.results import Figure, Row

if TYPE_CHECKING:
    from codecprobe.talker import Talker

Floats = NDArray[np.float64]
STACKS = ("talker", "code predictor")
EFFECT, RISE = "style effect", "rise of the effect"
COLUMNS = (
    "stack", "metric", "layer", "value", "ci_low", "ci_high", "null_low", "null_high", "p_value", "p_adjusted",
    "n_texts", "n_frames",
)  # fmt: skip
ALPHA = 0.05
_BY_CONSTRUCTION = "the input of a frame is the same under every instruction: 0 by construction, not a finding"
_NO_TEST = "described, not tested"
_ONE_TEXT = "an interval over texts needs at least 2 texts"
_NO_EFFECT = "no layer has an effect above 0, so nothing peaks"


def rows_of(model: str, stack: str, found: StyleEffect, lenses: Sequence[Lens]) -> list[Row]:
    """Return all rows of one stack: effect and peaks, then as detail the rise, its parts, and the lens itself."""
    n_texts, n_frames = len(lenses), sum(lens.entropy.shape[1] for lens in lenses)
    same: Row = {"model": model, "stack": stack}
    sizes: Row = {"n_texts": n_texts, "n_frames": n_frames}
    rows = [{**same, **row, **sizes} for row in _tested(EFFECT, found.effect, n_texts)]
    peaks = {"peak of the effect": found.peak, "steepest rise": found.peak_of_rise}
    rows += [{**same, **_peak(name, peak, n_texts), **sizes} for name, peak in peaks.items()]
    rows += [{**same, **row, **sizes, "detail": True} for row in _tested(RISE, found.rise, n_texts)]
    described = {
        "style KL": found.style_kl,
        "neutral KL": found.null_kl,
        "entropy": _text_means([lens.entropy for lens in lenses]),
        "KL to final": _text_means([lens.kl_to_final for lens in lenses]),
        "rank of final choice": _text_means([lens.rank for lens in lenses]),
    }
    for metric, by_text in described.items():
        rows += [{**same, **row, **sizes, "detail": True} for row in _described(metric, by_text)]
    return rows


def by_frame(stack: str, divergences: Sequence[Floats], n_styles: int) -> list[Row]:
    """Return the effect of each layer in each frame, mean over codes and over the texts that have this frame."""
    effects = [_effect(one.mean(axis=4), n_styles) for one in divergences]
    rows: list[Row] = []
    for frame in range(max(one.shape[1] for one in effects)):
        there = [one[:, frame] for one in effects if one.shape[1] > frame]
        rows += [
            {"stack": stack, "layer": layer, "frame": frame, "effect": value, "n_texts": len(there)}
            for layer, value in enumerate(np.mean(there, axis=0))
        ]
    return rows


def by_code(stack: str, divergences: Sequence[Floats], n_styles: int) -> list[Row]:
    """Return the effect of each layer on each code it predicts, mean over frames, then over texts."""
    mean = np.mean([_effect(one.mean(axis=3), n_styles) for one in divergences], axis=0)
    first = 0 if stack == "talker" else 1
    return [
        {
            **{"stack": stack, "layer": layer, "code": first + code, "effect": mean[layer, code]},
            "effect_millinats": 1000 * mean[layer, code],
        }
        for layer in range(mean.shape[0])
        for code in range(mean.shape[1])
    ]


def profile(rows: Sequence[Row], stack: str) -> list[Row]:
    """Return the rows of the style effect of one stack."""
    return [row for row in rows if row["stack"] == stack and row["metric"] == EFFECT]


def lens_profile(rows: Sequence[Row]) -> list[Row]:
    """Return entropy and distance to the final distribution of the talker, by layer."""
    return [row for row in rows if row["stack"] == "talker" and row["metric"] in ("entropy", "KL to final")]


def notes_of(
    talker: "Talker",
    styles: Sequence[str],
    neutrals: Sequence[str],
    n_frames: Sequence[int],
    max_frames: int,
    effects: Mapping[str, StyleEffect],
) -> tuple[str, ...]:
    """Return what a reader of the table must know about design, masks and limits."""
    lengths = [talker.n_tokens(one) for one in neutrals[1:]]
    own = [talker.n_tokens(one) for one in styles]
    first = next(iter(effects.values()))
    notes = [
        f"{len(n_frames)} texts, {sum(n_frames)} frames of 80 ms, spoken once under the neutral instruction "
        f"{neutrals[0]!r} and teacher forced under {len(styles)} wording{'s' * (len(styles) > 1)} of the style and "
        f"{len(neutrals) - 1} other neutral instructions.",
        "style effect: KL(style || neutral) - KL(neutral || another neutral) of the lenses, nats, mean over frames; "
        "divergences below 1e-7 nats count as 0. Layer 0 is the input, layer i the stream after block i. Null range: "
        "95 % of the neutral instructions, each against the others.",
        f"p: {first.n_choices} choices of who plays the style, smallest possible p {first.smallest_p:.2g}; adjusted "
        "over the layers of one stack (max-T). Intervals and peaks speak about other texts, with these instructions.",
        f"Ids that generate suppresses have probability 0: the talker may say its {talker.info.n_entries} codes and, "
        "from the third frame on, the end of speech. Temperature, top-k and repetition penalty are not part of a lens.",
    ]
    if sum(size == max_frames for size in n_frames):
        notes.append(f"{sum(size == max_frames for size in n_frames)} texts were cut off after {max_frames} frames.")
    outside = [size for size in own if not min(lengths) <= size <= max(lengths)]
    if outside:
        notes.append(
            f"The style has {shorten(outside)} tokens, the neutral instructions {min(lengths)} to {max(lengths)}: part "
            "of the effect can be length; give --neutral of about the same length."
        )
    if first.smallest_p > ALPHA:
        notes.append(
            f"With so few instructions no p can reach {ALPHA:g}: give more --neutral, or --style more than once."
        )
    for stack, effect in effects.items():
        adjusted = effect.effect.p_adjusted
        if effect.peak is not None and not np.nanmin(adjusted) <= ALPHA:
            notes.append(
                f"{stack}: no layer tells the style from another wording of a neutral instruction: its peak may be "
                "one of wording."
            )
    return tuple(notes)


def figures(model: str) -> tuple[Figure, ...]:
    """Return the pictures: effect by layer of both stacks, layer by frame, layer by code, and the lens itself."""
    options = {
        "y": "value", "y_title": "Style effect (nats)", "chance": "null_high",
        "chance_title": "97.5 % of neutral instructions",
    }  # fmt: skip
    return (
        Figure(
            "style-by-layer", "layer_profile", "profile", f"Style effect by layer, talker {model}",
            "KL(style || neutral) minus KL(neutral || another neutral) of the lenses, with 95 % intervals over texts. "
            "Below the dashed line lie 97.5 % of neutral instructions.", options,
        ),
        Figure(
            "style-by-predictor-layer", "layer_profile", "predictor", f"Style effect by layer, code predictor {model}",
            "The same for the code predictor, mean over codes 1 to 15.", options,
        ),
        Figure(
            "style-by-frame", "heatmap", "talker frames", "Style effect by layer and frame, talker",
            "Mean over the texts that have this frame (nats). Frame 0 is the first after the prompt; later frames also "
            "see the frames before them, which were spoken under a neutral instruction.",
            {"x": "frame", "y": "layer", "value": "effect", "x_title": "Frame", "value_title": "Nats", "middle": 0},
        ),
        Figure(
            "style-by-code", "heatmap", "predictor codes", "Style effect by layer and code, code predictor",
            "Mean over frames and texts (thousandths of a nat): which of the codes 1 to 15 the instruction changes.",
            {
                "x": "code", "y": "layer", "value": "effect_millinats", "x_title": "Code",
                "value_title": "Millinats", "middle": 0,
            },
        ),
        Figure(
            "lens-by-layer", "layer_profile", "lens", f"What the layers say, {model}",
            "Talker: entropy of the lens and its distance KL(final || layer) to the final distribution, with 95 % "
            "intervals over texts, under the neutral instruction the frames were spoken with.",
            {"y": "value", "series": "metric", "chance": None, "p": None, "y_title": "Nats"},
        ),
    )  # fmt: skip


def _tested(metric: str, effect: LayerEffect, n_texts: int) -> list[Row]:
    rows = []
    for layer, value in enumerate(effect.value):
        row = {"layer": layer, "metric": metric, "unit": "nats", "value": value}
        row |= {name: getattr(effect, name)[layer] for name in ("ci_low", "ci_high", "null_low", "null_high")}
        row |= {name: getattr(effect, name)[layer] for name in ("p_value", "p_adjusted")}
        if layer == 0:
            row["p_note"] = _BY_CONSTRUCTION
        rows.append(row | ({"ci_note": _ONE_TEXT} if n_texts < 2 else {}))
    return rows


def _peak(metric: str, peak: Peak | None, n_texts: int) -> Row:
    row: Row = {"layer": None, "metric": metric, "unit": "layer", "value": None, "ci_low": None, "ci_high": None}
    row |= {"null_low": None, "null_high": None, "p_value": None, "p_adjusted": None}
    if peak is None:
        return row | {"value_note": _NO_EFFECT}
    row |= {"value": peak.layer, "ci_low": peak.ci_low, "ci_high": peak.ci_high, "share_of_resamples": peak.share}
    return row | ({"ci_note": _ONE_TEXT} if n_texts < 2 else {})


def _described(metric: str, by_text: Floats) -> list[Row]:
    low, high = text_interval(by_text)
    unit = "rank" if metric.startswith("rank") else "nats"
    return [
        {
            **{"layer": layer, "metric": metric, "unit": unit, "value": value, "ci_low": low[layer]},
            **{"ci_high": high[layer], "null_low": None, "null_high": None, "p_value": None, "p_adjusted": None},
            "p_note": _NO_TEST,
            **({"ci_note": _ONE_TEXT} if len(by_text) < 2 else {}),
        }
        for layer, value in enumerate(by_text.mean(axis=0))
    ]


def _text_means(values: Sequence[Floats]) -> Floats:
    """Return (texts, layers) of one (layers, frames, ...) per text."""
    return np.stack([one.reshape(len(one), -1).mean(axis=1) for one in values])


def _effect(divergence: Floats, n_styles: int) -> Floats:
    """Return the effect (layers, m) of divergences (layers, a, b, m)."""
    kl = np.moveaxis(divergence, 3, 1)
    roles = np.zeros((1, kl.shape[-1]))
    roles[0, :n_styles] = 1
    style, null = parts_of(kl, roles)
    effect: Floats = (style - null)[..., 0]
    return effect


def heat_maps(frames: Sequence[Row], codes: Sequence[Row]) -> dict[str, tuple[Any, ...]]:
    """Return the tables that the heat maps are drawn from: talker by frame, code predictor by code."""
    return {
        "talker frames": tuple(row for row in frames if row["stack"] == "talker"),
        "predictor codes": tuple(row for row in codes if row["stack"] == "code predictor"),
        "predictor frames": tuple(row for row in frames if row["stack"] == "code predictor"),
    }
