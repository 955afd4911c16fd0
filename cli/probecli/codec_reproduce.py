"""`codecprobe reproduce`: the claims of a publication, measured one by one, each with a verdict."""

from pathlib import Path

import click

from probecli.group import ProbeGroup
from probecli.options import CODEC_HELP, CORPUS_HELP, common
from probecli.output import show


@click.group(cls=ProbeGroup)
def reproduce() -> None:
    """Test what others have claimed: one row per claim, with estimate, interval and verdict."""


@reproduce.command("qwen3-tts-notes")
@click.option("--corpus", default="embedded", show_default=True, help=CORPUS_HELP)
@click.option("--codec", default="embedded", show_default=True, help=CODEC_HELP)
@click.option("--speakers", type=click.IntRange(min=2), default=10, show_default=True, help="Speakers to draw.")
@click.option(
    "--clips", type=click.IntRange(min=1), default=5, show_default=True, help="Clips of each speaker to draw."
)
@click.option(
    "--window",
    "window_s",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds of each clip that are probed and decoded; another clip takes the place of a shorter one.",
)
@click.option("--asr", help="Measure words with this speech recogniser (hub name or folder).")
@click.option("--speaker-model", help="Judge the voice with this x-vector model (hub name or folder), not with MFCC.")
@click.option("--model", help="Qwen3-TTS talker (hub name or folder) for the claims about its layers.")
@click.option(
    "--style", default="Speak in a sad, slow voice.", show_default=True, help="Instruction that the talker is given."
)
@click.option(
    "--permutations",
    type=click.IntRange(min=19),
    default=999,
    show_default=True,
    help="Random re-assignments of sessions to speakers behind the p of the speaker probe.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    help="Resamples with refits behind the intervals of the speaker probe.",
)
@common
def qwen3_tts_notes(
    corpus: str,
    codec: str,
    speakers: int,
    clips: int,
    window_s: float,
    asr: str | None,
    speaker_model: str | None,
    model: str | None,
    style: str,
    permutations: int,
    bootstrap: int,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Every claim of the Qwen3-TTS notes: measured, with a verdict.

    One row per claim: what the notes say, what is measured for it, value, interval, p, and whether these data support
    it, contradict it or decide nothing, by rules fixed beforehand (docs/claims.md). Below the table stands the power
    of the design: what share of studies of this size would find a speaker that is there. --out adds the tables and
    figures of all parts.

    By default synthetic voices and a codec with planted structure, whose verdicts are known. The real thing is
    --codec qwen3-tts-12hz --corpus librispeech:dev-clean.
    """
    from codecprobe.claims import reproduce_notes

    result = reproduce_notes(
        corpus,
        codec,
        speakers=speakers,
        clips=clips,
        window_s=window_s,
        asr=asr,
        speaker_model=speaker_model,
        model=model,
        style=style,
        n_permutations=permutations,
        n_bootstrap=bootstrap,
        seed=seed,
        device=device,
        quiet=quiet,
    )
    show(result, out=out, as_json=as_json, quiet=quiet)
