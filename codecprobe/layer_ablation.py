"""Layer ablation: decode without some layers, measure again, and say what was lost beyond a random change of that size.

Design. Items are windows of one length, one per clip. Every arm edits the decoder's input of every clip (`latent_edits`
defines the kinds), decodes it in one piece and measures it against the decode of all layers (`scorers` defines the
measures). Beside each arm stands a random control: the decoder's input moved as far, frame by frame, in a random
direction. Two levels frame the table: another speaker's clip (floor) and another clip of the same speaker (ceiling).
Effects are paired by clip; intervals resample speakers, p flips the signs of speakers, adjusted by Holm over the sets
of one kind and measure. The swap asks for more than loss: with layers of speaker B inside a clip of speaker A, who is
heard?
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from codecprobe.ablation_bench import LEVELS, Arm, Bench
from codecprobe.ablation_figures import damage_table, loss_figures, loss_tables, swap_figures
from codecprobe.ablation_rows import COLUMNS, SWAP_COLUMNS, ablation_rows, swap_rows
from codecprobe.codecs.codec import Codec
from codecprobe.codecs.registry import open_codec
from codecprobe.corpora.corpus import Clip, Corpus, Problem
from codecprobe.corpora.registry import open_corpus
from codecprobe.latent_edits import KINDS, SWAP
from codecprobe.layer_sets import LayerSet, default_sets, name_of, parse_all
from codecprobe.probe_ablation import probe_ablation
from codecprobe.representation import Windows, cut_windows
from codecprobe.scorers import MEASURES, Listener
from codecprobe.speaker import testable, why_unfit
from codecprobe.speech_models import SpeakerModel, Transcriber
from codecprobe.tokenization import describe, facts_of, tokenize
from probecore.devices import device_of
from probecore.errors import DesignError, InputError, shorten
from probecore.provenance import digest_of_record, provenance
from probecore.results import Result, Row
from probecore.splits import Folds, stratified_folds
from probecore.store import ArrayCache, cache_dir
from probecore.validation import one_of

CLIPS = 6  # of each speaker, by default
MOST_FOLDS = 5
LEVEL = 0.05
DEFAULT_KINDS = ("drop", "resample")
STOCK_CHUNK_FRAMES = 300  # the released Qwen3-TTS decode cuts here, with 25 frames of context


def ablate(
    corpus: str | Path | Corpus = "embedded",
    codec: str | Path | Codec = "embedded",
    *,
    layers: Sequence[str] = (),
    kinds: Sequence[str] = DEFAULT_KINDS,
    swap: bool = False,
    speakers: int | None = None,
    clips: int | None = None,
    window_s: float = 3.0,
    asr: str | None = None,
    speaker_model: str | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    quiet: bool = True,
) -> Result:
    """Decode a corpus without sets of layers and measure what was lost; with `swap`, exchange them between speakers.

    Parameters
    ----------
    corpus, codec : names or paths as the commands take them, or opened objects.
    layers : sets such as "0", "1-2", "0,3-7", or "each", "only", "prefixes", "all"; empty for `default_sets`.
    kinds : which edits, of "drop", "mean", "shuffle", "resample" (not used with `swap`).
    speakers, clips : how many speakers, and clips of each, to draw; None takes all speakers and up to 6 clips of each.
    window_s : seconds of each clip that are decoded; clips that are shorter are left out and named.
    asr, speaker_model : a recogniser and an x-vector model by hub name or folder; None measures no words, and takes
        MFCC statistics for the voice.
    n_bootstrap : resamples of speakers behind the intervals (the probe's, which refit, take a tenth).
    cache : folder of encodings and measurements; None takes the user's.

    Returns
    -------
    Result of kind "layer-ablation" (a row per kind, set and measure, then what the probe loses) or "layer-swap".

    Raises
    ------
    InputError : no such layer, kind, corpus or codec, or fewer than 2 speakers.
    """
    edits = tuple(one_of(kind, KINDS, "--kind") for kind in dict.fromkeys(kinds))
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, quiet=quiet)
    opened = open_codec(codec, device) if isinstance(codec, str | Path) else codec
    n_layers = opened.info.n_layers
    sets = parse_all(layers, n_layers) if layers else default_sets(n_layers)
    listener = Listener(
        opened,
        SpeakerModel(speaker_model, device) if speaker_model else None,
        Transcriber(asr, device) if asr else None,
    )
    folder = cache or cache_dir()
    drawn = draw(source, speakers, clips, window_s, seed)
    tokenized = tokenize(drawn, opened, cache=ArrayCache(folder / "codes"), quiet=quiet)
    windows, folds, design_notes = design(cut_windows(tokenized, window_s), seed)
    bench = Bench(
        windows,
        opened,
        listener,
        folds,
        seed=seed,
        cache=ArrayCache(folder / "ablations"),
        key=digest_of_record({"data": tokenized.facts["data_hash"], "codec": tokenized.facts["made_by"]}),
    )
    made = provenance(
        seed=seed,
        device=str(device_of(device)),
        command=f"codecprobe ablate{' --swap' if swap else ''}",
        settings={
            "layers": [name_of(one) for one in sets],
            "kinds": list(edits),
            "window_s": window_s,
            "bootstrap": n_bootstrap,
            "folds": folds.scheme,
            "listeners": dict(zip(("speaker", "asr"), listener.identity, strict=True)),
        },
        **facts_of(tokenized),
    )
    notes = (*describe(tokenized), *tokenized.notes, *design_notes, *_decoding_notes(windows))
    if swap:
        return _swap(bench, sets, source, opened, notes, made, n_bootstrap, seed, quiet)
    arms = [Arm(kind, one) for kind in edits for one in sets]
    measured = bench.measure([*LEVELS, *arms], quiet=quiet)
    rows = ablation_rows(bench, arms, measured, n_bootstrap=n_bootstrap, seed=seed)
    split = "item" if folds.leaky else "auto"
    probe = probe_ablation(windows, opened, split, n_bootstrap=n_bootstrap // 10, seed=seed, device=device)
    losses = loss_tables(rows)
    return Result(
        kind="layer-ablation",
        title=f"What is lost without a layer: codec {opened.info.name}, corpus {source.name}",
        rows=(*rows, *probe),
        columns=COLUMNS,
        notes=(*notes, *_lost(bench), *_power(windows, len(sets)), *_reading(rows)),
        provenance=made,
        tables={"damage": damage_table(rows), **losses, "probe": tuple(probe)},
        figures=loss_figures(tuple(losses), opened.info.name, bool(probe)),
    )


def draw(source: Corpus, speakers: int | None, clips: int | None, window_s: float, seed: int) -> Corpus:
    """Draw speakers and clips that are at least one window long; by default up to 6 clips of every speaker.

    Clips that were looked at and cannot be used are listed in `problems` with the reason.
    """
    known: dict[str, str] = {}
    refuse = partial(_refusal, window_s=window_s, known=known)
    if clips is not None:
        return source.sample(speakers, clips, seed, refuse=refuse)
    some = source.sample(speakers, None, seed)
    chosen: set[str] = set()
    for speaker in some.speakers:
        own = replace(some, clips=tuple(clip for clip in some.clips if clip.speaker == speaker))
        for n in range(min(CLIPS, len(own.clips)), 0, -1):
            try:
                chosen |= {clip.clip_id for clip in own.sample(None, n, seed, refuse=refuse).clips}
            except InputError:  # fewer than n of them can be used
                continue
            break
    kept = tuple(clip for clip in some.clips if clip.clip_id in chosen)
    refused = tuple(Problem(clip.clip_id, known[clip.clip_id]) for clip in some.clips if known.get(clip.clip_id))
    if not kept:
        first = f"; the first is {refused[0].name}: {refused[0].reason}" if refused else ""
        raise InputError(f"{source.name}: no clip can be used{first}")
    return replace(some, clips=kept, problems=(*some.problems, *refused))


def design(windows: Windows, seed: int) -> tuple[Windows, Folds, tuple[str, ...]]:
    """Return the windows that can be judged, their folds, and what a reader must know of them.

    A fold holds about one session of each speaker. Where no two speakers have two sessions, clips are left out instead:
    the classifiers then know the recordings they judge, and `Folds.leaky` says so.
    """
    try:
        kept, alone = testable(windows, "session")
    except DesignError:
        kept, _ = testable(windows, "utterance")
        speakers = [clip.speaker for clip in kept.clips]
        n_folds = max(2, min(MOST_FOLDS, *Counter(speakers).values()))
        folds = replace(stratified_folds(speakers, None, n_folds, seed=seed), leaky=True)
        note = (
            "Every speaker has one session: the classifiers have heard the recordings that they judge, so the speaker "
            "measures say 'speaker or recording'."
        )
        return kept, folds, (note,)
    own = {(clip.speaker, clip.session) for clip in kept.clips}
    n_folds = max(2, min(MOST_FOLDS, max(Counter(speaker for speaker, _ in own).values())))
    speakers, sessions = [clip.speaker for clip in kept.clips], [clip.session for clip in kept.clips]
    folds = stratified_folds(speakers, sessions, n_folds, seed=seed)
    notes = [
        f"Classifiers know neither the clip nor its session: one session of each speaker in each of {n_folds} folds."
    ]
    if alone:
        notes.append(f"{len(alone)} speakers with one session cannot be tested and were left out: {shorten(alone)}.")
    return kept, folds, tuple(notes)


def _swap(
    bench: Bench,
    sets: Sequence[LayerSet],
    source: Corpus,
    codec: Codec,
    notes: Sequence[str],
    made: dict[str, object],
    n_bootstrap: int,
    seed: int,
    quiet: bool,
) -> Result:
    everything = tuple(range(codec.info.n_layers))
    arms = [Arm(SWAP, one) for one in dict.fromkeys((*sets, everything))]
    measured = bench.measure([Arm(SWAP), *arms], quiet=quiet)
    rows = swap_rows(bench, arms, measured, n_bootstrap=n_bootstrap, seed=seed)
    without = int((bench.partner < 0).sum())
    left = (f"{without} clips have no partner of another speaker in their fold.",) if without else ()
    return Result(
        kind="layer-swap",
        title=f"Which layers carry a voice across: codec {codec.info.name}, corpus {source.name}",
        rows=tuple(rows),
        columns=SWAP_COLUMNS,
        notes=(
            *notes,
            *left,
            *_lost(bench),
            "Layers of a clip of speaker B replace those of a clip of speaker A, frame by frame. Measures are negative "
            "where A's clip is heard and positive where B's is; 'moved' is the share of the way from nothing swapped "
            "(0) to everything swapped (1). p tests whether anything moved.",
        ),
        provenance=made,
        tables={"moved": tuple(row for row in rows if row["moved"] is not None)},
        figures=swap_figures(codec.info.name),
    )


def _refusal(clip: Clip, window_s: float, known: dict[str, str]) -> str:
    """Return why a clip cannot be used, "" when it can; `known` remembers, so that a clip is read once."""
    if clip.clip_id not in known:
        known[clip.clip_id] = why_unfit(clip, window_s)
    return known[clip.clip_id]


def _decoding_notes(windows: Windows) -> tuple[str, ...]:
    info, seconds = windows.codec, windows.frames / windows.codec.frame_rate_hz
    notes = [
        f"{len(windows.clips)} windows of {windows.window_s:g} s ({windows.frames} frames), the first of each clip."
    ]
    if windows.too_short:
        notes.append(
            f"{len(windows.too_short)} clips shorter than the window were left out: "
            f"{shorten(windows.too_short, most=5)}."
        )
    if info.name == "qwen3-tts-12hz" and windows.frames > STOCK_CHUNK_FRAMES:
        notes.append(
            f"The released decode cuts {seconds:.0f} s every {STOCK_CHUNK_FRAMES} frames, with a seam; here no arm has "
            "one, so behind the first cut the unablated audio is not the released one."
        )
    return tuple(notes)


def _lost(bench: Bench) -> tuple[str, ...]:
    if not bench.not_finite:
        return ()
    return (
        f"{len(bench.not_finite)} decodes were not finite and count in no mean: {shorten(bench.not_finite, most=5)}.",
    )


def _power(windows: Windows, n_sets: int) -> tuple[str, ...]:
    """Return a note where flipping the signs of so few speakers cannot give a small p for so many sets."""
    n = len({clip.speaker for clip in windows.clips})
    smallest = 2.0 ** (1 - n)
    if smallest * n_sets <= LEVEL:
        return ()
    return (
        f"{n} speakers give no p below {smallest:.2g}, and {min(1.0, smallest * n_sets):.2g} when it is adjusted over "
        f"{n_sets} sets: name fewer --layers or take more speakers, or read the intervals.",
    )


def _reading(rows: Sequence[Row]) -> tuple[str, ...]:
    there = {row["metric"] for row in rows}
    notes = [
        "Every value is relative to the decode of all layers. 'control': the decoder's input moved as far in a random "
        "direction; 'p control' compares with it. 'another speaker', 'same speaker': other clips, decoded as they are.",
    ]
    reasons = {"phone accuracy": "the corpus knows no phones", "word error rate": "no --asr was named"}
    absent = [f"{one.name} ({reasons.get(one.name, 'no clip has it')})" for one in MEASURES if one.name not in there]
    return (*notes, f"Not measured: {', '.join(absent)}.") if absent else tuple(notes)
