"""Files from strangers, opened so that a pipe, a device or a folder in a file's place is told and not waited for."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from fuse.errors import CheckpointError

NOT_PLAIN = "this is not a plain file"


def open_plain(path: Path) -> BinaryIO:
    """A regular file, opened for reading; links are followed.

    Raises CheckpointError where there is none or where it is something else, OSError where it may not be read.
    """
    if not path.exists():
        raise CheckpointError("the file is missing", where=path)
    if not path.is_file():
        raise CheckpointError(NOT_PLAIN, where=path)
    # what came in its place since is not waited for either
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(NOT_PLAIN, where=path)
    return os.fdopen(handle, "rb")


def read_plain(path: Path, max_bytes: int) -> bytes:
    """All bytes of a regular file of at most `max_bytes`, however large it says that it is; errors as `open_plain`."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(max_bytes + 1) if size <= max_bytes else b""
    if size > max_bytes or len(data) > max_bytes:
        told = max(size, len(data))
        raise CheckpointError(f"{told:,} bytes is more than the {max_bytes:,} that fuse reads", where=path)
    return data
