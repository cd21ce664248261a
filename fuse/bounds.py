"""Work on what strangers wrote, held to seconds and memory."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fuse import process

_PAGES = Path("/proc/self/statm")  # Linux's; where it is missing, memory is not held


@contextlib.contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Raise TimeoutError when the block takes more seconds of the clock, MemoryError when it takes more bytes.

    Signals are the main thread's, so a block in another thread is not held. Memory is held in the process of the
    command line only: the limit is for all threads, and elsewhere they are somebody else's. A timer that was running
    goes on afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _late)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with _little_memory(memory) if process.OURS else contextlib.nullcontext():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)


def _late(_number: int, _frame: FrameType | None) -> NoReturn:
    raise TimeoutError


@contextlib.contextmanager
def _little_memory(more: int) -> Iterator[None]:
    """No more address space than this process has now and `more` bytes."""
    if not _PAGES.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(_PAGES.read_text().split()[0]) * resource.getpagesize() + more
    limits = [limit, *(one for one in (soft, hard) if one != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
