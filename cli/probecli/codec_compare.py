"""codecprobe compare. What it needs is imported when it runs, so `--help` stays fast."""

from typing import Any

import click

from probecli.kept import answer
from probecli.options import CODEC_HELP, keeping, probing, recordings


@click.command("compare")
@click.option(
    "--codec",
    "codecs",
    multiple=True,
    default=("embedded", "embedded-flat"),
    show_default=True,
    help=f"Give it once for each codec. {CODEC_HELP}",
)
@recordings
@probing
@keeping
def compare(**asked: Any) -> None:  # noqa: ANN401
    """Codecs side by side: rates, layers, and the speaker in each layer.

    Every codec hears the same clips and the same seconds of them. One row per codec and layer; then one per codec for
    all its layers, with the difference to the first codec and its interval; then what clip length, energy and MFCC
    give without any codec.
    """
    answer("codecprobe.comparison:compare_codecs", asked)
