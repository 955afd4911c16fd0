"""codecprobe compare. What it needs is imported when it runs, so `--help` stays fast."""

from pathlib import Path

import click

from probecli.options import CODEC_HELP, common, probing, recordings
from probecli.output import show


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
@common
def compare(
    codecs: tuple[str, ...],
    corpus: str,
    speakers: int | None,
    clips: int | None,
    split: str,
    window_s: float,
    permutations: int,
    bootstrap: int,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Codecs side by side: rates, layers, and the speaker in each layer.

    Every codec hears the same clips and the same seconds of them. One row per codec and layer; then one per codec for
    all its layers, with the difference to the first codec and its interval; then what clip length, energy and MFCC
    give without any codec.
    """
    from codecprobe.comparison import compare_codecs

    result = compare_codecs(
        codecs,
        corpus,
        speakers=speakers,
        clips=clips,
        split=split,
        window_s=window_s,
        n_permutations=permutations,
        n_bootstrap=bootstrap,
        seed=seed,
        device=device,
        quiet=quiet,
    )
    show(result, out=out, as_json=as_json, quiet=quiet)
