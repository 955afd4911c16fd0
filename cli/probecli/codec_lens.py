"""`codecprobe lens`: what each layer of a Qwen3-TTS talker would say, and where an instruction changes that."""

from typing import Any

import click

from probecli.kept import answer
from probecli.options import keeping


@click.command("lens")
@click.option(
    "--model",
    help="Folder or hub name of Qwen3-TTS CustomVoice or VoiceDesign, 1.7B. Needed: no talker is packaged.",
)
@click.option(
    "--style",
    "style",
    multiple=True,
    help='How to speak, for example "Speak in a sad, slow voice." Repeat it for more wordings of the same style.',
)
@click.option(
    "--neutral",
    "neutral",
    multiple=True,
    help="An instruction that asks for nothing special; repeat it, at least 3 times. The frames are spoken under the "
    "first, the others are compared. Default: 24 packaged ones.",
)
@click.option("--text", "texts", multiple=True, help="What is spoken; repeat it. Default: 8 packaged short sentences.")
@click.option("--language", default="English", show_default=True, help="Language of the texts, as the model names it.")
@click.option("--speaker", help="Voice of a CustomVoice model (default: its first).")
@click.option(
    "--frames",
    "max_frames",
    type=click.IntRange(min=2),
    default=50,
    show_default=True,
    help="Frames of 80 ms that are generated of each text, at most.",
)
@click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(min=0),
    default=2000,
    show_default=True,
    help="Resamples of texts behind the interval of the peak. 0: no interval.",
)
@keeping
def lens(**asked: Any) -> None:  # noqa: ANN401
    """Which layers of a Qwen3-TTS talker an instruction changes.

    A logit lens on every layer of the talker and of its code predictor, over frames of the released generation:
    entropy, distance to the final distribution, and how far a style instruction moves it beyond what another wording
    of a neutral instruction does. One row per stack and layer, with an interval over texts and a p over instructions;
    then where the effect peaks. Models that drop instructions (0.6B, Base) are refused.
    """
    answer("codecprobe.talker_lens:style_lens", asked)
