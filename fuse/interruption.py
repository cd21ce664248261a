"""Signals that end a command: Ctrl-C, SIGTERM, SIGHUP.

Python raises an interruption wherever it happens to be, and loses what is raised in a `__del__` or in a callback from
C. So it is remembered too, and work that goes on for long asks.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked: list[int] = []
_holding: list[int] = []


def listen() -> None:
    """From now on the signals unwind the command, so that it removes what it has half written."""
    _asked.clear()
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _interrupt)


def check() -> None:
    """Raise what the first signal since `listen` raised, KeyboardInterrupt or SystemExit; nothing if there was none."""
    if _asked:
        _raise(_asked[0])


@contextmanager
def held() -> Iterator[None]:
    """For a moment in which nothing waits: a signal is raised at the end of the block."""
    before = len(_asked)
    _holding.append(before)
    try:
        yield
    finally:
        _holding.pop()
    if not _holding and len(_asked) > before:
        _raise(_asked[before])


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)
    if not _holding:
        _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(143)
