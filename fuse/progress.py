"""Progress by bytes or by count, on stderr: a bar in a terminal, a line per tenth elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from fuse import interruption
from fuse.sizes import duration_text, size_text

if TYPE_CHECKING:
    from rich.progress import Progress

WORTH_SHOWING = 100 * 10**6  # bytes; less is done before a line is read
SECONDS_APART = 2.0


def draws() -> bool:
    """Whether stderr is a terminal that can draw over what it shows."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def byte_progress(total: int, *, shown: bool, name: str = "") -> Iterator[Callable[[int], None]]:
    """A function to call with the bytes done since its last call. name: what is done, such as `merge`.

    In a terminal a bar with bytes, rate and time left; elsewhere the same in a line for each tenth.
    """
    if not shown or (total < WORTH_SHOWING and not draws()):
        yield lambda _: None
    elif draws():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        told = [TextColumn("{task.description}", markup=False)] if name else []
        columns = (*told, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task(name, total=total)
        with _drawn(bar):
            yield lambda done: bar.advance(task, done)
    else:
        yield _lines(total, name)


def _lines(total: int, name: str) -> Callable[[int], None]:
    done = told = 0
    began = time.monotonic()

    def add(count: int) -> None:
        nonlocal done, told
        done += count
        tenth = 10 * done // max(total, 1)
        if tenth > told:
            told = tenth
            click.echo(f"{name + ': ' if name else ''}{10 * tenth}% of {size_text(total)}{_rate(done)}", err=True)

    def _rate(done: int) -> str:
        seconds = time.monotonic() - began
        if seconds <= 0 or done <= 0:
            return ""
        left = f", {duration_text(seconds * (total - done) / done)} left" if done < total else ""
        return f", {size_text(int(done / seconds))}/s{left}"

    return add


@contextmanager
def count_progress(
    total: int, name: str, things: str, *, shown: bool, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """A function to call with how many were done since its last call; `done` are from before.

    Outside a terminal a line says how far it is and how long the rest takes, after another tenth but not within
    seconds of the last line.
    """
    if shown and draws():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        task = bar.add_task(name, total=total, completed=done)
        with _drawn(bar):
            yield lambda some: bar.advance(task, some)
    elif shown:
        yield _counted_lines(total, name, things, done)
    else:
        yield lambda _: None


@contextmanager
def _drawn(bar: "Progress") -> Iterator[None]:
    """A bar with a thread that draws it; no signal breaks into its beginning or its end, which mends the screen."""
    try:
        with interruption.held():
            bar.start()
        yield
    finally:
        with interruption.held():
            bar.stop()


def _counted_lines(total: int, name: str, things: str, done: int) -> Callable[[int], None]:
    before, began = done, time.monotonic()
    told, last = 10 * done // max(total, 1), began

    def add(count: int) -> None:
        nonlocal done, told, last
        done += count
        tenth = 10 * done // max(total, 1)
        if tenth > told and done < total and (now := time.monotonic()) - last > SECONDS_APART:
            told, last = tenth, now
            left = duration_text((now - began) * (total - done) / max(done - before, 1))
            click.echo(f"{name}: {done:,} of {total:,} {things}, {left} left", err=True)

    return add
