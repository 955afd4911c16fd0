"""How much of its codebooks a codec uses on a corpus, and what its layers share: the analysis of `codecprobe usage`.

The counts and their rows are those of `codebook_counts.py`, the rows of pairs of layers those of
`layer_information.py`; `activity` says whether frames of speech or all frames count. Information between layers is
measured on speech, as silence alone makes layers agree.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from codecprobe.codebook_counts import Counts, bit_rate_row, chosen_budget, count_codes, layer_rows, training_rows
from codecprobe.codecs.codec import Codec
from codecprobe.codecs.registry import open_codec
from codecprobe.corpora.corpus import Corpus
from codecprobe.corpora.registry import open_corpus
from codecprobe.innovation import innovation_rows
from codecprobe.layer_information import information_rows, streams_of
from codecprobe.tokenization import describe, facts_of, tokenize
from codecprobe.voice_activity import ACTIVITIES, activity_masks, describe_activity
from probecore.codebooks import detection_limit, frames_to_see_all, rarefied_codes
from probecore.devices import device_of
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.store import ArrayCache, cache_dir
from probecore.validation import at_least, codes_of

COLUMNS = (
    "metric", "layer", "value", "ci_low", "ci_high", "most", "unit", "estimator", "p_value", "p_adjusted",
    "n_frames", "n_clips", "n_speakers",
)  # fmt: skip
DESCRIBED = "described, not tested: read it by its interval"
CURVE_POINTS = 24


def codebook_usage(
    corpus: str | Path | Corpus = "embedded",
    codec: str | Path | Codec = "embedded",
    *,
    speakers: int | None = None,
    clips: int | None = None,
    budget: int | None = None,
    n_permutations: int = 199,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    quiet: bool = True,
) -> Result:
    """Measure how much of its codebooks a codec uses on a corpus, and what its layers share.

    Parameters
    ----------
    corpus, codec, speakers, clips, device, cache : as `speaker_probe` takes them.
    budget : frames at which codes are counted, the same for all layers; None takes the largest of 1, 2, 5, 10, 20, ...
        that the frames of speech without their longest speaker allow. Compare codecs at one budget.
    n_permutations : circular shifts behind excess information and its p.

    Returns
    -------
    Result of kind "usage", a row per metric, layer (or pair of layers) and activity.

    Raises
    ------
    InputError : fewer frames than the budget.
    """
    at_least(n_permutations, 19, "--permutations")
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, quiet=quiet)
    opened = open_codec(codec, device) if isinstance(codec, str | Path) else codec
    root = cache or cache_dir()
    tokenized = tokenize(source.sample(speakers, clips, seed), opened, cache=ArrayCache(root / "codes"), quiet=quiet)
    masks = activity_masks(tokenized, ArrayCache(root / "activity"), quiet=quiet)
    arms = {activity: count_codes(tokenized, masks[activity], activity) for activity in ACTIVITIES}
    frames = chosen_budget(arms["speech"][0], budget)
    rows = [row for arm in arms.values() for counts in arm for row in layer_rows(counts, frames)]
    rows += [bit_rate_row(arm, opened.info) for arm in arms.values()]
    training, training_note = training_rows(arms["speech"], opened)
    speaker, _ = codes_of([clip.speaker for clip in tokenized.clips])
    streams = streams_of(tokenized.codes, masks["speech"], speaker, opened.info.layers, opened.info.frame_rate_hz)
    between: list[Row] = []
    if len(streams.lengths) and opened.info.n_layers > 1:
        between = information_rows(streams, opened, n_shifts=n_permutations, seed=seed, quiet=quiet)
    if len(streams.lengths) > 1:
        between += innovation_rows(streams, opened, seed=seed, quiet=quiet)
    rows = [
        {"p_value": None, "p_adjusted": None, "p_note": DESCRIBED} | row
        for row in _in_reading_order([*rows, *training, *between])
    ]
    first = arms["speech"][0]
    return Result(
        kind="usage",
        title=f"Codebook usage: codec {opened.info.name}, corpus {source.name}",
        rows=tuple(rows),
        columns=tuple(name for name in COLUMNS if any(name in row for row in rows)),
        notes=(
            *describe(tokenized),
            *tokenized.notes,
            describe_activity(masks),
            f"codes used: expected number in {frames} of these frames (rarefied), the same for every layer",
            f"codes not seen: only codes of probability above {detection_limit(int(first.total.sum())):.2g} would have "
            f"been seen with 95 %; {frames_to_see_all(max(opened.info.codebook_sizes))} frames show all of an evenly "
            "used book",
            training_note,
            f"shared information: codes merged to groups, a lower bound; excess: against {n_permutations} circular "
            "shifts inside clips (p: (b + 1) / (m + 1), adjusted by max-T over pairs); clips under 4 frames of speech "
            f"left out: {streams.n_too_short}",
            "learned information: what a predictor taught on other clips says of a layer's code from all "
            "layers before it; a lower bound, below 0 where the predictor is worse than the frequencies. The entropy "
            "that it leaves (an upper bound), and the same from the frame before, are in the details",
        ),
        provenance=provenance(
            seed=seed,
            device=str(device_of(device)),
            command="codecprobe usage",
            settings={"budget": frames, "permutations": n_permutations},
            **facts_of(tokenized),
        ),
        tables=_tables(rows, arms, opened.info.layers),
        figures=_figures(opened.info.name),
    )


def _in_reading_order(rows: Sequence[Row]) -> list[Row]:
    """Put the rows of one metric together, in the order in which metrics first occur; details last."""
    place = {metric: i for i, metric in enumerate(dict.fromkeys(row["metric"] for row in rows))}
    return sorted(rows, key=lambda row: (row["detail"], place[row["metric"]], row["activity"] != "speech"))


def _tables(
    rows: Sequence[Row], arms: Mapping[str, Sequence[Counts]], layers: Sequence[str]
) -> dict[str, tuple[Row, ...]]:
    shared = [row for row in rows if row["metric"] == "shared information"]
    return {
        "efficiency": tuple(row for row in rows if row["metric"] == "efficiency"),
        "curves": tuple(row for counts in arms["speech"] for row in _curve(counts)),
        "innovation": tuple(row for row in rows if row["metric"].startswith("innovation share")),
        "shared": tuple({"first": row["first"], "second": row["second"], "value": row["value"]} for row in shared),
        "codes": tuple(
            {"layer": counts.layer, "activity": name, "code": code, "count": int(n)}
            for name, arm in arms.items()
            for counts in arm
            for code, n in enumerate(counts.total)
        ),
    }


def _curve(counts: Counts) -> list[Row]:
    """Return the share of a layer's codebook that is used, by the number of frames."""
    n, size = int(counts.total.sum()), counts.by_speaker.shape[1]
    points = np.unique(np.round(np.geomspace(1, n, CURVE_POINTS)).astype(int))
    return [
        {"layer": counts.layer, "n_frames": int(point), "codes": float(rarefied_codes(counts.total, int(point))),
         "share": float(rarefied_codes(counts.total, int(point))) / size}
        for point in points
    ]  # fmt: skip


