"""The speaker probe: how much of who is speaking each layer carries, and what it adds to the layers before it.

Design. Items are windows of one length, one per clip. Each fold tests about one session of every speaker, none of
which the probe has heard, because a recording recognises itself: chapters of one reader are told apart as easily as
readers. The p-value exchanges whole sessions between speakers inside the folds and refits, because that is how the
label came about; permuting clips is wrong in either direction. Where every speaker has one session, voice and
recording cannot be told apart and there is no p-value.

Leaving out one session of one speaker at a time is as safe against leaks, but then every training set lacks a session
of just the speaker who is tested: a probe that knows nothing is right in 0 to 5 % of the cases instead of 1 / speakers,
and a weak effect never shows in the accuracy.

Chance is the mean accuracy over these permutations; selectivity is the accuracy above it (the control task of Hewitt
& Liang 2019 with sessions as types). Intervals resample speakers: they speak about other speakers like these.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from codecprobe import acoustics
from codecprobe.codecs.codec import Codec
from codecprobe.codecs.registry import open_codec
from codecprobe.corpora.corpus import Clip, Corpus
from codecprobe.corpora.registry import open_corpus
from codecprobe.representation import FEATURES, Windows, baselines, cut_windows, represent
from codecprobe.tokenization import TokenizedCorpus, describe, facts_of, tokenize
from probecore.activations import Activations
from probecore.devices import device_of
from probecore.errors import DesignError, InputError, shorten
from probecore.probes.layers import probe_layers
from probecore.probes.result import ProbeResult
from probecore.probes.solvers import ProbeSpec
from probecore.progress import progress
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.store import ArrayCache, cache_dir
from probecore.validation import one_of

SPLITS = ("session", "utterance")
COLUMNS = (
    "features", "layer", "accuracy", "ci_low", "ci_high", "chance", "selectivity", "p_value", "p_adjusted",
    "adds", "adds_low", "adds_high", "accuracy_utterance", "n_items", "n_sessions",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What every probe of one run shares."""

    split: str
    n_permutations: int
    n_bootstrap: int
    seed: int
    device: str


def speaker_probe(
    corpus: str | Path | Corpus = "embedded",
    codec: str | Path | Codec = "embedded",
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
    """Probe every layer of a codec for the speaker.

    Parameters
    ----------
    corpus, codec : names or paths as the commands take them, or opened objects.
    speakers, clips : how many speakers, and clips of each, to draw; None takes all.
    split : "session" leaves sessions out; "utterance" leaves clips out, so that a session stands on both sides and
        the accuracy says "speaker or session".
    window_s : seconds of each clip that are probed.
    n_permutations, n_bootstrap : re-assignments of sessions to speakers, resamples behind the intervals.
    device : where the codec and the probes run: "auto", "cpu", "cuda", "cuda:N".
    cache : folder of encodings; None takes the user's.

    Returns
    -------
    Result of kind "speaker-probe", a row per kind of features and layer (baselines last). `adds` is the accuracy of
    layers 0..k minus that of layers 0..k-1, `accuracy_utterance` the accuracy when clips instead of sessions are
    left out.

    Raises
    ------
    InputError : nothing to probe, or more asked for than there is.
    DesignError : every speaker has one session and split is "session".
    """
    settings = Settings(one_of(split, SPLITS, "--split"), n_permutations, n_bootstrap, seed, device)
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, quiet=quiet)
    opened = open_codec(codec, device) if isinstance(codec, str | Path) else codec
    store = ArrayCache((cache or cache_dir()) / "codes")
    drawn = source.sample(speakers, clips, seed, refuse=lambda clip: why_unfit(clip, window_s))
    tokenized = tokenize(drawn, opened, cache=store, quiet=quiet)
    windows, left_out = testable(cut_windows(tokenized, window_s), split)
    store = ArrayCache((cache or cache_dir()) / "acoustics")
    energy, mfcc = acoustics.of_windows(windows.clips, window_s, store, quiet=quiet)
    families = [represent(windows, opened, features) for features in FEATURES]
    families.append(baselines(windows, energy, mfcc))
    probes = [
        (str(family.info["features"]), probe_family(family, settings), utterance_accuracy(family, settings))
        for family in progress(families, "probing the speaker", quiet=quiet)
    ]
    rows = [row for features, result, leaky in probes for row in rows_of(features, result, leaky)]
    return Result(
        kind="speaker-probe",
        title=f"Speaker by layer: codec {opened.info.name}, corpus {source.name}",
        rows=tuple(rows),
        columns=COLUMNS if split == "session" else tuple(c for c in COLUMNS if c != "accuracy_utterance"),
        notes=(*notes_of(tokenized, windows, left_out, split), *design_notes(probes[0][1])),
        provenance=provenance(
            seed=seed,
            device=str(device_of(device)),
            command="codecprobe speaker-probe",
            settings={"split": split, "window_s": window_s, "permutations": n_permutations, "bootstrap": n_bootstrap},
            **facts_of(tokenized),
        ),
        tables={"profile": _profile(rows), "cumulative": _of(rows, "cumulative"), "confusion": _confusion(probes)},
        figures=_figures(opened.info.name, split),
    )


