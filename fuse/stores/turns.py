"""One run after another at a file of the cache, which several may share, on other machines too."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuse import interruption
from fuse.errors import MachineError
from fuse.handles import reason
from fuse.journal import NO_LOCKS

SECONDS_APART = 0.1  # of two looks whether it is our turn


@contextmanager
def turn(file: Path) -> Iterator[None]:
    """Wait until no other run is at the file, and keep others from it until the block ends.

    `.NAME.lock` beside it is held, and stays. The system lets go of it when the process ends, however it ends. On a
    file system without locks nothing is held: bytes are then fetched twice, and nothing worse (`sparse.put`).
    Raises MachineError where it cannot be written.
    """
    lock = file.with_name(f".{file.name}.lock")
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise MachineError(f"cannot be written ({reason(error)})", where=lock) from None
    try:
        while not _ours(handle, lock):
            interruption.check()
            time.sleep(SECONDS_APART)
        yield
    finally:
        os.close(handle)


def _ours(handle: int, lock: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise MachineError(f"cannot be locked ({reason(error)})", where=lock) from None
    return True