def _figures(codec: str) -> tuple[Figure, ...]:
    return (
        Figure(
            "efficiency-by-layer", "layer_profile", "efficiency", f"How evenly each codebook is used, codec {codec}",
            "Entropy over its largest value, log2 of the codebook's size: 1 where all codes are equally frequent. "
            "Bands are 95 % intervals over speakers.",
            {"y": "value", "series": "activity", "chance": None, "p": None, "y_title": "Entropy / log2 K"},
        ),
        Figure(
            "codes-used", "lines", "curves", "Codes used by the number of frames",
            "Expected share of the codebook in as many frames of speech, drawn from those there are. A curve that "
            "still rises at its end says that more codes are in use than were seen.",
            {"x": "n_frames", "y": "share", "series": "layer", "x_title": "Frames", "y_title": "Share of the codebook",
             "zero": True, "log": True},
        ),
        Figure(
            "innovation-by-layer", "layer_profile", "innovation", "What each layer adds to what is known",
            "Share of a layer's entropy that is left, at most, when the layers before it or its own frame before are "
            "known: 1 where they tell nothing that a linear predictor finds. Bands are 95 % intervals over speakers.",
            {"y": "value", "series": "metric", "chance": None, "p": None, "y_title": "Innovation share (at most)"},
        ),
        Figure(
            "shared-information", "heatmap", "shared", "Information that two layers share",
            "Bits, a lower bound: codes merged to groups that were fitted on other speakers, then Miller-Madow.",
            {"x": "second", "y": "first", "value": "value", "value_title": "Bits", "x_title": "Later layer",
             "y_title": "Earlier layer"},
        ),
    )  # fmt: skip
