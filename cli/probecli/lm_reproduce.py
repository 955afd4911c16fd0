"""`lmprobe reproduce`: the claims of a publication, measured one by one, each with a verdict."""

from typing import Any

import click

from probecli.group import ProbeGroup
from probecli.lm_grok_options import answer as answer_grok
from probecli.lm_grok_options import cluster, measuring
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


@reproduce.command("research-log")
@click.option("--full", is_flag=True, help="The log's own task and sizes: hours on a CPU. Resumes with the same --out.")
@click.option("--quick", is_flag=True, help="Small tasks and models (the default): minutes on two cores.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="PART",
    help="Run only sweep, multitask, adversarial, capacity, batch-size, robustness or trilemma; more than once.",
)
@measuring
@cluster
def research_log(full: bool, quick: bool, **asked: Any) -> None:  # noqa: ANN401
    """Every claim of the research log on grokking and removal: measured over seeds, with a verdict and its confounds.

    One row per claim: what the log says, what is measured for it, value and interval over seeds, and whether these
    members support it, contradict it or decide nothing, by the rules of docs/research-log.md. Members that are trained
    already (in --out, or the cache) are not trained again, so that a run that was stopped goes on. --trained-only gives
    the table of what there is so far.
    """
    if full and quick:
        raise click.UsageError("--full and --quick exclude each other")
    answer_grok("lmprobe.grokking.research_log:research_log", {**asked, "quick": not full})
