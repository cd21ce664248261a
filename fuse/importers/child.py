"""A file of PyTorch, opened in a process of its own (`fuse.importers.unpickle`), and its tensors mapped into this one.

What comes back from that process is a table, which is checked like any other input: the worst that a file can do to it
is to have it say something wrong about where numbers lie in that file.
"""

import mmap
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

import fuse
from fuse import strict_json
from fuse.errors import CheckpointError, MachineError
from fuse.importers import unpickle
from fuse.importers.contents import Contents

MAX_TABLE = 256 << 20
NOTHING = "nothing was written"


def unpickled(file: Path, room: Path | None = None) -> Contents:
    """The contents of a file of PyTorch.

    room: the folder whose disk takes what has to be copied, in a file without a name; where temporary files go by
    default. Raises CheckpointError for what is refused, breaks its reader or asks too much of it; MachineError where
    that process was killed or could not write.
    """
    with tempfile.TemporaryFile(dir=room) as table, tempfile.TemporaryFile(dir=room) as copy:
        seconds = unpickle.seconds_for(file.stat().st_size)
        ended = _wait(_start(file, table.fileno(), copy.fileno()), seconds)
        if ended is None or ended == -signal.SIGXCPU:
            raise CheckpointError(f"takes more than {seconds} s to be opened; {NOTHING}", where=file)
        if ended == -signal.SIGKILL:
            raise MachineError(f"the process that opened it was killed; {NOTHING}", where=file, hint="out of memory?")
        if ended < 0:
            told = signal.Signals(-ended).name
            raise CheckpointError(f"the process that opened it broke ({told}); {NOTHING}", where=file)
        if ended:
            raise MachineError(f"the process that opened it could not go on; {NOTHING}", where=file,
                               hint=f"is there room in {room or tempfile.gettempdir()}?")  # fmt: skip
        table.seek(0)
        told = strict_json.parse_object(table.read(MAX_TABLE), where=file)
        if "refused" in told:
            problem, hint = told["refused"]
            raise CheckpointError(problem, where=file, hint=hint)
        with file.open("rb") as source:
            places = {unpickle.IN_FILE: _mapped(source), unpickle.COPIED: _mapped(copy)}
        try:
            state = {row[0]: _tensor(row, places) for row in told["tensors"]}
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError):
            raise CheckpointError(
                f"its reader told nonsense about where its tensors lie; {NOTHING}", where=file
            ) from None
    return Contents(state, told["dropped"], told["args"])


def may_fork() -> bool:
    """A fork starts at once, and has what it needs where no other thread held a lock; else a new Python starts."""
    return sys.platform == "linux" and threading.active_count() == 1


def _start(file: Path, table: int, copy: int) -> int:
    own = os.getpid()
    if may_fork():
        if pid := os.fork():
            return pid
        unpickle.run(file, table, copy, own)
    for handle in (table, copy):
        os.set_inheritable(handle, True)
    home = str(Path(fuse.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    # -P: no module is taken from the working directory, which may be a stranger's
    given = (os.fsdecode(file.absolute()), str(table), str(copy), str(own))
    command = [sys.executable, "-P", "-m", unpickle.__name__, *given]
    return os.posix_spawn(sys.executable, command, {**os.environ, "PYTHONPATH": paths})


def _wait(pid: int, seconds: float) -> int | None:
    """The exit code, or minus the signal that ended it; None where it did not end in time. It has ended afterwards."""
    done, status, pause, end = 0, 0, 0.001, time.monotonic() + seconds
    try:
        while not done and time.monotonic() < end:
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
            done, status = os.waitpid(pid, os.WNOHANG)
    finally:
        if not done:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if done else None


def _mapped(file: IO[bytes]) -> torch.Tensor:
    """The bytes of a file, mapped: pages are read when they are used, and changes stay in memory."""
    if not os.fstat(file.fileno()).st_size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)


def _tensor(row: list[Any], places: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The tensor of a row. Raises any of several errors for a row that no honest reader writes."""
    name, word, shape, stride, begin, place = row
    dtype = getattr(torch, word)
    if not isinstance(name, str) or not isinstance(dtype, torch.dtype) or len(shape) != len(stride):
        raise ValueError
    if any(type(n) is not int or n < 0 for n in (*shape, *stride, begin)):
        raise ValueError
    end = begin + unpickle.extent(shape, stride, dtype.itemsize)
    if end > len(places[place]):
        raise ValueError
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    held = places[place][begin:end]
    held = held if held.storage_offset() % dtype.itemsize == 0 else held.clone()
    return held.view(dtype).as_strided(shape, stride, held.storage_offset() // dtype.itemsize)
