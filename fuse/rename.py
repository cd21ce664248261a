"""A finished folder put into its place by one rename."""

import ctypes
import errno
import os
from pathlib import Path

NO_REPLACE, EXCHANGE = 1, 2  # flags of Linux's renameat2
AT_FDCWD = -100
NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}  # kernels and file systems without such renames


def put(new: Path, target: Path) -> None:
    """Rename a folder to a name that is free. Raises FileExistsError where it is not."""
    try:
        renameat2(new, target, NO_REPLACE)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        new.rename(target)


def exchange(new: Path, target: Path, old: Path) -> None:
    """Put a folder into the place of another, which is called `new` or `old` afterwards.

    At any moment the target is the one or the other; for file systems that cannot do that, for a moment neither, and
    what was there is called `old`.
    """
    try:
        renameat2(new, target, EXCHANGE)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        target.rename(old)
        new.rename(target)


def renameat2(old: Path, new: Path, flags: int) -> None:
    """Linux's renameat2(2). Raises OSError, ENOSYS where the system has none."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(new)) from None
    if call(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(new))