def testable(windows: Windows, split: str) -> tuple[Windows, tuple[str, ...]]:
    """Leave out speakers with one session, which no session split can test; return the rest and their names.

    Raises `DesignError` when fewer than two speakers have two sessions.
    """
    sessions: dict[str, set[str]] = {}
    for clip in windows.clips:
        sessions.setdefault(clip.speaker, set()).add(clip.session)
    if len(sessions) < 2:
        raise InputError(f"a speaker probe needs at least 2 speakers; got {len(sessions)}: add speakers")
    alone = tuple(sorted(speaker for speaker, own in sessions.items() if len(own) < 2))
    if split == "utterance" or not alone:
        return windows, ()
    if len(sessions) - len(alone) < 2:
        raise DesignError(
            f"speaker and session cannot be told apart: {len(alone)} of {len(sessions)} speakers have one session, so "
            "no session can be left out and p is refused; record 2 or more sessions of each, or take "
            "--split utterance for the accuracy of 'speaker or session', without a p"
        )
    kept = [i for i, clip in enumerate(windows.clips) if clip.speaker not in alone]
    rest = replace(
        windows,
        clips=tuple(windows.clips[i] for i in kept),
        codes=tuple(windows.codes[i] for i in kept),
        durations_s=tuple(windows.durations_s[i] for i in kept),
    )
    return rest, alone


def probe_family(family: Activations, settings: Settings) -> ProbeResult:
    """Probe all layers of one kind of features for the speaker, with the design of the module docstring."""
    return probe_layers(
        family,
        "speaker",
        clusters=family.label("speaker").values,
        probe=_probe_for(family),
        folds="auto" if settings.split == "session" else "item",
        n_permutations=settings.n_permutations,
        n_bootstrap=settings.n_bootstrap,
        seed=settings.seed,
        device=settings.device,
    )


def utterance_accuracy(family: Activations, settings: Settings) -> dict[str, float]:
    """Return each layer's accuracy when clips instead of sessions are left out: what a leaky split would claim."""
    leaky = probe_layers(
        family, "speaker", probe=_probe_for(family), folds="item", n_permutations=0, n_bootstrap=0,
        seed=settings.seed, device=settings.device,
    )  # fmt: skip
    return {str(row["layer"]): row["accuracy"] for row in leaky.rows}


def rows_of(features: str, result: ProbeResult, leaky: dict[str, float]) -> list[Row]:
    """Return the rows of one kind of features; cumulative rows say what the last layer adds."""
    rows = []
    for i, row in enumerate(result.rows):
        own = {"features": features, **row, "n_sessions": row["n_groups"]}
        own["accuracy_utterance"] = leaky[str(row["layer"])]
        if features == "cumulative" and i > 0:
            step = result.compare(str(row["layer"]), str(result.rows[i - 1]["layer"]))
            own |= {"adds": step["difference"], "adds_low": step["ci_low"], "adds_high": step["ci_high"]}
        rows.append(own)
    return rows


