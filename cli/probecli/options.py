"""The options every command has, as one decorator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_COMMON = (
    click.option("--seed", default=0, show_default=True, type=int, help="Seeds every use of chance."),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.",
    ),
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        help="Write result.json, table.csv, figures/ and report.html here.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."),
    click.option("--quiet", is_flag=True, help="No progress and no log on stderr."),
)


def common(command: F) -> F:
    """Add --seed --device --out --json --quiet; the command receives seed, device, out, as_json and quiet."""
    for option in reversed(_COMMON):
        command = option(command)
    return command
