"""One run at a time in a folder of results."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fuse.errors import MachineError, RecipeError


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made where it is not there, so that a second run into it is refused.

    The operating system lets go when the process ends, however it ends; nothing is left in the folder, and a folder
    that was made and got nothing is removed. Without `fcntl` (Windows) nothing is held.

    Raises RecipeError where another run holds it or it is no folder, MachineError where it cannot be made.
    """
    made = not folder.exists()
    if not made and not folder.is_dir():
        raise RecipeError("--out exists and is not a folder", where=folder)
    try:
        folder.mkdir(exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise MachineError(f"cannot be written ({error.strerror})", where=folder) from None
    try:
        _hold(handle, folder)
        yield
    finally:
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only when it is empty


def _hold(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RecipeError(
            "another run is writing into it", where=folder, hint="wait for it, or name another --out"
        ) from None
    except OSError:
        return  # a file system without locks
