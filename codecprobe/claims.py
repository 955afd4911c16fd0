"""`codecprobe reproduce qwen3-tts-notes`: every claim of the notes as a row with estimate, interval and verdict.

Conventions. `notes_claims` lists the claims and their rules, `claim_parts` runs the analyses, the core judges. All
parts hear the same clips. A part whose design is refused, or whose input was not given, leaves its claims undecided
with that reason; no claim is ever dropped.
"""

from pathlib import Path

from codecprobe.claim_parts import (
    EDIT,
    Run,
    ablation_part,
    lens_part,
    speaker_part,
    swap_part,
    timescales_part,
    usage_part,
)
from codecprobe.codecs.codec import Codec
from codecprobe.codecs.registry import open_codec
from codecprobe.corpora.corpus import Corpus
from codecprobe.corpora.registry import open_corpus
from codecprobe.notes_claims import (
    ABLATION,
    CLAIMS,
    CODES,
    LENS,
    NOTES_CLIPS,
    NOTES_SPEAKERS,
    SPEAKER,
    STYLE,
    SWAP,
    USAGE,
)
from codecprobe.power import ACCURACIES, Power, design_power
from codecprobe.representation import cut_windows
from codecprobe.speaker import testable, why_unfit
from codecprobe.tokenization import describe, facts_of, tokenize
from probecore.claims import COLUMNS, claim_figures, claim_rows, claim_tables, part_of, refusals, rules_note
from probecore.devices import device_of
from probecore.errors import DesignError, InputError
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.store import ArrayCache, cache_dir


def reproduce_notes(
    corpus: str | Path | Corpus = "embedded",
    codec: str | Path | Codec = "embedded",
    *,
    speakers: int | None = NOTES_SPEAKERS,
    clips: int | None = NOTES_CLIPS,
    window_s: float = 3.0,
    asr: str | None = None,
    speaker_model: str | None = None,
    model: str | Path | None = None,
    style: str = STYLE,
    n_permutations: int = 999,
    n_bootstrap: int = 200,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    quiet: bool = True,
) -> Result:
    """Test every claim of the Qwen3-TTS notes on a codec and a corpus.

    Parameters
    ----------
    corpus, codec : names or paths as the commands take them, or opened objects.
    speakers, clips : how many speakers, and clips of each, to draw (the notes' 10 and 5); None takes all.
    window_s : seconds of each clip that are probed and decoded.
    asr, speaker_model : as `ablate` takes them.
    model, style : talker and instruction as `style_lens` takes them; without a model the lens claims stay undecided.
    n_permutations, n_bootstrap : of the speaker probe; the other parts take what their own commands take.
    cache : folder of encodings and measurements; None takes the user's.

    Returns
    -------
    Result of kind "claims", a row per claim: `says` (the notes), `estimand`, value with interval, p, `verdict`, `why`,
    and `rule`. The tables and figures of all parts come with it, and the table "power".

    Raises
    ------
    InputError : no such corpus or codec, fewer clips than asked for, fewer than 2 layers, or no usable clip.
    """
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, quiet=quiet)
    opened = open_codec(codec, device) if isinstance(codec, str | Path) else codec
    if opened.info.n_layers < 2:
        raise InputError(f"the claims compare layers, so a codec needs 2 or more; {opened.info.name} has 1")
    root = cache or cache_dir()
    drawn = source.sample(speakers, clips, seed, refuse=lambda clip: why_unfit(clip, window_s))
    tokenized = tokenize(drawn, opened, cache=ArrayCache(root / "codes"), quiet=quiet)
    run = Run(drawn, opened, tokenized, window_s, n_permutations, n_bootstrap, seed, device, root, quiet)
    parts = {
        SPEAKER: part_of(speaker_part, run),
        CODES: part_of(timescales_part, run),
        USAGE: part_of(usage_part, run),
        ABLATION: part_of(lambda one: ablation_part(one, asr, speaker_model), run),
        SWAP: part_of(lambda one: swap_part(one, speaker_model), run),
        LENS: part_of(lambda one: lens_part(one, model, style), run),
    }
    power, power_note = power_of(run)
    return Result(
        kind="claims",
        title=f"Claims of the Qwen3-TTS notes: codec {opened.info.name}, corpus {source.name}",
        rows=claim_rows(CLAIMS, parts, f"the codec has {opened.info.n_layers} layers"),
        columns=COLUMNS,
        notes=(
            *describe(tokenized),
            *tokenized.notes,
            *refusals(parts),
            rules_note(len(CLAIMS)),
            power_note,
        ),
        provenance=provenance(
            seed=seed,
            device=str(device_of(device)),
            command="codecprobe reproduce qwen3-tts-notes",
            settings={"speakers": speakers, "clips": clips, "window_s": window_s, "permutations": n_permutations,
                      "bootstrap": n_bootstrap, "edit": EDIT, "asr": asr, "speaker_model": speaker_model,
                      "model": None if model is None else Path(model).name, "style": None if model is None else style},
            **facts_of(tokenized),
        ),
        tables={"power": power, **claim_tables(parts)},
        figures=(*_figures(bool(power)), *claim_figures(parts)),
    )  # fmt: skip


def power_of(run: Run) -> tuple[tuple[Row, ...], str]:
    """Return the power of the drawn design, by true accuracy, and a note that says it."""
    try:
        windows, _ = testable(cut_windows(run.tokenized, run.window_s), "session")
        power = design_power(
            [clip.speaker for clip in windows.clips],
            [clip.session for clip in windows.clips],
            run.codec.info.n_layers,
            seed=run.seed,
            cache=ArrayCache(run.root / "power"),
        )
    except DesignError as error:
        return (), f"Power of the speaker probe: none, because {error}"
    n_speakers, n_clips = len({clip.speaker for clip in windows.clips}), len(windows.clips)
    design = f"{n_speakers} speakers, {n_clips} clips"
    rows = tuple(
        {"design": design, "accuracy": a, "power": p, "n_studies": power.n_studies}
        for a, p in zip(power.accuracy.tolist(), power.share.tolist(), strict=True)
    )
    return rows, _power_words(power, design, run.codec.info.n_layers)


def _power_words(power: Power, design: str, n_layers: int) -> str:
    known = [(a, power.at(a)) for a in ACCURACIES]
    said = ", ".join(f"{p:.0%} at {a:g}" if p is not None else f"not simulated at {a:g}" for a, p in known)
    return (
        f"Power of the speaker probe with {design}: share of studies of this size that find the speaker in a layer "
        f"(adjusted p <= .05 over {n_layers} layers), by its true accuracy: {said} (simulated, {power.n_studies} "
        f"studies of each effect, standard error up to {power.error:.0%}). A design that misses what is there decides "
        "nothing."
    )


def _figures(has_power: bool) -> tuple[Figure, ...]:
    power = Figure(
        "power", "lines", "power", "What a design of this size can find",
        "Share of simulated studies with an adjusted p of at most .05, by the accuracy that such studies show on "
        "average in the layer that knows the speaker.",
        {"x": "accuracy", "y": "power", "series": "design", "x_title": "True accuracy", "y_title": "Share of studies",
         "zero": True},
    )  # fmt: skip
    return (power,) if has_power else ()
