"""Run one analysis and show its result: table or one JSON object on stdout, files where --out says, else stderr."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from probecore.results import Result


def analysis_of(name: str) -> "Callable[..., Result]":
    """Return the function MODULE:FUNCTION, imported only when a command runs it."""
    module, _, function = name.partition(":")
    found: Callable[..., Result] = getattr(import_module(module), function)
    return found


def show(result: "Result", *, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Print the result and save it when a folder is given."""
    click.echo(result.to_json() if as_json else str(result))
    if out is not None:
        folder = result.save(out)
        if not quiet:
            click.echo(f"report: {folder / 'report.html'}", err=True)
