"""Show one result: the table or one JSON object on stdout, files where --out says, everything else on stderr."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from probecore.results import Result


def show(result: "Result", *, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Print the result and save it when a folder is given."""
    click.echo(result.to_json() if as_json else str(result))
    if out is not None:
        folder = result.save(out)
        if not quiet:
            click.echo(f"report: {folder / 'report.html'}", err=True)
