"""What the commands of `lmprobe grok` share: their options, and how they answer."""

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from probecli.lm_options import command_line
from probecli.options import common
from probecli.output import analysis_of, show

if TYPE_CHECKING:
    from lmprobe.grokking.setting import Setting

F = TypeVar("F", bound=Callable[..., Any])

QUICK = click.option(
    "--quick", is_flag=True, help="Small task and model, minutes on two cores. Without it: the log's sizes, hours."
)
_JOBS = click.option("--jobs", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Processes on a CPU, one thread each. 0: one per core.")  # fmt: skip
_TRAINED_ONLY = click.option(
    "--trained-only",
    is_flag=True,
    help="Train nothing: report on the members that lie in the folder, finished or under way.",
)
cluster = click.option(
    "--cluster", metavar="ADDRESS",
    help="Train on the Ray cluster at this address (auto, ray://HOST:PORT, or local to start one here).",
)  # fmt: skip
_MEASURING = (
    click.option("--k-max", type=click.IntRange(min=1), default=64, show_default=True,
                 help="Directions removed at most; what survives all is printed as censored."),
    click.option("--after", type=click.IntRange(min=0), default=500, show_default=True,
                 help="Steps after the grok step at which members are compared."),
)  # fmt: skip


def running(command: F, seeds: int = 5) -> F:
    """Add --seeds --jobs --trained-only and the common options, received by the names of `Setting`, out and as_json."""
    many = click.option("--seeds", "n_seeds", type=click.IntRange(min=1), default=seeds, show_default=True,
                        help="Members of each condition, with seeds from --seed on.")  # fmt: skip
    return _with(common(command), many, _JOBS, _TRAINED_ONLY)


def experiment(command: F, seeds: int = 5) -> F:
    """Add --quick --cluster --k-max --after to what `running` adds; k_max and after go on by name."""
    return _with(running(command, seeds), QUICK, cluster, *_MEASURING)


def population(command: F) -> F:
    """Add what `experiment` adds, with as many seeds as a rank correlation over members needs."""
    return experiment(command, seeds=10)


def training(command: F) -> F:
    """Add --quick --cluster to what `running` adds."""
    return _with(running(command), QUICK, cluster)


def measuring(command: F) -> F:
    """Add --k-max --after to what `running` adds."""
    return _with(running(command), *_MEASURING)


def answer(analysis: str, asked: dict[str, Any]) -> None:
    """Run an analysis (MODULE:FUNCTION), print its result and save it where --out says, beside its members."""
    as_json, setting = asked.pop("as_json"), setting_of(asked)
    result = analysis_of(analysis)(setting, **asked)
    show(result, out=setting.folder, as_json=as_json, quiet=setting.quiet)


def setting_of(asked: dict[str, Any]) -> "Setting":
    """Take what every experiment is told out of the options of a command; what is left is the experiment's own."""
    from lmprobe.grokking.setting import Setting

    told = {field.name: asked.pop(field.name) for field in fields(Setting) if field.name in asked}
    return Setting(folder=asked.pop("out"), command=command_line(), **told)


def _with(command: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        command = option(command)
    return command
