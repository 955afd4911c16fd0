"""Probes of any target: the command probe of codecprobe."""

from typing import Any

import click

from probecli.kept import answer
from probecli.options import keeping, speech


@click.command("probe")
@click.option(
    "--target",
    required=True,
    metavar="NAME",
    help="phone, text, f0, f0-normalised, energy, energy-normalised, sex, session, or a label column of the corpus.",
)
@speech
@click.option(
    "--window",
    "window_s",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds of each clip that are probed for a label of clips; shorter clips are left out and named.",
)
@click.option(
    "--lag",
    type=click.IntRange(min=-10, max=10),
    help="For phones: frames by which codes come later than sound (default: chosen on development clips).",
)
@click.option(
    "--permutations",
    "n_permutations",
    type=click.IntRange(min=19),
    default=199,
    show_default=True,
    help="Exchanges of labels or curves behind the p-value; for phones, circular shifts inside clips.",
)
@click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Resamples with refits behind each interval of a clip label. 0: no interval.",
)
@keeping
def probe(**asked: Any) -> None:  # noqa: ANN401
    """What else each layer carries: phones, pitch, level, text, sex, session.

    One row per layer, kind of features and metric, with interval, chance and p. Labels of clips are probed on windows
    with what carries them left out (speakers for sex); phones, pitch and level frame by frame on speakers that the
    probe has not heard, against labels that were moved away from their frames; phones also as information and ABX.
    """
    answer("codecprobe.targets:probe_target", asked)
