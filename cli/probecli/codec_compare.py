"""codecprobe compare. What it needs is imported when it runs, so `--help` stays fast."""

from pathlib import Path

import click

from probecli.options import CODEC_HELP, CORPUS_HELP, common
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
@click.option("--corpus", default="embedded", show_default=True, help=CORPUS_HELP)
@click.option("--speakers", type=click.IntRange(min=2), help="Draw this many speakers (default: all).")
@click.option("--clips", type=click.IntRange(min=1), help="Draw this many clips of each speaker (default: all).")
@click.option(
    "--split",
    type=click.Choice(["session", "utterance"]),
    default="session",
    show_default=True,
    help="What is new at test. 'utterance' lets a session stand on both sides: its accuracy leaks.",
)
@click.option(
    "--window",
    "window_s",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds of each clip that are probed; shorter clips are left out and named.",
)
@click.option(
    "--permutations",
    type=click.IntRange(min=0),
    default=999,
    show_default=True,
    help="Random re-assignments of sessions to speakers; all of them where they are few. 0: no p-value.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Resamples with refits behind each interval. 0: no interval.",
)
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
