"""Every number of the weights is finite. Files are read front to back through buffers, so any size fits in memory."""

import mmap
import os
from collections.abc import Callable
from threading import Event, local

import torch

from fuse import kernels
from fuse.engine.finite import is_finite
from fuse.engine.read import TORCH
from fuse.errors import CheckpointError, MachineError
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry
from fuse.sizes import counted
from fuse.team import Stopped, finished, team
from fuse.torch_threads import one_thread
from fuse.verify.headers import Weights
from fuse.verify.outcome import Outcome

PIECE = 1 << 23  # bytes that a thread holds at a time


def check_finite(weights: Weights, threads: int, progress: Callable[[int], None]) -> Outcome:
    """Look at every float tensor; what has another dtype is left unread.

    threads: how many tensors are read at once. progress: called with the bytes read since the last call, in this
    thread or another. Raises CheckpointError that names file, tensor, value and element.
    """
    floats = [entry for entry in weights.entries if entry.dtype in FLOAT_BYTES and entry.nbytes]
    numbers = sum(entry.nbytes // FLOAT_BYTES[entry.dtype] for entry in floats)
    kernels.load_for(numbers)
    stop, own = Event(), local()

    def enter() -> None:
        own.buffer = mmap.mmap(-1, PIECE)

    def look(entry: TensorEntry) -> None:
        _look(entry, own.buffer, stop, progress)

    with one_thread(), team(threads, stop, enter) as readers:
        for _ in finished([readers.submit(look, entry) for entry in floats], stop):
            pass
    return Outcome(f"{numbers:,} numbers in {counted(len(floats), 'tensor')}", counts={"numbers": numbers})


def _look(entry: TensorEntry, buffer: mmap.mmap, stop: Event, progress: Callable[[int], None]) -> None:
    dtype = TORCH[entry.dtype]
    try:
        handle = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MachineError(f"cannot be read ({error.strerror})", where=entry.file) from None
    try:
        for begin in range(entry.begin, entry.end, PIECE):
            if stop.is_set():
                raise Stopped
            count = min(PIECE, entry.end - begin)
            with memoryview(buffer) as whole, whole[:count] as view:
                if os.preadv(handle, [view], begin) != count:
                    raise CheckpointError("the file became shorter while it was read", where=entry.file)
            block = torch.frombuffer(buffer, dtype=dtype, count=count // dtype.itemsize)
            if not is_finite(block):
                at = int(torch.nonzero(~torch.isfinite(block)).flatten()[0])
                element = (begin - entry.begin) // dtype.itemsize + at
                raise CheckpointError(f"tensor {entry.name!r} holds {block[at].item()} at element {element:,}",
                                      where=entry.file)  # fmt: skip
            progress(count)
    finally:
        os.close(handle)
