"""`lmprobe lens`: what each layer of a language model would say."""

from pathlib import Path
from typing import Any

import click

from probecli.lm_options import MODEL_HELP, PROMPTS_HELP, command_line, revision
from probecli.options import common
from probecli.output import analysis_of, show


@click.command()
@click.option("--model", "models", multiple=True, metavar="NAME_OR_FOLDER", help=MODEL_HELP)
@click.option("--prompt", multiple=True, metavar="TEXT", help="A text to map by layer and position; repeat it.")
@click.option(
    "--prompts",
    multiple=True,
    metavar="SOURCE",
    help="Prompts whose categories are contrasted by layer. " + PROMPTS_HELP + " Without --prompt and --prompts the "
    "packaged ones are contrasted.",
)
@click.option("--family", metavar="COLUMN", help="Column that names the family of a prompt, the cluster of tests.")
@click.option(
    "--target",
    multiple=True,
    metavar="TOKEN",
    help='Follow this token through the layers, for example " Paris"; one token of the model. Repeat it.',
)
@click.option(
    "--top", default=3, show_default=True, type=click.IntRange(min=1), help="Most probable tokens shown of each layer."
)
@click.option(
    "--template",
    type=click.Choice(["auto", "chat", "raw"]),
    help="How texts are put to the model (default: --prompt raw, --prompts with the chat template where there is one).",
)
@revision
@click.option(
    "--tune",
    metavar="FILE",
    help="Train a tuned lens on the texts of this file (.txt with a text per line, or prompts; 'default' takes the "
    "packaged prompts) and show it beside the plain one. A quarter of the texts is held out.",
)
@click.option(
    "--steps", default=300, show_default=True, type=click.IntRange(min=1), help="Training steps of a tuned lens."
)
@click.option(
    "--save", type=click.Path(file_okay=False, path_type=Path), help="Write the tuned lens of --tune into this folder."
)
@click.option("--tuned", type=click.Path(path_type=Path), help="Use the tuned lens in this folder (see --save).")
@click.option(
    "--permutations",
    "n_permutations",
    type=click.IntRange(min=0),
    default=999,
    show_default=True,
    help="Random exchanges of categories between prompts behind each p. 0: no p-value.",
)
@click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Resamples of whole prompt families behind each interval. 0: no interval.",
)
@common
def lens(**asked: Any) -> None:  # noqa: ANN401
    """What each layer of a model would say if the model stopped there.

    With --prompt: entropy, KL to the final distribution, rank of the final token and the most probable tokens, by layer
    and position, with a map of the text. With --prompts: by layer, how far two sets of prompts are told apart in what
    the layer would say, with interval and p by prompt family. The read-out is the model's own (norm, head, scale,
    softcap): the last layer gives its logits bit for bit.

    Without --model it runs on two packaged organisms: tiny synthetic models with planted, known behaviour.
    """
    from lmprobe.prompts import read_prompts
    from lmprobe.texts import read_texts

    out, as_json, sources, family = (asked.pop(name) for name in ("out", "as_json", "prompts", "family"))
    asked["models"] = asked["models"] or None
    asked["tune"] = read_texts(asked["tune"]) if asked["tune"] else ()
    prompts = read_prompts(sources, family=family) if sources or not asked["prompt"] else None
    result = analysis_of("lmprobe.lens:lens")(**asked, prompts=prompts, command=command_line())
    show(result, out=out, as_json=as_json, quiet=asked["quiet"])
