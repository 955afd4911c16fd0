"""`codecprobe ablate`: decode without layers, or with layers of another speaker, and measure again."""

from typing import Any

import click

from probecli.kept import answer
from probecli.options import decoded_speech, keeping


@click.command("ablate")
@decoded_speech(all_clips="up to 6")
@click.option(
    "--layers",
    "layers",
    multiple=True,
    help="A set of layers to replace: 0, 1-2 or 0,3-5; or each, only (all but one), prefixes (all above k), all. "
    "Repeat it for more sets. Default: each, 1-2, those after them, all but layer 0, all.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(["drop", "mean", "shuffle", "resample"]),
    default=("drop", "resample"),
    show_default=True,
    help="drop: leave the term out; mean: its mean over other clips; shuffle: its frames in another order; resample: "
    "frames of a clip of another speaker. Repeat it for more kinds.",
)
@click.option("--swap", is_flag=True, help="Swap the layers between clips of two speakers instead: who is heard?")
@click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(min=0),
    default=2000,
    show_default=True,
    help="Resamples of speakers behind each interval. 0: no interval.",
)
@keeping
def ablate(**asked: Any) -> None:  # noqa: ANN401
    """What is lost without a layer, or a set of layers.

    Every set is taken out of the decoder's input, decoded and measured against the decode of all layers: voice, words,
    pitch, level, spectrum, and the codes it gives when encoded again. Beside it stand a random change of the same size
    and, as levels, other clips of another and of the same speaker; at the end, what the speaker probe loses without a
    layer. With --swap: which layers carry a voice, a pitch, the phones from one speaker to another.
    """
    answer("codecprobe.layer_ablation:ablate", asked)
