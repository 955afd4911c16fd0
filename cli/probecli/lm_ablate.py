"""`lmprobe ablate`: what is lost without a block, an attention, an MLP or a direction."""

from pathlib import Path
from typing import Any

import click

from probecli.lm_options import PROMPTS_HELP, command_line, limit, template
from probecli.options import common
from probecli.output import analysis_of, show


@click.command()
@click.option(
    "--model",
    metavar="NAME_OR_FOLDER",
    help="A hub name or a folder as save_pretrained writes it (default: an organism).",
)
@click.option("--prompts", multiple=True, metavar="SOURCE", help=PROMPTS_HELP)
@click.option("--family", metavar="COLUMN", help="Column that names the family of a prompt, the unit of intervals.")
@limit
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(["zero", "skip", "mean", "resample", "project", "add"]),
    help="What is done; repeat it (default: mean and project). zero, mean, resample: the part is 0, its mean, that of "
    "another prompt; skip: it is left out; project, add: a direction is removed or added.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["attention", "mlp", "block"]),
    help="Where; repeat it (default: both sub-layers for zero, mean and resample, blocks for the others).",
)
@click.option("--layers", default="all", show_default=True, help="Blocks, as 0-3,7.")
@click.option(
    "--positions",
    default="all",
    show_default=True,
    help="Tokens at which to act: all, last (of the prompt), or positions from 0 at a text's first token: 0; 3,5; 2:; "
    "2:6.",
)
@click.option(
    "--direction",
    type=click.Path(path_type=Path),
    help="File or folder of the direction (as lmprobe refusal --out writes it, .npy, .csv, .safetensors). Default: "
    "difference of means of the two main categories, fitted on half of the prompt families.",
)
@click.option("--scale", default=1.0, show_default=True, type=float, help="Factor of the direction that add adds.")
@click.option(
    "--span",
    type=click.Choice(["answer", "end", "prompt"]),
    default="answer",
    show_default=True,
    help="Where distributions are compared: over the intact model's answer, at the prompt's end, over the prompt.",
)
@click.option(
    "--tokens",
    "max_new_tokens",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most tokens of answer.",
)
@click.option("--target", multiple=True, metavar="TOKEN", help="Also measure log p of this token; repeat it.")
@click.option(
    "--refusal-opening",
    "refusal_openings",
    multiple=True,
    metavar="TOKEN",
    help="A token that opens a refusal, as I or Sorry; repeat it. Also measure the log-odds of these.",
)
@template
@click.option("--revision", help="Revision of a hub model (branch, tag or commit).")
@click.option(
    "--random",
    "n_random",
    default=19,
    show_default=True,
    type=click.IntRange(min=0),
    help="Random directions of each of two kinds behind each control; the smallest p is 1 / (N + 1). 0: no control.",
)
@click.option(
    "--bootstrap",
    "n_bootstrap",
    default=1000,
    show_default=True,
    type=click.IntRange(min=0),
    help="Resamples of whole prompt families behind each interval. 0: no interval.",
)
@common
def ablate(**asked: Any) -> None:  # noqa: ANN401
    """What is lost without a block, an attention, an MLP or a direction.

    Sweeps every layer and reports how far the next-token distributions move (KL to the intact model), loss, entropy,
    and where asked the log-probability of a token and the odds of a refusal: with intervals over prompt families, the
    same change in random directions, and the noise floor of padding and rounding. What a change needs to know is fitted
    on half of the prompt families and measured on the other half.

    Without --model it runs on a packaged organism: a tiny synthetic model with planted, known behaviour.
    """
    from lmprobe.prompts import read_prompts

    out, as_json, sources, family = (asked.pop(name) for name in ("out", "as_json", "prompts", "family"))
    asked["kinds"] = asked["kinds"] or ("mean", "project")
    prompts = read_prompts(sources, family=family)
    result = analysis_of("lmprobe.layer_ablation:ablate")(**asked, prompts=prompts, command=command_line())
    show(result, out=out, as_json=as_json, quiet=asked["quiet"])
