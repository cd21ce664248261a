"""Open files: how many this process may have, some put by for tidying up, and what to say where none are left."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fuse.errors import CheckpointError, MachineError

MOST = 1 << 16  # enough for every file of the largest families at once
SPARE = 5  # to remove a folder takes two for each folder inside it
NONE_LEFT = {errno.EMFILE, errno.ENFILE}
OF_MACHINE = NONE_LEFT | {errno.ENOMEM}


def take_all() -> None:
    """Let this process open as many files as the system grants it; shells begin with 1,024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def reason(error: OSError) -> str:
    """Why the system refused, in words; where no more files can be open, how many may be and how to have more."""
    told = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        import resource

        return f"{told}: {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} are allowed, `ulimit -n NUMBER` allows more"
    if error.errno == errno.ENFILE:
        return f"{told} of all programs together: end some"
    return told


def unread(error: OSError, where: object) -> CheckpointError | MachineError:
    """The error to raise for an input that cannot be read: where handles or memory are used up it is not at fault."""
    kind = MachineError if error.errno in OF_MACHINE else CheckpointError
    return kind(f"cannot be read ({reason(error)})", where=where)


@dataclass
class Spare:
    """Open files that are of no use but to be closed: what is removed then finds handles."""

    handles: list[int] = field(default_factory=list)

    def release(self) -> None:
        """Close them; a second time does nothing."""
        while self.handles:
            os.close(self.handles.pop())


@contextmanager
def spare_handles(folder: Path) -> Iterator[Spare]:
    """Some open files, until they are released or the block ends.

    folder: what is to be written in. MachineError where there are not as many left.
    """
    spare = Spare()
    try:
        _open(spare, folder)
        yield spare
    finally:
        spare.release()


def _open(spare: Spare, folder: Path) -> None:
    try:
        for _ in range(SPARE):
            spare.handles.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise MachineError(f"cannot be written ({reason(error)})", where=folder) from None
