"""`lmprobe reproduce`: the claims of a publication, measured one by one, each with a verdict."""

from pathlib import Path

import click

from probecli.group import ProbeGroup
from probecli.lm_options import command_line, prompted
from probecli.options import common
from probecli.output import show


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
def terrain_post(
    models: dict[str, str] | None,
    null: str | None,
    prompts: tuple[str, ...],
    family: str | None,
    revision: str | None,
    tokens: int,
    template: str,
    permutations: int,
    bootstrap: int,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Every claim of the terrain post: measured, with a verdict and the artefact it could be.

    One row per claim: what the post says, what is measured for it, value, interval, p, and whether these data support
    it, contradict it or decide nothing, by rules fixed beforehand (docs/terrain-post.md). --out adds the artefacts
    measured beside each claim (one massive token, the null of alpha, coupling to the mean, tokens counted as n), the
    tables and the figures.

    By default the packaged organisms of planted strength, whose verdicts are known. The post's models are
    --model base=gpt2 --model partly=microsoft/phi-2 --model aligned=Qwen/Qwen2.5-1.5B.
    """
    from lmprobe.prompts import read_prompts
    from lmprobe.terrain_post import terrain_post as run

    result = run(
        models,
        read_prompts(prompts, family=family),
        null=null,
        max_new_tokens=tokens,
        template=template,  # type: ignore[arg-type]
        revision=revision,
        n_permutations=permutations,
        n_bootstrap=bootstrap,
        seed=seed,
        device=device,
        quiet=quiet,
        command=command_line(),
    )
    show(result, out=out, as_json=as_json, quiet=quiet)
