"""Measures of codes that train nothing: the commands usage and timescales of codecprobe."""

from pathlib import Path

import click

from probecli.options import common, speech
from probecli.output import show


@click.command("usage")
@speech
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    help="Frames at which codes are counted, so that codecs and corpora can be compared "
    "(default: the largest of 1, 2, 5, 10, 20, ... that the data allow).",
)
@click.option(
    "--permutations",
    type=click.IntRange(min=19),
    default=199,
    show_default=True,
    help="Circular shifts inside clips behind the information between layers and its p-value.",
)
@common
def usage(
    corpus: str,
    codec: str,
    speakers: int | None,
    clips: int | None,
    budget: int | None,
    permutations: int,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """How much of its codebooks a codec uses, and what layers share.

    One row per measure and layer: entropy corrected for few frames, codes used at an equal number of frames, codes not
    seen and what that can mean, the effective beside the nominal bit rate, and the information between layers, against
    shifted codes and refused where frames are too few. Where the checkpoint counts its training, that stands beside.
    """
    from codecprobe.usage import codebook_usage

    result = codebook_usage(
        corpus,
        codec,
        speakers=speakers,
        clips=clips,
        budget=budget,
        n_permutations=permutations,
        seed=seed,
        device=device,
        quiet=quiet,
    )
    show(result, out=out, as_json=as_json, quiet=quiet)


@click.command("timescales")
@speech
@click.option(
    "--far",
    "far_s",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds; frames of one clip further apart are the baseline that repeats are compared with.",
)
@click.option(
    "--permutations",
    type=click.IntRange(min=0),
    default=1999,
    show_default=True,
    help="Times whole sessions are dealt anew to speakers for the p-value of G speaker. 0: no p-value.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=100),
    default=1000,
    show_default=True,
    help="Resamples of speakers behind the intervals of times.",
)
@common
def timescales(
    corpus: str,
    codec: str,
    speakers: int | None,
    clips: int | None,
    far_s: float,
    permutations: int,
    bootstrap: int,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """How long codes stay, and what they know of clip, session and speaker.

    One row per measure and layer: how often neighbouring frames repeat, how long runs of one code last, the integrated
    time of the autocorrelation, each beside the same frames in random order; and the collision ladder, which trains
    nothing: bits that frames share because they are of one clip, one session, one speaker.
    """
    from codecprobe.dynamics import code_timescales

    result = code_timescales(
        corpus,
        codec,
        speakers=speakers,
        clips=clips,
        far_s=far_s,
        n_permutations=permutations,
        n_bootstrap=bootstrap,
        seed=seed,
        device=device,
        quiet=quiet,
    )
    show(result, out=out, as_json=as_json, quiet=quiet)