def notes_of(tokenized: TokenizedCorpus, windows: Windows, left_out: Sequence[str], split: str) -> tuple[str, ...]:
    """Return what a reader of the table must know about data and design."""
    counts = Counter(
        len({c.session for c in windows.clips if c.speaker == s}) for s in {c.speaker for c in windows.clips}
    )
    sessions = ", ".join(f"{n} with {k} session{'s' * (k > 1)}" for k, n in sorted(counts.items()))
    notes = [
        *describe(tokenized),
        *tokenized.notes,
        f"{len(windows.clips)} windows of {windows.window_s:g} s ({windows.frames} frames), the first of each clip; "
        f"speakers: {sessions}.",
    ]
    if windows.too_short:
        notes.append(
            f"{len(windows.too_short)} clips shorter than the window were left out: "
            f"{shorten(windows.too_short, most=5)}."
        )
    if left_out:
        notes.append(
            f"{len(left_out)} speakers with one session cannot be tested and were left out: {shorten(left_out)}."
        )
    if split == "utterance":
        notes.append(
            "Utterance split: clips of one session stand on both sides, so these accuracies say 'speaker or session', "
            "not speaker."
        )
    else:
        notes.append(
            "Each fold tests sessions that the probe has not heard. 'utterance split' is the accuracy when clips "
            "instead of sessions are left out: what it has above the accuracy comes from having heard the same "
            "recordings (and somewhat more of them), not from the voice."
        )
    return tuple(notes)


def why_unfit(clip: Clip, window_s: float) -> str:
    """Return why a clip cannot be probed (unreadable, shorter than the window); empty when it can."""
    try:
        audio = clip.read()
    except (InputError, OSError) as error:
        return str(error)
    duration_s = len(audio.samples) / audio.sample_rate_hz
    return f"{duration_s:.2f} s are shorter than the window of {window_s:g} s" if duration_s < window_s else ""


def _probe_for(family: Activations) -> ProbeSpec:
    """Scale features inside the folds, except where they have a common scale already (histograms, z-scores)."""
    own_scale = family.info["features"] in ("histogram", "cumulative")
    return ProbeSpec("ridge", standardize="none" if own_scale else "fold")


def design_notes(result: ProbeResult) -> tuple[str, ...]:
    """Return what p stands on: how many re-assignments of sessions, or the reason why there is none."""
    reasons = {str(row["p_note"]) for row in result.rows if row["p_value"] is None and row.get("p_note")}
    if reasons:
        return tuple(f"No p-value: {reason}." for reason in sorted(reasons))
    first = result.rows[0]
    return (
        f"p: {first['n_permutations']} re-assignments of sessions to speakers, smallest possible p "
        f"{first['smallest_p']:.2g}; adjusted over the layers of one kind of features (max-T).",
    )


def _of(rows: Sequence[Row], features: str) -> tuple[Row, ...]:
    return tuple(row for row in rows if row["features"] == features)


def _profile(rows: Sequence[Row]) -> tuple[Row, ...]:
    levels = [{**row, "layer": None, "features": row["layer"]} for row in _of(rows, "baseline")]
    return (*_of(rows, "embedding"), *_of(rows, "histogram"), *levels)


def _confusion(probes: Sequence[tuple[str, ProbeResult, Any]]) -> tuple[Row, ...]:
    result = next(result for features, result, _ in probes if features == "cumulative")
    names = [str(name) for name in result.design.names]
    counts = np.asarray(result.confusion(str(result.rows[-1]["layer"])), dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return tuple(
        {"speaker": names[i], "predicted": names[j], "share": shares[i, j]}
        for i in range(len(names))
        for j in range(len(names))
    )


def _figures(codec: str, split: str) -> tuple[Figure, ...]:
    unit = "sessions not heard in training" if split == "session" else "clips; sessions stand on both sides"
    return (
        Figure(
            "speaker-by-layer", "layer_profile", "profile", f"Speaker by layer, codec {codec}",
            f"Cross-validated accuracy on {unit}, with 95 % intervals; dashed: mean over permutations (chance). "
            "Dotted: baselines that need no codec.",
            {"series": "features", "y_title": "Speaker accuracy"},
        ),
        Figure(
            "speaker-by-layers-so-far", "layer_profile", "cumulative", "All layers up to this one",
            "The embeddings of layers 0 to k side by side: where the line rises, a layer adds to the ones before.",
            {"y_title": "Speaker accuracy", "x_title": "Layers"},
        ),
        Figure(
            "confusion", "heatmap", "confusion", "Who is taken for whom, all layers together",
            "Share of the windows of each speaker (row) that were attributed to each speaker (column), out of fold.",
            {"x": "predicted", "y": "speaker", "value": "share"},
        ),
    )  # fmt: skip
