"""`lmprobe abliterate`: a direction is taken out of a model's weights."""

from typing import Any

import click

from probecli.lm_options import PROMPTS_HELP, command_line
from probecli.options import common
from probecli.output import analysis_of, show


@click.command()
@click.option(
    "--model",
    metavar="NAME_OR_FOLDER",
    help="A hub name, a folder as save_pretrained writes it, or a packaged organism (refusal-0, refusal-1, refusal-4). "
    "Default: refusal-1. It is not changed on disk.",
)
@click.option(
    "--direction",
    metavar="FILE_OR_FOLDER",
    help="Directions to take out: a folder that lmprobe refusal --out wrote, or a .csv, .npy or .safetensors file. "
    "Without it the direction is found on the prompts, as lmprobe refusal finds it.",
)
@click.option(
    "--block",
    type=click.IntRange(min=0),
    metavar="N",
    help="Take the difference in means at the input of this block, without a choice among candidates.",
)
@click.option("--save", metavar="FOLDER", help="Save the edited model here, as save_pretrained does, with edit.json.")
@click.option("--dry-run", is_flag=True, help="Only list which tensors an edit reaches, and what it cannot reach.")
@click.option(
    "--at",
    multiple=True,
    metavar="SITE",
    help="Edit only here (embed, 'attention 3', 'mlp 3'; more than once). Default: everything that writes.",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "exact", "nullspace"]),
    default="auto",
    show_default=True,
    help="exact equals the hook; nullspace is for models with a norm behind sub-layers; auto: exact where it exists.",
)
@click.option("--strength", default=1.0, show_default=True, help="1 removes, less leaves a part, 2 is a reflection.")
@click.option("--norm-preserving", is_flag=True, help="Every vector a tensor can write keeps its length.")
@click.option(
    "--prompts",
    multiple=True,
    metavar="SOURCE",
    help="marked (invented words, for the organisms), " + PROMPTS_HELP + " The harmful category is called risk, unsafe "
    "or harmful, the harmless one safe, benign or harmless.",
)
@click.option("--family", metavar="COLUMN", help="Column that names the family of a prompt, as a pair of twins.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Draw this many prompts of each kind.")
@click.option(
    "--refusal-opening",
    "refusal_openings",
    multiple=True,
    metavar="TOKEN",
    help="A token that opens a refusal, as I or Sorry; without it they are derived from the extract split.",
)
@click.option("--revision", help="Revision of hub models (branch, tag or commit).")
@click.option("--dtype", metavar="DTYPE", help="float32, bfloat16, float16 or float64 (default: the checkpoint's).")
@click.option(
    "--template",
    type=click.Choice(["auto", "chat", "raw"]),
    default="auto",
    show_default=True,
    help="How prompts are put to the model: auto takes the chat template where there is one.",
)
@click.option(
    "--controls",
    "n_controls",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Random directions that are removed for comparison.",
)
@click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Resamples of clusters of near-duplicates behind each interval. 0: no interval.",
)
@common
def abliterate(**asked: Any) -> None:  # noqa: ANN401
    """Take a direction out of everything a model writes, in its weights, and measure what that did.

    Every tensor that writes into the residual stream is found and edited (token and position tables, attention, MLP,
    experts, biases; a tied output head gets its own copy); random tokens then show that nothing is left, and that the
    edited model equals the hook it stands for. Models in which an edit cannot do that are refused, with what is out of
    its reach. The table has the refusal score before and after on prompts that chose nothing, the KL over 30 tokens on
    harmless ones, random directions beside both, and the audit.

    Without --model it runs on the packaged organism refusal-1, a tiny synthetic model with one planted direction.
    """
    from lmprobe.prompts import read_prompts

    out, as_json, sources, family = (asked.pop(name) for name in ("out", "as_json", "prompts", "family"))
    asked["at"] = asked["at"] or "writes"
    prompts = read_prompts(sources, family=family) if sources else None
    result = analysis_of("lmprobe.abliteration:abliterate")(**asked, prompts=prompts, command=command_line())
    show(result, out=out, as_json=as_json, quiet=asked["quiet"])
