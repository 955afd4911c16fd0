"""The lmprobe command. What a command needs is imported when it runs, so `--help` stays fast."""

import sys
from pathlib import Path

import click

from probecli.group import ProbeGroup
from probecli.namesake import refuse_namesake
from probecli.options import common
from probecli.output import show

MODEL_HELP = "A hub name or a folder as save_pretrained writes it; give it more than once to set models side by side."
PROMPTS_HELP = (
    "default (packaged), a CSV, TSV, JSONL or JSON file, or the name or folder of a data set (NAME or NAME:SPLIT); "
    "columns text, category and, where there is one, family."
)


@click.group(cls=ProbeGroup)
@click.version_option(package_name="codecprobe")
def main() -> None:
    """What each layer of a language model carries, and what happens when it is taken away."""
    refuse_namesake()


@main.command()
@click.option("--model", "models", multiple=True, metavar="NAME_OR_FOLDER", help=MODEL_HELP)
@click.option("--revision", help="Revision of a hub model (branch, tag or commit).")
@click.option("--prompts", default="default", show_default=True, metavar="SOURCE", help=PROMPTS_HELP)
@click.option("--tokens", type=click.IntRange(min=2), default=30, show_default=True, help="Most tokens to generate.")
@click.option(
    "--template",
    type=click.Choice(["auto", "chat", "raw"]),
    default="auto",
    show_default=True,
    help="How prompts are put to the model: auto takes the chat template where there is one.",
)
@click.option(
    "--permutations",
    type=click.IntRange(min=0),
    default=999,
    show_default=True,
    help="Random exchanges of labels between prompts behind each p. 0: no p-value.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Resamples of whole prompt families behind each interval. 0: no interval.",
)
@common
def terrain(
    models: tuple[str, ...],
    revision: str | None,
    prompts: str,
    tokens: int,
    template: str,
    permutations: int,
    bootstrap: int,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """How safe and risk prompts differ in entropy, states and dimension.

    Generates for each prompt and reports, per model: the safe-risk gap in entropy at the prompt's end, over the
    model's own text and over one common text, with its interval and p by prompt; effect sizes; alpha with its null;
    how well each layer tells safe from risk, against word counts and length; dimension; convergence.

    Without --model it runs on the packaged organisms: tiny synthetic models with planted, known behaviour.
    """
    from lmprobe.terrain import terrain as run

    result = run(
        models or None,
        prompts,
        revision=revision,
        max_new_tokens=tokens,
        template=template,  # type: ignore[arg-type]
        n_permutations=permutations,
        n_bootstrap=bootstrap,
        seed=seed,
        device=device,
        quiet=quiet,
        command=_command(),
    )
    show(result, out=out, as_json=as_json, quiet=quiet)


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

    result = train_organisms(out, quick=quick, seed=seed, progress=None if quiet else say, command=_command())
    click.echo(result.to_json() if as_json else str(result))


def _command() -> str:
    """Return the command line without the path of the program and without paths of this machine."""
    shown = [Path(word).name if "/" in word and Path(word).exists() else word for word in sys.argv[1:]]
    return " ".join(["lmprobe", *shown])
