"""The lmprobe command. What a command needs is imported when it runs, so `--help` stays fast."""

from pathlib import Path

import click

from probecli.group import ProbeGroup
from probecli.lm_grok import grok
from probecli.lm_lens import lens
from probecli.lm_options import command_line
from probecli.lm_potential import potential
from probecli.lm_refusal import refusal
from probecli.lm_reproduce import reproduce
from probecli.lm_terrain import terrain
from probecli.namesake import refuse_namesake


@click.group(cls=ProbeGroup)
@click.version_option(package_name="codecprobe")
def main() -> None:
    """What each layer of a language model carries, and what happens when it is taken away."""
    refuse_namesake()


for command in (terrain, potential, lens, refusal, reproduce, grok):
    main.add_command(command)


@main.group(cls=ProbeGroup)
def organism() -> None:
    """Tiny models with planted, known behaviour."""


@organism.command("train")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Write a folder each here."
)
@click.option("--seed", default=0, show_default=True, type=int, help="Seeds every use of chance.")
@click.option("--quick", is_flag=True, help="A few steps only, to try the path; nothing planted is learnt.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def organism_train(out: Path, seed: int, quick: bool, as_json: bool, quiet: bool) -> None:
    """Train the packaged organisms anew (minutes on a CPU).

    Writes a Hugging Face folder for the base and for each strength of alignment, with the planted truth and the
    measured behaviour in organism.json.
    """
    from lmprobe.organisms import train_organisms

    def say(line: str) -> None:
        click.echo(line, err=True)

    result = train_organisms(out, quick=quick, seed=seed, progress=None if quiet else say, command=command_line())
    click.echo(result.to_json() if as_json else str(result))
