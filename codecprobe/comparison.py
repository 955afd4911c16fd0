"""Codecs side by side: the speaker probe of each on the same windows of the same clips, with the facts of each codec.

Conventions. Every codec hears the same clips, and a window is the same stretch of time up to one frame of the codec
(the frames that fit into `window_s`). Only clips that every codec could encode are used. A layer's group is the
residual chain it belongs to; layers of different groups quantise the same latent side by side. The bit rate is nominal,
frame rate x log2(entries), in bit/s.

The row "all layers" of a codec takes the embeddings of all its layers; its `difference` to the first codec comes from
the same folds and the same resamples of speakers for both. Single layers of two codecs are not ranked against each
other: layer 3 of 8 and layer 3 of 32 are different things.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from codecprobe import acoustics
from codecprobe.codecs.codec import Codec, CodecInfo
from codecprobe.codecs.registry import open_codec
from codecprobe.corpora.corpus import Corpus
from codecprobe.corpora.registry import open_corpus
from codecprobe.representation import Windows, baselines, cut_windows, represent
from codecprobe.speaker import SPLITS, Settings, design_notes, probe_family, testable, why_unfit
from codecprobe.tokenization import TokenizedCorpus, describe, facts_of, tokenize
from probecore.activations import Activations
from probecore.devices import device_of
from probecore.errors import InputError, shorten
from probecore.probes.result import ProbeResult
from probecore.progress import progress
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.store import ArrayCache, cache_dir
from probecore.validation import one_of

ALL = "all layers"
COLUMNS = (
    "codec", "layer", "group", "entries", "bit_rate", "accuracy", "ci_low", "ci_high", "chance", "p_adjusted",
    "adds", "adds_low", "adds_high", "difference", "difference_low", "difference_high", "n_items", "n_sessions",
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One codec of a comparison: its name in the tables, and the clips and windows as it encodes them."""

    label: str
    codec: Codec
    tokenized: TokenizedCorpus
    windows: Windows


def compare_codecs(
    codecs: Sequence[str | Path | Codec] = ("embedded", "embedded-flat"),
    corpus: str | Path | Corpus = "embedded",
    *,
    speakers: int | None = None,
    clips: int | None = None,
    split: str = "session",
    window_s: float = 3.0,
    n_permutations: int = 999,
    n_bootstrap: int = 200,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    quiet: bool = True,
) -> Result:
    """Probe every layer of two or more codecs for the speaker, on equal clips and windows.

    Parameters
    ----------
    codecs, corpus : names or paths as the commands take them, or opened objects.
    speakers, clips : how many speakers, and clips of each, to draw; None takes all.
    split : "session" leaves sessions out, "utterance" clips (see `speaker_probe`).
    window_s : seconds of each clip that are probed.
    n_permutations, n_bootstrap : re-assignments of sessions to speakers, resamples behind the intervals.
    device : where codecs and probes run.
    cache : folder of encodings; None takes the user's.

    Returns
    -------
    Result of kind "compare", a row per codec and layer, one per codec for all its layers, and the baselines. `adds` is
    the accuracy of layers 0..k minus that of layers 0..k-1; `difference` that of all layers minus the first codec's.
    The table "codecs" holds a row of facts per codec.

    Raises
    ------
    InputError : fewer than two codecs, one codec twice, or no clip that all of them can encode.
    DesignError : every speaker has one session and split is "session".
    """
    settings = Settings(one_of(split, SPLITS, "--split"), n_permutations, n_bootstrap, seed, device)
    if len(codecs) < 2:
        raise InputError(f"a comparison needs at least 2 codecs; got {len(codecs)}: give --codec again")
    opened = [open_codec(codec, device) if isinstance(codec, str | Path) else codec for codec in codecs]
    labels = labels_of(opened)
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, quiet=quiet)
    drawn = source.sample(speakers, clips, seed, refuse=lambda clip: why_unfit(clip, window_s))
    store = ArrayCache((cache or cache_dir()) / "codes")
    tokenized = in_common([tokenize(drawn, codec, cache=store, quiet=quiet) for codec in opened])
    cut = [testable(cut_windows(one, window_s), split) for one in tokenized]
    sides = [Side(*parts) for parts in zip(labels, opened, tokenized, [windows for windows, _ in cut], strict=True)]
    single, so_far = [], []
    for side in progress(sides, "probing the codecs", quiet=quiet):
        single.append(probe_family(represent(side.windows, side.codec, "embedding"), settings))
        so_far.append(probe_family(represent(side.windows, side.codec, "cumulative"), settings))
    whole = probe_family(all_layers(sides), settings)
    store = ArrayCache((cache or cache_dir()) / "acoustics")
    energy, mfcc = acoustics.of_windows(sides[0].windows.clips, window_s, store, quiet=quiet)
    levels = probe_family(baselines(sides[0].windows, energy, mfcc), settings)
    layered = [_layers(*parts) for parts in zip(sides, single, so_far, strict=True)]
    totals = [_total(side, whole, labels[0]) for side in sides]
    floor = [_numbers("no codec", row) for row in levels.rows]
    steps = [_numbers(label, row) for label, result in zip(labels, so_far, strict=True) for row in result.rows]
    return Result(
        kind="compare",
        title=f"Speaker by layer: {', '.join(labels)}, corpus {source.name}",
        rows=(*(row for rows, total in zip(layered, totals, strict=True) for row in (*rows, total)), *floor),
        columns=COLUMNS,
        notes=(*_notes(sides, cut[0][1], split), *design_notes(single[0])),
        provenance=provenance(
            seed=seed,
            device=str(device_of(device)),
            command="codecprobe compare",
            settings={"split": split, "window_s": window_s, "permutations": n_permutations, "bootstrap": n_bootstrap},
            codecs={side.label: facts_of(side.tokenized) for side in sides},
        ),
        tables={
            "codecs": tuple({**total, **facts(side)} for side, total in zip(sides, totals, strict=True)),
            "profile": (
                *(row for rows in layered for row in rows),
                *({**row, "layer": None, "codec": row["layer"]} for row in floor),
            ),
            "so_far": tuple(steps),
        },
        figures=_figures(split),
    )


