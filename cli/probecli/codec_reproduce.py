"""`codecprobe reproduce`: the claims of a publication, measured one by one, each with a verdict."""

from typing import Any

import click

from probecli.group import ProbeGroup
from probecli.kept import answer
from probecli.options import decoded_speech, keeping


@click.group(cls=ProbeGroup)
def reproduce() -> None:
    """Test what others have claimed: one row per claim, with estimate, interval and verdict."""


@reproduce.command("qwen3-tts-notes")
@decoded_speech(speakers=10, clips=5)
@click.option("--model", help="Qwen3-TTS talker (hub name or folder) for the claims about its layers.")
@click.option(
    "--style", default="Speak in a sad, slow voice.", show_default=True, help="Instruction that the talker is given."
)
@click.option(
    "--permutations",
    "n_permutations",
    type=click.IntRange(min=19),
    default=999,
    show_default=True,
    help="Random re-assignments of sessions to speakers behind the p of the speaker probe.",
)
@click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    help="Resamples with refits behind the intervals of the speaker probe.",
)
@keeping
def qwen3_tts_notes(**asked: Any) -> None:  # noqa: ANN401
    """Every claim of the Qwen3-TTS notes: measured, with a verdict.

    One row per claim: what the notes say, what is measured for it, value, interval, p, and whether these data support
    it, contradict it or decide nothing, by rules fixed beforehand (docs/claims.md). Below the table stands the power
    of the design: what share of studies of this size would find a speaker that is there. --out adds the tables and
    figures of all parts.

    By default synthetic voices and a codec with planted structure, whose verdicts are known. The real thing is
    --codec qwen3-tts-12hz --corpus librispeech:dev-clean.
    """
    answer("codecprobe.claims:reproduce_notes", asked)
