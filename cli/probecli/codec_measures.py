"""Measures of codes that train nothing: the commands usage and timescales of codecprobe."""

from typing import Any

import click

from probecli.kept import answer
from probecli.options import keeping, speech


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
    "n_permutations",
    type=click.IntRange(min=19),
    default=199,
    show_default=True,
    help="Circular shifts inside clips behind the information between layers and its p-value.",
)
@keeping
def usage(**asked: Any) -> None:  # noqa: ANN401
    """How much of its codebooks a codec uses, and what layers share.

    One row per measure and layer: entropy corrected for few frames, codes used at an equal number of frames, codes not
    seen and what that can mean, the effective beside the nominal bit rate, and the information between layers, against
    shifted codes and refused where frames are too few. Where the checkpoint counts its training, that stands beside.
    """
    answer("codecprobe.usage:codebook_usage", asked)


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
    "n_permutations",
    type=click.IntRange(min=0),
    default=1999,
    show_default=True,
    help="Times whole sessions are dealt anew to speakers for the p-value of G speaker. 0: no p-value.",
)
@click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(min=100),
    default=1000,
    show_default=True,
    help="Resamples of speakers behind the intervals of times.",
)
@keeping
def timescales(**asked: Any) -> None:  # noqa: ANN401
    """How long codes stay, and what they know of clip, session and speaker.

    One row per measure and layer: how often neighbouring frames repeat, how long runs of one code last, the integrated
    time of the autocorrelation, each beside the same frames in random order; and the collision ladder, which trains
    nothing: bits that frames share because they are of one clip, one session, one speaker.
    """
    answer("codecprobe.dynamics:code_timescales", asked)