def labels_of(codecs: Sequence[Codec]) -> list[str]:
    """Return a name for each codec, no two alike: its own, with what tells it from others of that name.

    Raises `InputError` when one codec is given twice.
    """
    infos = [codec.info for codec in codecs]
    known = [(info.name, info.weights_hash, info.codebook_sizes) for info in infos]
    for i, one in enumerate(known):
        if one in known[:i]:
            raise InputError(f"codecs must differ; got {infos[i].source or one[0]} twice: give two codecs")
    return [_label(info, [other for other in infos if other.name == info.name]) for info in infos]


def _label(info: CodecInfo, namesakes: Sequence[CodecInfo]) -> str:
    for tell in (
        lambda one: "",
        lambda one: f" ({one.n_layers} layers)",
        lambda one: f" ({one.source})",
        lambda one: f" ({one.source}, {one.n_layers} layers)",
    ):
        if len({tell(one) for one in namesakes}) == len(namesakes):
            return info.name + tell(info)
    return f"{info.name} ({info.source}, {info.n_layers} layers, weights {info.weights_hash[:8]})"


def in_common(tokenized: Sequence[TokenizedCorpus]) -> list[TokenizedCorpus]:
    """Keep the clips that every codec could encode, in the corpus's order.

    Raises `InputError` when there is none.
    """
    shared = set.intersection(*({clip.clip_id for clip in one.clips} for one in tokenized))
    if not shared:
        raise InputError("no clip could be encoded by all codecs: look at the problems of `codecprobe tokenize`")
    return [_only(one, shared) for one in tokenized]


def all_layers(sides: Sequence[Side]) -> Activations:
    """Return one activations whose layers are the codecs, each with the embeddings of all its layers side by side."""
    families = [represent(side.windows, side.codec, "cumulative") for side in sides]
    last = {side.label: family for side, family in zip(sides, families, strict=True)}
    return replace(
        families[0],
        layers=tuple(last),
        read=lambda label: last[label].values(last[label].layers[-1]),
        rate_hz=None,
        info={**families[0].info, "codec": ", ".join(last), "weights_hash": None, "frames": None},
    )


def facts(side: Side) -> Row:
    """Return a codec's facts: rates, layers, groups, entries, nominal bit rate, and how long a window really is."""
    info, frames = side.codec.info, side.windows.frames
    bits = np.log2(np.asarray(info.codebook_sizes, dtype=np.float64))
    return {
        "codec": side.label,
        "source": info.source,
        "sample_rate_hz": info.sample_rate_hz,
        "frame_rate_hz": info.frame_rate_hz,
        "n_layers": info.n_layers,
        "groups": " | ".join(_range(group) for group in info.parallel_groups),
        "entries": ", ".join(map(str, sorted(set(info.codebook_sizes)))),
        "bit_rate": float(info.frame_rate_hz * bits.sum()),
        "causal": info.causal,
        "synthetic": info.synthetic,
        "window_frames": frames,
        "window_s": frames / info.frame_rate_hz,
    }


def _only(one: TokenizedCorpus, shared: set[str]) -> TokenizedCorpus:
    kept = [i for i, clip in enumerate(one.clips) if clip.clip_id in shared]
    return replace(
        one,
        clips=tuple(one.clips[i] for i in kept),
        codes=tuple(one.codes[i] for i in kept),
        n_samples=tuple(one.n_samples[i] for i in kept),
        durations_s=tuple(one.durations_s[i] for i in kept),
    )


