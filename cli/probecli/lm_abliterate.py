"""`lmprobe abliterate`: a direction is taken out of a model's weights; with --k-max, directions 1 .. k by hooks."""

from typing import Any

import click
from click.core import ParameterSource

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

ONE_EDIT = ("direction", "block", "save", "dry_run", "at", "mode", "strength", "norm_preserving", "refusal_openings",
            "dtype", "n_controls")  # fmt: skip
SWEEP = ("contrast", "detector_name", "max_new_tokens", "n_random", "n_permutations")
"""Options of an edit of the weights, and those of a k-sweep; one cannot be given for the other."""


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
@click.option(
    "--k-max",
    type=click.IntRange(min=1),
    metavar="K",
    help="Edit nothing: remove the first k directions of a contrast by hooks, k = 0 .. K, and report refusal and "
    "capability against k, k@95 % and k@50 %, controls and ranks. Default models: refusal-1 and refusal-4.",
)
@click.option(
    "--contrast",
    type=click.Choice(["whitened", "anchored"]),
    default="whitened",
    show_default=True,
    help="With --k-max: harmful states minus the mean harmless one, in units of the harmless covariance or as is.",
)
@click.option(
    "--detector",
    "detector_name",
    default="markers",
    show_default=True,
    metavar="NAME_OR_FILE",
    help="With --k-max: what calls an answer a refusal (markers, openings, or a file with one phrase a line).",
)
@click.option(
    "--tokens",
    "max_new_tokens",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="With --k-max: most tokens of an answer. A model that refuses late needs more.",
)
@click.option(
    "--frames",
    "n_random",
    type=click.IntRange(min=0),
    default=99,
    show_default=True,
    help="With --k-max: random and covariance-matched frames behind each p. 0: no p-value.",
)
@click.option(
    "--permutations",
    "n_permutations",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="With --k-max: exchanges of labels behind the ranks.",
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
@twins
@limit
@openings
@revision
@click.option("--dtype", metavar="DTYPE", help="float32, bfloat16, float16 or float64 (default: the checkpoint's).")
@template
@click.option(
    "--controls",
    "n_controls",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Random directions that are removed for comparison.",
)
@cluster_bootstrap
@common
@click.pass_context
def abliterate(context: click.Context, /, **asked: Any) -> None:  # noqa: ANN401
    """Take a direction out of everything a model writes, in its weights, and measure what that did.

    Every tensor that writes into the residual stream is found and edited (token and position tables, attention, MLP,
    experts, biases; a tied output head gets its own copy); random tokens then show that nothing is left, and that the
    edited model equals the hook it stands for. Models in which an edit cannot do that are refused, with what is out of
    its reach. The table has the refusal score before and after on prompts that chose nothing, the KL over 30 tokens on
    harmless ones, random directions beside both, and the audit.

    With --k-max nothing is edited: the first k directions of a contrast of harmful and harmless prompts are removed
    by hooks, k = 0 .. K, to see how many carry refusal (docs/k-sweeps.md).

    Without --model it runs on the packaged organism refusal-1, a tiny synthetic model with one planted direction.
    """
    from lmprobe.prompts import read_prompts

    out, as_json, sources, family = (asked.pop(name) for name in ("out", "as_json", "prompts", "family"))
    _refuse_mixture(context, ONE_EDIT if asked["k_max"] is not None else SWEEP)
    prompts = read_prompts(sources, family=family) if sources else None
    if asked["k_max"] is not None:
        sweep = {name: value for name, value in asked.items() if name not in (*ONE_EDIT, "model")}
        result = analysis_of("lmprobe.k_sweep:k_sweep")(
            asked["model"], **sweep, prompts=prompts, command=command_line()
        )
    else:
        edit = {name: value for name, value in asked.items() if name not in (*SWEEP, "k_max")}
        edit["at"] = edit["at"] or "writes"
        result = analysis_of("lmprobe.abliteration:abliterate")(**edit, prompts=prompts, command=command_line())
    show(result, out=out, as_json=as_json, quiet=asked["quiet"])


def _refuse_mixture(context: click.Context, others: tuple[str, ...]) -> None:
    """Refuse options of the other kind of run where they were given."""
    given = [
        option.opts[-1]
        for option in context.command.params
        if option.name in others and context.get_parameter_source(option.name) == ParameterSource.COMMANDLINE
    ]
    if given:
        which = "edits the weights and" if others is ONE_EDIT else "belongs to a k-sweep and"
        verb = "leave out --k-max" if others is ONE_EDIT else "add --k-max"
        raise click.UsageError(f"{', '.join(given)} {which} cannot be used here: {verb}, or the option")
