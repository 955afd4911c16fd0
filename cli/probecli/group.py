"""The click group behind both commands: our own errors become one line and exit status 1."""

from typing import Any

import click

from probecore.errors import ProbeError


class ProbeGroup(click.Group):
    """A group that shows a ProbeError as a message; any other error keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (click's own signature)
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except ProbeError as error:
            raise click.ClickException(" ".join(str(error).split())) from error
