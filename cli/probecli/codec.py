"""The codecprobe command. What a command needs is imported when it runs, so `--help` stays fast."""

from pathlib import Path
from typing import Any

import click

from probecli.codec_ablate import ablate
from probecli.codec_compare import compare
from probecli.codec_lens import lens
from probecli.codec_measures import timescales, usage
from probecli.codec_probe import probe
from probecli.codec_reproduce import reproduce
from probecli.group import ProbeGroup
from probecli.kept import answer
from probecli.options import CODEC_HELP, common, keeping, probing, speech


@click.group(cls=ProbeGroup)
@click.version_option(package_name="codecprobe")
def main() -> None:
    """What each layer of a speech codec carries, and what happens when it is taken away."""


for command in (usage, timescales, ablate, compare, lens, probe, reproduce):
    main.add_command(command)


@main.command("speaker-probe")
@speech
@probing
@keeping
def speaker_probe(**asked: Any) -> None:  # noqa: ANN401
    """How much of the speaker each layer carries.

    One row per layer and kind of feature: cross-validated accuracy on sessions the probe has not heard, its
    interval, chance, and a p-value from re-assigning whole sessions to speakers; beside them what the layer adds
    given the ones before, and what clip length, energy and MFCC give without any codec.

    The notes' design is --speakers 10 --clips 5; by default all data are used.
    """
    answer("codecprobe.speaker:speaker_probe", asked)


@main.command("tokenize")
@click.argument("corpus", default="embedded")
@click.option("--codec", default="embedded", show_default=True, help=CODEC_HELP)
@common
def tokenize(
    corpus: str,
    codec: str,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Encode a corpus into a data set of codes.

    CORPUS is what --corpus of the other commands takes. --out receives a `datasets` (Arrow) data set with the
    columns clip_id, speaker, session, text, duration_s and codes (frames x layers), beside a record of how it was
    made. What was encoded before is read from the cache.
    """
    from codecprobe.tokenization import summarise

    result = summarise(corpus, codec, out=out, seed=seed, device=device, quiet=quiet)
    click.echo(result.to_json() if as_json else str(result))
    if out is not None and not quiet:
        click.echo(f"data set: {out}", err=True)
