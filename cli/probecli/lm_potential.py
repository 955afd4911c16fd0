"""`lmprobe potential`: how strongly an aligned model differs from its base, and what lies between and beyond them."""

from typing import Any

import click

from probecli.lm_options import answer, prompted
from probecli.options import common


def _numbers(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> tuple[float, ...]:
    try:
        return tuple(float(number) for word in words for number in word.replace(",", " ").split())
    except ValueError as error:
        raise click.BadParameter(f"give numbers, for example '0 0.5 1 1.5'; got {' '.join(words)!r}") from error


@click.command()
@click.option("--base", metavar="NAME_OR_FOLDER", help="The base: a hub name or a folder as save_pretrained writes it.")
@click.option(
    "--aligned",
    multiple=True,
    metavar="NAME_OR_FOLDER",
    help="A model tuned from it, with the same tokenizer. More than once: checkpoints of one lineage in their order.",
)
@click.option(
    "--null",
    metavar="NAME_OR_FOLDER",
    help="The base trained on without alignment: the floor of every estimate. Without it only rounding is known.",
)
@click.option(
    "--lambda",
    "lambdas",
    multiple=True,
    default=("0 0.5 1 1.5",),
    show_default=True,
    callback=_numbers,
    metavar="NUMBERS",
    help="Strengths at which logits are mixed and the terrain is measured; more than one in quotes.",
)
@click.option(
    "--refusal-opening",
    "refusal_openings",
    multiple=True,
    metavar="TOKEN",
    help="A token that opens a refusal, as I or Sorry; more than once. Gives the strength along refusing.",
)
@prompted
@common
def potential(**asked: Any) -> None:  # noqa: ANN401
    """How strongly an aligned model differs from its base: lambda in V_aligned = V_base + lambda V_alignment.

    Reports estimators of the strength with intervals over prompt families and a null floor, where it acts (risk
    against safe prompts), and what a mixture of both models' logits does to the entropy gap and alpha at each
    --lambda: 0 is the base, 1 the aligned model, beyond 1 an extrapolation. Both models must share a tokenizer; others
    are refused, because they have no potential in common.

    Without models it runs on the packaged organisms: a base and three aligned models of planted strength.
    """
    asked["aligned"] = asked["aligned"] or None
    answer("lmprobe.potential:potential", asked)
