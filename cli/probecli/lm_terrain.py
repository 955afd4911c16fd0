"""`lmprobe terrain`: how categories of prompts differ in entropy, states and dimension."""

from pathlib import Path

import click

from probecli.lm_options import MODEL_HELP, command_line, prompted
from probecli.options import common
from probecli.output import show


@click.command()
@click.option("--model", "models", multiple=True, metavar="NAME_OR_FOLDER", help=MODEL_HELP)
@click.option(
    "--lineage",
    is_flag=True,
    help="The models are checkpoints of one lineage in their order (base first): adds the trend over steps.",
)
@click.option(
    "--match-length",
    type=click.IntRange(min=0),
    metavar="TOKENS",
    help="Contrast only pairs of a risk and a safe prompt whose lengths differ by at most this many tokens.",
)
@prompted
@common
def terrain(
    models: tuple[str, ...],
    lineage: bool,
    match_length: int | None,
    prompts: tuple[str, ...],
    family: str | None,
    revision: str | None,
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

    Generates for each prompt and reports, per model: the risk-safe gap in entropy at the prompt's end, over the
    model's own text and over one common text, with its interval and p by prompt; the gap that length and wording
    leave; effect sizes; alpha with its null; how well each layer tells safe from risk, against word counts and length;
    dimension; convergence.

    Without --model it runs on the packaged organisms: tiny synthetic models with planted, known behaviour.
    """
    from lmprobe.prompts import read_prompts
    from lmprobe.terrain import terrain as run

    result = run(
        models or None,
        read_prompts(prompts, family=family),
        lineage=lineage,
        match_length=match_length,
        revision=revision,
        max_new_tokens=tokens,
        template=template,  # type: ignore[arg-type]
        n_permutations=permutations,
        n_bootstrap=bootstrap,
        seed=seed,
        device=device,
        quiet=quiet,
        command=command_line(),
    )
    show(result, out=out, as_json=as_json, quiet=quiet)
