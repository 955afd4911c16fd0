"""`lmprobe probe`: what each layer of a language model tells of a label of prompts."""

from typing import Any

import click

from probecli.lm_capture import AT_HELP
from probecli.lm_options import answer_table, prompts_of_table
from probecli.options import common


@click.command()
@prompts_of_table
@click.option("--label", default="category", show_default=True, metavar="COLUMN", help="Column of the prompts.")
@click.option("--at", default="last", show_default=True, metavar="SELECTOR", help=AT_HELP + " One state per prompt.")
@click.option(
    "--layers", default=("all",), show_default="all", multiple=True, metavar="LAYER",
    help="embed, 'block 3', final, 'attention 3', 'mlp 3', attention or mlp; repeat it.",
)  # fmt: skip
@click.option(
    "--groups",
    type=click.Choice(["auto", "family", "near-duplicates", "prompt"]),
    default="auto",
    show_default=True,
    help="What is new at test. auto: families where prompts name them and classes lie in several, else clusters of "
    "near-duplicates. prompt: each its own; near-duplicates then leak.",
)
@click.option(
    "--probe",
    type=click.Choice(["ridge", "nested-ridge", "lda", "logistic"]),
    default="ridge",
    show_default=True,
    help="Kind of linear probe; nested-ridge chooses its penalty inside the folds.",
)
@click.option(
    "--direction",
    type=click.Choice(["mean-difference", "lda", "ridge", "logistic"]),
    default="mean-difference",
    show_default=True,
    help="Kind of direction written to --out, a file per layer that --direction of other commands takes.",
)
@click.option("--system", metavar="TEXT", help="A system message before every prompt; needs a chat template.")
@click.option(
    "--tokens", "max_new_tokens", type=click.IntRange(min=1), default=30, show_default=True,
    help="Most tokens to write, for generated tokens.",
)  # fmt: skip
@click.option(
    "--permutations",
    "n_permutations",
    type=click.IntRange(min=0),
    default=999,
    show_default=True,
    help="Exchanges of labels behind each p. 0: no p-value.",
)
@click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Resamples of groups with refits behind each interval. 0: no interval and no test of the gain.",
)
@click.option(
    "--random-weights/--no-random-weights",
    default=True,
    show_default=True,
    help="Also probe a model of the same configuration with random weights (up to 50 million parameters).",
)
@common
def probe(**asked: Any) -> None:  # noqa: ANN401
    """How well each layer tells a label of prompts, beside what length, words and template tell without a model.

    One row per layer: cross-validated score on prompts that are new, its interval, chance, p by exchange of labels
    adjusted over the layers, and the gain over the best control with interval and p; then the layer that a choice
    inside the folds takes, and the controls. Works on causal models and on encoders of the BERT family.

    Without --model it runs on the packaged organisms: tiny synthetic models with planted, known behaviour.
    """
    asked["layers"] = asked["layers"][0] if len(asked["layers"]) == 1 else asked["layers"]
    answer_table("lmprobe.probe:probe", asked, hand_on_out=True)
