"""Signals that end a command: Ctrl-C, SIGTERM, SIGHUP.

Python raises an interruption wherever it happens to be, and loses what is raised in a `__del__` or in a callback from
C. So it is remembered too, and work that goes on for long asks.
"""

import signal
import threading
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
    """Signals are remembered, and the first one is raised at the end of the block. What waits in it calls `check`.

    In a program of others, which has not called `listen`, that is so for Ctrl-C.
    """
    before, ours = len(_asked), _takes_interrupts()
    _holding.append(before)
    try:
        if ours:
            signal.signal(signal.SIGINT, _interrupt)
        yield
    finally:
        del _holding[-1:]
        asked = _asked[before:]
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            del _asked[before:]
    if not _holding and asked:
        _raise(asked[0])


@contextmanager
def heard() -> Iterator[None]:
    """A part of a `held` block in which signals are raised where they come, and first those that came before."""
    holding = _holding[:]
    try:
        _holding.clear()
        check()
        yield
    finally:
        _holding[:] = holding


def _takes_interrupts() -> bool:
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return default and threading.current_thread() is threading.main_thread()


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)
    if not _holding:
        _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(143)
