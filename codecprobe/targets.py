"""What else each layer carries: sex, session, text, phones, pitch, level, and any label column of a corpus.

Labels of clips are probed on windows, as the speaker is (`clip_labels` says what carries a label and what is left out);
phones (`content`), pitch and level (`prosody`) frame by frame. One table for all: target, features, layer, metric,
value, interval, chance, p. The unit of inference is the speaker, the session or the clip, never the frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codecprobe import acoustics
from codecprobe.clip_labels import ClipLabel, clip_label
from codecprobe.codecs.codec import Codec
from codecprobe.codecs.registry import open_codec
from codecprobe.content import read_phones
from codecprobe.corpora.corpus import Corpus
from codecprobe.corpora.registry import open_corpus
from codecprobe.prosody import TARGETS, read_prosody
from codecprobe.representation import Windows, baselines, cut_windows, represent
from codecprobe.speaker import why_unfit
from codecprobe.tokenization import TokenizedCorpus, describe, facts_of, tokenize
from probecore.activations import Activations, Label
from probecore.devices import device_of
from probecore.errors import shorten
from probecore.probes.layers import probe_layers
from probecore.probes.solvers import ProbeSpec
from probecore.progress import progress
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.store import ArrayCache, cache_dir
from probecore.validation import at_least

COLUMNS = (
    "target", "features", "layer", "metric", "value", "ci_low", "ci_high", "chance", "p_value", "p_adjusted",
    "n_items", "n_groups", "n_frames",
)  # fmt: skip
FEWEST_SHIFTS = 19


@dataclass(frozen=True)
class _Reading:
    rows: list[Row]
    notes: tuple[str, ...]
    tables: dict[str, tuple[Row, ...]]


def probe_target(
    target: str,
    corpus: str | Path | Corpus = "embedded",
    codec: str | Path | Codec = "embedded",
    *,
    speakers: int | None = None,
    clips: int | None = None,
    window_s: float = 3.0,
    lag: int | None = None,
    n_permutations: int = 199,
    n_bootstrap: int = 200,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    quiet: bool = True,
) -> Result:
    """Probe every layer of a codec for one target.

    Parameters
    ----------
    target : "sex", "session", "text", "phone", "f0", "f0-normalised", "energy", "energy-normalised", or a label column.
    corpus, codec, speakers, clips, device, cache : as `speaker_probe` takes them.
    window_s : seconds of each clip that are probed for a label of clips; frames of whole clips are for the others.
    lag : for phones, frames by which codes come later than sound; None chooses it on development clips.
    n_permutations : exchanges of labels (of whole curves for pitch and level), circular shifts of phones inside clips.
    n_bootstrap : resamples behind the intervals of clip labels; frames have a jackknife over speakers.

    Returns
    -------
    Result of kind "probe", a row per kind of features, metric and layer.

    Raises
    ------
    InputError : no such target, or a corpus that does not know it. DesignError : a label these data cannot test.
    """
    at_least(n_permutations, FEWEST_SHIFTS, "--permutations")
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, quiet=quiet)
    opened = open_codec(codec, device) if isinstance(codec, str | Path) else codec
    root = cache or cache_dir()
    by_frame = target == "phone" or target in TARGETS
    refuse = (lambda clip: "") if by_frame else (lambda clip: why_unfit(clip, window_s))
    drawn = source.sample(speakers, clips, seed, refuse=refuse)
    if not by_frame and drawn.clips:
        clip_label(target, drawn.clips)  # refuse what cannot be before anything is encoded
    tokenized = tokenize(drawn, opened, cache=ArrayCache(root / "codes"), quiet=quiet)
    if target == "phone":
        phones = read_phones(tokenized, opened, lag=lag, n_shifts=n_permutations, seed=seed, device=device, quiet=quiet)
        reading = _Reading(phones.rows, tuple(phones.notes), {"lag": tuple(phones.lags)} if phones.lags else {})
    elif target in TARGETS:
        store = ArrayCache(root / "prosody")
        found = read_prosody(
            tokenized, opened, target, store, n_orders=n_permutations, seed=seed, device=device, quiet=quiet
        )
        reading = _Reading(found.rows, tuple(found.notes), {})
    else:
        store = ArrayCache(root / "acoustics")
        reading = _read_label(
            target, tokenized, opened, window_s, store, n_permutations, n_bootstrap, seed, device, quiet
        )
    return Result(
        kind="probe",
        title=f"{target} by layer: codec {opened.info.name}, corpus {source.name}",
        rows=tuple(reading.rows),
        columns=COLUMNS if by_frame else tuple(name for name in COLUMNS if name != "n_frames"),
        notes=(*describe(tokenized), *tokenized.notes, *reading.notes),
        provenance=provenance(
            seed=seed,
            device=str(device_of(device)),
            command=f"codecprobe probe --target {target}",
            settings={
                "target": target, "window_s": window_s, "lag": lag, "permutations": n_permutations,
                "bootstrap": n_bootstrap,
            },
            **facts_of(tokenized),
        ),
        tables={**reading.tables, **_pictured(reading.rows)},
        figures=_figures(target, opened.info.name, reading),
    )  # fmt: skip


def _read_label(
    target: str, tokenized: TokenizedCorpus, codec: Codec, window_s: float, store: ArrayCache, n_permutations: int,
    n_bootstrap: int, seed: int, device: str, quiet: bool,
) -> _Reading:  # fmt: skip
    windows = cut_windows(tokenized, window_s)
    label = clip_label(target, windows.clips)
    windows = _take(windows, label.kept)
    energy, mfcc = acoustics.of_windows(windows.clips, window_s, store, quiet=quiet)
    families = [represent(windows, codec, features) for features in ("embedding", "histogram")]
    families.append(baselines(windows, energy, mfcc))
    rows: list[Row] = []
    for family in progress(families, f"probing {target}", quiet=quiet):
        rows += _probe_family(target, family, label, windows, n_permutations, n_bootstrap, seed, device)
    notes = [
        *label.notes,
        f"{len(windows.clips)} windows of {window_s:g} s ({windows.frames} frames), the first of each clip; "
        f"ridge, {rows[0]['folds']}; intervals over speakers",
    ]
    if windows.too_short:
        notes.append(
            f"{len(windows.too_short)} clips shorter than the window were left out: "
            f"{shorten(windows.too_short, most=5)}"
        )
    first = rows[0]
    if first["p_value"] is not None:
        notes.append(
            f"p: {first['n_permutations']} exchanges of labels, smallest possible p {first['smallest_p']:.2g}; "
            "adjusted over the layers of one kind of features (max-T)"
        )
    return _Reading(rows, tuple(notes), {})


def _probe_family(
    target: str, family: Activations, label: ClipLabel, windows: Windows, n_permutations: int, n_bootstrap: int,
    seed: int, device: str,
) -> list[Row]:  # fmt: skip
    features = str(family.info["features"])
    result = probe_layers(
        family,
        Label(label.values, label.units, label.blocks, "real" if label.real else "class"),
        groups=label.groups,
        clusters=[clip.speaker for clip in windows.clips],
        probe=ProbeSpec("ridge", standardize="none" if features == "histogram" else "fold"),
        folds=label.folds,
        n_permutations=n_permutations,
        n_bootstrap=n_bootstrap,
        seed=seed,
        device=device,
    )
    frames = len(windows.clips) * windows.frames
    return [
        {
            "target": target, "features": features, "layer": row["layer"],
            "metric": "R2" if label.real else "accuracy", "value": row[result.score],
            **{name: value for name, value in row.items() if name not in ("layer", result.score)},
            "n_frames": frames,
        }
        for row in result.rows
    ]  # fmt: skip


def _take(windows: Windows, kept: Sequence[int]) -> Windows:
    return replace(
        windows,
        clips=tuple(windows.clips[i] for i in kept),
        codes=tuple(windows.codes[i] for i in kept),
        durations_s=tuple(windows.durations_s[i] for i in kept),
    )


def _pictured(rows: Sequence[Row]) -> dict[str, tuple[Row, ...]]:
    """Return what each figure is drawn from; a baseline is a level without a layer."""
    shown = [{**row, "layer": None, "features": row["layer"]} if row["features"] == "baseline" else row for row in rows]
    abx = [
        {**row, "features": f"{row['features']}, {row['metric'].removeprefix('ABX error ')}"}
        for row in shown
        if row["metric"].startswith("ABX")
    ]
    tables = {
        "profile": tuple(row for row in shown if row["metric"] in ("accuracy", "R2")),
        "information": tuple(row for row in shown if row["metric"] == "adjusted PNMI"),
        "abx": tuple(abx),
    }
    return {name: table for name, table in tables.items() if table}


def _figures(target: str, codec: str, reading: _Reading) -> tuple[Figure, ...]:
    metric = next(row["metric"] for row in reading.rows if row["metric"] in ("accuracy", "R2"))
    y_title = "R²" if metric == "R2" else "Accuracy"
    by_frame = target == "phone" or target in TARGETS
    held_out = "speakers the probe has not heard" if by_frame else "what the notes name as left out"
    figures = [
        Figure(
            f"{target}-by-layer", "layer_profile", "profile", f"{target} by layer, codec {codec}",
            f"Cross-validated {y_title} on {held_out}, with 95 % intervals over speakers; dashed: chance, mean over "
            f"{'phones turned inside clips' if target == 'phone' else 'exchanges of labels'}.",
            {"y": "value", "series": "features", "y_title": f"{target}: {y_title}"},
        )
    ]  # fmt: skip
    if target == "phone":
        figures += [
            Figure(
                "phone-information", "layer_profile", "information", "How much of the phone a code tells",
                "Adjusted PNMI: information that code and phone share, less that of shifted phones, over the entropy "
                "of phones less the same. 0: nothing beyond chance; 1: the code names the phone.",
                {"y": "value", "y_title": "Adjusted PNMI"},
            ),
            Figure(
                "phone-abx", "layer_profile", "abx", "ABX error of phones in one context",
                "How often a token of another phone is nearer than one of the same phone; dashed: on codes turned "
                "inside their clips. within: one speaker, across: the token compared is another speaker's.",
                {"y": "value", "series": "features", "y_title": "ABX error"},
            ),
        ]  # fmt: skip
    if "lag" in reading.tables:
        figures.append(
            Figure(
                "phone-lag", "lines", "lag", "The encoder's delay",
                "Information that codes and phones share, mean over layers, when codes are read some frames later; on "
                "development clips only.",
                {
                    "x": "lag", "y": "value", "x_title": "Lag in frames", "y_title": "Bits, mean over layers",
                    "zero": True,
                },
            )
        )  # fmt: skip
    return tuple(figures)
