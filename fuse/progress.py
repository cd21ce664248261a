"""Progress by bytes, on stderr: a bar in a terminal, a line per tenth elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

WORTH_SHOWING = 100 * 10**6  # bytes; less is done before a line is read


@contextmanager
def byte_progress(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with the bytes done since its last call."""
    if not shown or (total < WORTH_SHOWING and not sys.stderr.isatty()):
        yield lambda _: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.advance(task, done)
    else:
        yield _lines(total)


def _lines(total: int) -> Callable[[int], None]:
    done = told = 0

    def add(count: int) -> None:
        nonlocal done, told
        done += count
        tenth = 10 * done // max(total, 1)
        if tenth > told:
            told = tenth
            click.echo(f"{10 * tenth}% of {total / 1e6:,.1f} MB", err=True)

    return add
