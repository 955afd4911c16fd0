"""`lmprobe organism`: the tiny models with planted behaviour, trained anew."""

from pathlib import Path

import click

from probecli.group import ProbeGroup
from probecli.lm_options import command_line


@click.group(cls=ProbeGroup)
def organism() -> None:
    """Tiny models with planted, known behaviour."""


@organism.command("train")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Write a folder each here."
)
@click.option(
    "--kind",
    type=click.Choice(["terrain", "refusal"]),
    default="terrain",
    show_default=True,
    help="terrain: base and aligned models of planted strength. refusal: models with planted refusal directions.",
)
@click.option(
    "--name", "names", multiple=True, help="Train this refusal organism only (refusal-1, ...); more than once for more."
)
@click.option("--seed", default=0, show_default=True, type=int, help="Seeds every use of chance.")
@click.option("--quick", is_flag=True, help="A few steps only, to try the path; nothing planted is learnt.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def organism_train(
    out: Path, kind: str, names: tuple[str, ...], seed: int, quick: bool, as_json: bool, quiet: bool
) -> None:
    """Train the packaged organisms anew (minutes on a CPU).

    Writes a Hugging Face folder for each, with the planted truth and the measured behaviour in organism.json.
    """
    from lmprobe.organisms import train_organisms, train_refusal_organisms

    def say(line: str) -> None:
        click.echo(line, err=True)

    progress = None if quiet else say
    if names and kind != "refusal":
        raise click.UsageError("--name chooses among the refusal organisms: add --kind refusal")
    if kind == "refusal":
        result = train_refusal_organisms(
            out, names or None, quick=quick, seed=seed, progress=progress, command=command_line()
        )
    else:
        result = train_organisms(out, quick=quick, seed=seed, progress=progress, command=command_line())
    click.echo(result.to_json() if as_json else str(result))
