"""`lmprobe grok`: small transformers that learn modular arithmetic, and what it takes to remove what they learned."""

from pathlib import Path
from typing import Any

import click

from probecli.group import ProbeGroup
from probecli.lm_grok_options import answer, experiment, measuring, population, training

FOLDER = "lmprobe.grokking"


@click.group(cls=ProbeGroup)
def grok() -> None:
    """How training makes a behaviour easy or hard to remove: models of modular arithmetic.

    Every experiment of the research log with seeds, intervals and controls. Members lie in the folder of --out (or in
    the cache) by the hash of their spec: a run that was stopped goes on, and experiments share what is trained alike.
    """


@grok.command()
@click.option(
    "--weight-decay",
    type=float,
    multiple=True,
    default=(1.0,),
    show_default=True,
    help="Decoupled weight decay of every parameter; give it more than once.",
)
@click.option("--layers", type=click.IntRange(min=1), help="Layers (default 2; quick 1).")
@click.option("--width", type=click.IntRange(min=8), help="Width (default 128; quick 64).")
@click.option("--modulus", "p", type=int, help="The prime p (default 97; quick 43).")
@click.option(
    "--ops", type=click.Choice(["add", "mul", "add+mul"]), default="add", show_default=True, help="What is learned."
)
@click.option("--fraction", type=float, help="Share of all inputs that is trained on (default .5; quick .6).")
@click.option("--batch", type=click.IntRange(min=1), help="Inputs of a step (default 512; quick 256).")
@click.option("--lr", type=float, help="Learning rate (default 0.001).")
@click.option("--init", help="normal:SD, fan-in or torch (default normal:0.02).")
@click.option("--norm", type=click.Choice(["pre", "post"]), help="Place of the layer norms (default pre).")
@click.option("--activation", type=click.Choice(["gelu", "relu"]), help="Of the MLP (default gelu).")
@click.option("--steps", type=click.IntRange(min=1), help="At most (default 50,000; quick 4,000).")
@click.option("--extra", type=click.IntRange(min=0), help="Steps that follow the grok step (default 1,000).")
@training
def train(ops: str, **asked: Any) -> None:  # noqa: ANN401
    """Train members and say when they memorised and when they grokked.

    By default the log's headline model: addition modulo 97, two layers of width 128, weight decay 1. Without --out the
    members lie in the cache; with it, `lmprobe grok abliterate FOLDER` measures them, and the same command again goes
    on where it was stopped.
    """
    from dataclasses import replace

    from lmprobe.grokking.plans import base

    names = ("layers", "width", "p", "fraction", "batch", "lr", "init", "norm", "activation", "steps", "extra")
    given = {name: value for name in names if (value := asked.pop(name)) is not None}
    asked["spec"] = replace(base(asked["quick"]), **given, ops=tuple(ops.split("+")))
    answer(f"{FOLDER}.abliterate:train_members", asked)


@grok.command()
@experiment
def sweep(**asked: Any) -> None:  # noqa: ANN401
    """Weight decay, share of the data and size: when members grok, and how many directions they survive.

    One axis at a time around one member (the log's 17 conditions, and other initialisations). Compared at the same
    number of steps after grokking, because every measure moves with it.
    """
    answer(f"{FOLDER}.sweep:sweep", asked)


@grok.command()
@click.argument("run", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--contrast",
    type=click.Choice(["class-mean", "pca", "head"]),
    default="class-mean",
    show_default=True,
    help="Whose directions are removed: class means, states, or the columns of the head.",
)
@measuring
def abliterate(**asked: Any) -> None:  # noqa: ANN401
    """Remove directions from the members of RUN, one after another, beside controls of the same size.

    RUN is a folder of `lmprobe grok train --out` or of any other experiment. Without it small members are trained at
    weight decays .1 and 1. k@95 is the first number of directions that costs 5 % of the accuracy; the curves, the
    random directions and whole frequencies stand in the tables of --out.
    """
    answer(f"{FOLDER}.abliterate:abliterate", asked)


@grok.command()
@experiment
def multitask(**asked: Any) -> None:  # noqa: ANN401
    """Addition and multiplication in one model, and each alone: overlap, and what killing one does to the other."""
    answer(f"{FOLDER}.two_operations:multitask", asked)


@grok.command()
@click.option(
    "--lambda",
    "weights",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    default=(0.1,),
    show_default=True,
    help="Weight of the loss after removal; give it more than once.",
)
@click.option(
    "--remove",
    "ks",
    type=click.IntRange(min=1),
    multiple=True,
    default=(10,),
    show_default=True,
    help="Directions that this loss removes; give it more than once.",
)
@experiment
def adversarial(**asked: Any) -> None:  # noqa: ANN401
    """Training against removal: over how many directions the loss after removal spreads what was learned.

    The loss asks for the answer also after the first class-mean directions are removed, every tenth step. Beside plain
    members stand members whose added loss removes random directions: what both do, the added loss does.
    """
    answer(f"{FOLDER}.two_operations:removal_resistant", asked)


@grok.command()
@experiment
def capacity(**asked: Any) -> None:  # noqa: ANN401
    """Two operations in models of several sizes: whether small ones learn them, and whether they entangle them."""
    answer(f"{FOLDER}.two_operations:capacity", asked)


@grok.command("batch-size")
@training
def batch_size(**asked: Any) -> None:  # noqa: ANN401
    """Batch sizes at fixed samples and fixed steps, and with weight decay in proportion to the batch.

    A small batch takes more steps and is decayed more often; the second arm tells the two apart.
    """
    answer(f"{FOLDER}.batch_size:batch_size", asked)


@grok.command()
@click.argument("run", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@population
def robustness(**asked: Any) -> None:  # noqa: ANN401
    """Whether geometry (k@95, rank) predicts how well a member withstands attacks on its input.

    A population of members is attacked in its embeddings (PGD); rank correlations over members, with intervals by seed,
    and within weight decay. RUN is a folder of members; without it 5 weight decays with --seeds seeds each are trained
    (--seeds 10: 50 members).
    """
    answer(f"{FOLDER}.robustness:robustness", asked)


@grok.command()
@click.argument("run", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@experiment
def trilemma(**asked: Any) -> None:  # noqa: ANN401
    """Separability, robustness and efficiency of every member on one plot.

    RUN is a folder of members; without it those of multitask and adversarial are trained, or taken from --out.
    """
    answer(f"{FOLDER}.trilemma:trilemma", asked)
