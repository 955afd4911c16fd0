"""`lmprobe capture`: the states of prompts, layer by layer, on disk."""

from typing import Any

import click

from probecli.lm_options import answer_table, prompts_of_table
from probecli.options import common

AT_HELP = (
    "Which tokens: last, first, mean, 'mean without first' or all, of the prompt (nothing added), of generated text "
    "('all generated'), of a role ('mean role:user') or of a match ('last regex:kill|bomb')."
)


@click.command()
@prompts_of_table
@click.option("--at", default="last", show_default=True, metavar="SELECTOR", help=AT_HELP)
@click.option(
    "--layers",
    default=("all",),
    show_default="all",
    multiple=True,
    metavar="LAYER",
    help="embed, 'block 3', final, 'attention 3', 'mlp 3' (what a sub-layer adds), attention or mlp; repeat it.",
)
@click.option("--system", metavar="TEXT", help="A system message before every prompt; needs a chat template.")
@click.option(
    "--tokens", "max_new_tokens", type=click.IntRange(min=1), default=30, show_default=True,
    help="Most tokens to write, for generated tokens.",
)  # fmt: skip
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), default=4096, show_default=True,
    help="Padded tokens in a batch; halved where the device's memory runs out.",
)  # fmt: skip
@click.option("--deterministic", is_flag=True, help="One prompt at a time: a state then owes no bit to the others.")
@common
def capture(**asked: Any) -> None:  # noqa: ANN401
    """The residual states of prompts, layer by layer, as safetensors on disk.

    Writes into --out shard by shard and goes on where it was interrupted; a folder of another model, other prompts or
    other settings is refused. Columns of the prompts become labels, and probecore.store.load_activations reads the
    folder, so that any analysis can start from it. The table says for each layer how large the states are, whether one
    coordinate dominates them, and below which difference lies nothing but padding noise.

    Without --model it runs on the packaged organisms: tiny synthetic models with planted, known behaviour.
    """
    asked["layers"] = asked["layers"][0] if len(asked["layers"]) == 1 else asked["layers"]
    answer_table("lmprobe.capture_run:capture_prompts", asked, hand_on_out=True)
