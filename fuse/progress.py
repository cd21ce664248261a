"""Progress by bytes or by count, on stderr: a bar in a terminal, a line per tenth elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

WORTH_SHOWING = 100 * 10**6  # bytes; less is done before a line is read
SECONDS_APART = 2.0


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


@contextmanager
def count_progress(
    total: int, name: str, things: str, *, shown: bool, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """A function to call with how many were done since its last call; `done` are from before.

    Outside a terminal a line says how far it is, after another tenth but not within seconds of the last line.
    """
    if shown and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=total, completed=done)
            yield lambda some: bar.advance(task, some)
    elif shown:
        yield _counted_lines(total, name, things, done)
    else:
        yield lambda _: None


def _counted_lines(total: int, name: str, things: str, done: int) -> Callable[[int], None]:
    told, last = 10 * done // max(total, 1), time.monotonic()

    def add(count: int) -> None:
        nonlocal done, told, last
        done += count
        tenth = 10 * done // max(total, 1)
        if tenth > told and done < total and time.monotonic() - last > SECONDS_APART:
            told, last = tenth, time.monotonic()
            click.echo(f"{name}: {done:,} of {total:,} {things}", err=True)

    return add
