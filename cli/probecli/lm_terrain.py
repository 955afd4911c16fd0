"""`lmprobe terrain`: how categories of prompts differ in entropy, states and dimension."""

from typing import Any

import click

from probecli.lm_options import MODEL_HELP, answer, prompted
from probecli.options import common


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
def terrain(**asked: Any) -> None:  # noqa: ANN401
    """How safe and risk prompts differ in entropy, states and dimension.

    Generates for each prompt and reports, per model: the risk-safe gap in entropy at the prompt's end, over the
    model's own text and over one common text, with its interval and p by prompt; the gap that length and wording
    leave; effect sizes; alpha with its null; how well each layer tells safe from risk, against word counts and length;
    dimension; convergence.

    Without --model it runs on the packaged organisms: tiny synthetic models with planted, known behaviour.
    """
    asked["models"] = asked["models"] or None
    answer("lmprobe.terrain:terrain", asked)
