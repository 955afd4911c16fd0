"""Progress of long work, on stderr: a bar on a terminal, one line per stage elsewhere, nothing when quiet.

>>> list(progress([1, 2, 3], "counting", quiet=True))
[1, 2, 3]
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], description: str, *, total: int | None = None, quiet: bool = False) -> Iterator[T]:
    """Yield the items and show how many are done; `total` where the iterable does not know its length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with meter(total, description, quiet=quiet) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def meter(total: int | None, description: str, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many more are done; `total` may be None when it is not known."""
    if quiet:
        yield lambda _: None
    elif not sys.stderr.isatty():
        print(description if total is None else f"{description}: {total}", file=sys.stderr, flush=True)
        yield lambda _: None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda done: bar.advance(task, done)
