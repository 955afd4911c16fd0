"""`lmprobe refusal`: the refusal direction of a model, found, removed, added, and held against controls."""

from typing import Any

import click

from probecli.lm_options import (
    PROMPTS_HELP,
    cluster_bootstrap,
    command_line,
    limit,
    openings,
    revision,
    template,
    twins,
)
from probecli.options import common
from probecli.output import analysis_of, show


def _counts(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> tuple[int, ...]:
    try:
        return tuple(int(number) for word in words for number in word.replace(",", " ").split())
    except ValueError as error:
        raise click.BadParameter(f"give whole numbers, for example '32 128'; got {' '.join(words)!r}") from error


@click.command()
@click.option(
    "--model",
    metavar="NAME_OR_FOLDER",
    help="A hub name, a folder as save_pretrained writes it, or a packaged organism (refusal-0, refusal-1, refusal-4). "
    "Default: refusal-1.",
)
@click.option(
    "--prompts",
    multiple=True,
    metavar="SOURCE",
    help="marked (invented words, for the organisms), " + PROMPTS_HELP + " The harmful category is called risk, unsafe "
    "or harmful, the harmless one safe, benign or harmless; prompts of others are used for capability.",
)
@twins
@limit
@click.option(
    "--tokens",
    "lengths",
    multiple=True,
    default=("16 32",),
    show_default=True,
    callback=_counts,
    metavar="NUMBERS",
    help="Tokens after which an answer is judged; more than one in quotes. A model that refuses late needs more.",
)
@click.option(
    "--detector",
    "detectors",
    multiple=True,
    default=("markers",),
    show_default=True,
    metavar="NAME_OR_FILE",
    help="What calls an answer a refusal: markers, 'markers, first 64', openings, or a file with one phrase a line.",
)
@click.option("--judge", metavar="NAME_OR_FOLDER", help="A causal language model that judges every answer, too.")
@click.option(
    "--labels",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Answers of this model labelled by people (columns answer, label): calibrates detectors, corrects rates.",
)
@click.option(
    "--labels-of-others",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Labelled answers of other models, as XSTest's completions: how far a detector or judge can be off.",
)
@openings
@click.option("--tasks", metavar="FILE", help="A CSV of tasks (prompt, right, wrong1, ...); default: packaged.")
@revision
@template
@click.option(
    "--permutations",
    "n_permutations",
    type=click.IntRange(min=0),
    default=99,
    show_default=True,
    help="Replicates of the whole search behind each of the three nulls. 0: no p-value.",
)
@click.option(
    "--controls",
    "n_controls",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Directions of each null under which answers are written.",
)
@cluster_bootstrap
@click.option(
    "--keep-answers",
    is_flag=True,
    help="Save the answers, too. Those of an edited model to harmful prompts can be harmful text.",
)
@common
def refusal(**asked: Any) -> None:  # noqa: ANN401
    """The refusal direction of a model: found, removed, added, held against controls.

    Differences in means of harmful and harmless prompts at every block's input and end position are scored on held-out
    prompts and one is chosen by the rule of Arditi et al.; a third set of prompts shows what its removal does to the
    refusal score and to written answers, what its addition does to harmless prompts, and what removal costs (KL,
    perplexity, tasks). Beside each effect: the same search with labels exchanged, with directions matched in
    covariance, and with random ones. With --out the direction is saved as direction.csv, which
    `lmprobe abliterate --direction` takes.

    Without --model it runs on the packaged organism refusal-1, a tiny synthetic model with one planted direction.
    """
    from lmprobe.prompts import read_prompts

    out, as_json, sources, family = (asked.pop(name) for name in ("out", "as_json", "prompts", "family"))
    prompts = read_prompts(sources, family=family) if sources else None
    result = analysis_of("lmprobe.refusal:refusal")(**asked, prompts=prompts, command=command_line())
    show(result, out=out, as_json=as_json, quiet=asked["quiet"])
