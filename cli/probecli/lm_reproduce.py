"""`lmprobe reproduce`: the claims of a publication, measured one by one, each with a verdict."""

from typing import Any

import click

from probecli.group import ProbeGroup
from probecli.lm_options import answer, prompted
from probecli.options import common


@click.group(cls=ProbeGroup)
def reproduce() -> None:
    """Test what others have claimed: one row per claim, with estimate, interval and verdict."""


def _roles(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for word in words:
        role, equals, name = word.partition("=")
        if not equals or not name or role in found:
            raise click.BadParameter(f"give ROLE=NAME_OR_FOLDER, every role once; got {word!r}")
        found[role] = name
    return found or None


@reproduce.command("terrain-post")
@click.option(
    "--model",
    "models",
    multiple=True,
    callback=_roles,
    metavar="ROLE=NAME_OR_FOLDER",
    help="The model of a role: base (the post's GPT-2), partly (Phi-2), aligned (Qwen2.5-1.5B). Three times.",
)
@click.option(
    "--null", metavar="NAME_OR_FOLDER", help="The base trained on without alignment: the floor of the strength."
)
@prompted
@common
def terrain_post(**asked: Any) -> None:  # noqa: ANN401
    """Every claim of the terrain post: measured, with a verdict and the artefact it could be.

    One row per claim: what the post says, what is measured for it, value, interval, p, and whether these data support
    it, contradict it or decide nothing, by the rules of docs/terrain-post.md. --out adds the artefacts
    measured beside each claim (one massive token, the null of alpha, coupling to the mean, tokens counted as n), the
    tables and the figures.

    By default the packaged organisms of planted strength, whose verdicts are known. The post's models are
    --model base=gpt2 --model partly=microsoft/phi-2 --model aligned=Qwen/Qwen2.5-1.5B.
    """
    answer("lmprobe.terrain_post:terrain_post", asked)
