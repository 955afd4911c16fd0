"""`codecprobe ablate`: decode without layers, or with layers of another speaker, and measure again."""

from pathlib import Path

import click

from probecli.options import CODEC_HELP, CORPUS_HELP, common
from probecli.output import show


@click.command("ablate")
@click.option("--corpus", default="embedded", show_default=True, help=CORPUS_HELP)
@click.option("--codec", default="embedded", show_default=True, help=CODEC_HELP)
@click.option("--speakers", type=click.IntRange(min=2), help="Draw this many speakers (default: all).")
@click.option("--clips", type=click.IntRange(min=1), help="Draw this many clips of each speaker (default: up to 6).")
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
    "--window",
    "window_s",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds of each clip that are decoded; shorter clips are left out and named.",
)
@click.option("--asr", help="Measure words with this speech recogniser (hub name or folder).")
@click.option("--speaker-model", help="Judge the voice with this x-vector model (hub name or folder), not with MFCC.")
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=2000,
    show_default=True,
    help="Resamples of speakers behind each interval. 0: no interval.",
)
@common
def ablate(
    corpus: str,
    codec: str,
    speakers: int | None,
    clips: int | None,
    layers: tuple[str, ...],
    kinds: tuple[str, ...],
    swap: bool,
    window_s: float,
    asr: str | None,
    speaker_model: str | None,
    bootstrap: int,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """What is lost without a layer, or a set of layers.

    Every set is taken out of the decoder's input, decoded and measured against the decode of all layers: voice, words,
    pitch, level, spectrum, and the codes it gives when encoded again. Beside it stand a random change of the same size
    and, as levels, other clips of another and of the same speaker; at the end, what the speaker probe loses without a
    layer. With --swap: which layers carry a voice, a pitch, the phones from one speaker to another.
    """
    from codecprobe.layer_ablation import ablate as run

    result = run(
        corpus,
        codec,
        layers=layers,
        kinds=kinds,
        swap=swap,
        speakers=speakers,
        clips=clips,
        window_s=window_s,
        asr=asr,
        speaker_model=speaker_model,
        n_bootstrap=bootstrap,
        seed=seed,
        device=device,
        quiet=quiet,
    )
    show(result, out=out, as_json=as_json, quiet=quiet)