def _layers(side: Side, single: ProbeResult, so_far: ProbeResult) -> list[Row]:
    """Return the rows of one codec's layers."""
    info, rows = side.codec.info, []
    group_of = {layer: i for i, group in enumerate(info.parallel_groups) for layer in group}
    for k, (row, total) in enumerate(zip(single.rows, so_far.rows, strict=True)):
        size = info.codebook_sizes[k]
        own = {**_numbers(side.label, row), "group": str(group_of[k]), "entries": str(size)}
        own |= {"bit_rate": info.frame_rate_hz * float(np.log2(size)), "frame_rate_hz": info.frame_rate_hz}
        own |= {"accuracy_so_far": total["accuracy"]}
        if k > 0:
            step = so_far.compare(str(total["layer"]), str(so_far.rows[k - 1]["layer"]))
            own |= {"adds": step["difference"], "adds_low": step["ci_low"], "adds_high": step["ci_high"]}
        rows.append(own)
    return rows


def _total(side: Side, whole: ProbeResult, first: str) -> Row:
    """Return the row of all layers of one codec, with its paired difference to the first codec."""
    known = facts(side)
    row = {**_numbers(side.label, whole.row(side.label)), "layer": ALL, "group": known["groups"]}
    row |= {"entries": known["entries"], "bit_rate": known["bit_rate"], "frame_rate_hz": known["frame_rate_hz"]}
    if side.label != first:
        against = whole.compare(side.label, first)
        row |= {"difference": against["difference"], "difference_p_value": against["p_value"], "against": first}
        row |= {"difference_low": against["ci_low"], "difference_high": against["ci_high"]}
    return row


def _numbers(codec: str, row: Row) -> Row:
    return {"codec": codec, **row, "n_sessions": row["n_groups"]}


def _notes(sides: Sequence[Side], left_out: Sequence[str], split: str) -> tuple[str, ...]:
    notes = []
    for side in sides:
        known = facts(side)
        notes.append(
            f"{side.label}: {known['sample_rate_hz']} Hz, {known['frame_rate_hz']:g} frames a second, "
            f"{known['n_layers']} layers of {known['entries']} entries in groups {known['groups']}, nominal "
            f"{known['bit_rate']:.0f} bit/s, {'causal' if known['causal'] else 'not causal'}; a window has "
            f"{known['window_frames']} frames, {known['window_s']:.2f} s."
        )
    seen: list[str] = []
    for side in sides:
        for note in (*describe(side.tokenized)[1:], *side.tokenized.notes):
            if note not in seen:
                seen.append(note)
    windows = sides[0].windows
    speakers = len({clip.speaker for clip in windows.clips})
    notes += [*seen, f"{len(windows.clips)} clips of {speakers} speakers, the same for every codec."]
    if windows.too_short:
        named = shorten(windows.too_short, most=5)
        notes.append(f"{len(windows.too_short)} clips shorter than the window were left out: {named}.")
    if left_out:
        notes.append(
            f"{len(left_out)} speakers with one session cannot be tested and were left out: {shorten(left_out)}."
        )
    if split == "utterance":
        notes.append(
            "Utterance split: clips of one session stand on both sides, so these accuracies say 'speaker or session', "
            "not speaker."
        )
    notes.append(
        f"'difference': {ALL} of a codec minus {ALL} of {sides[0].label}, from the same folds and resampled speakers. "
        "It speaks of this probe: where data are few, more layers and wider tables cost accuracy too. Single layers of "
        "different codecs are not ranked: they carry different shares of their codec's bits."
    )
    return tuple(notes)


def _range(group: Sequence[int]) -> str:
    return str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"


def _figures(split: str) -> tuple[Figure, ...]:
    unit = "sessions not heard in training" if split == "session" else "clips; sessions stand on both sides"
    return (
        Figure(
            "speaker-by-layer", "layer_profile", "profile", "Speaker by layer of each codec",
            f"Cross-validated accuracy of each layer alone on {unit}, with 95 % intervals; dashed: chance. Dotted: "
            "baselines that need no codec.",
            {"series": "codec", "y_title": "Speaker accuracy"},
        ),
        Figure(
            "speaker-by-layers-so-far", "layer_profile", "so_far", "All layers up to this one",
            "The embeddings of layers 0 to k side by side.",
            {"series": "codec", "y_title": "Speaker accuracy", "x_title": "Layers"},
        ),
        Figure(
            "speaker-by-codec", "bars_with_intervals", "codecs", "All layers of each codec",
            "Cross-validated accuracy from the embeddings of all layers, with 95 % intervals. Whether two codecs "
            "differ is said by the difference in the table, not by overlapping intervals.",
            {"label": "codec", "value": "accuracy", "value_title": "Speaker accuracy"},
        ),
    )  # fmt: skip
