"""Stored tensors as torch tensors over memory-mapped files: nothing is read before it is used."""

import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock
from time import monotonic

import torch
from torch import Tensor

from fuse.adapters.update import Update
from fuse.engine.adapted import Adapted
from fuse.engine.finite import checked
from fuse.engine.views import Stored
from fuse.errors import CheckpointError
from fuse.handles import unread
from fuse.plan import Source
from fuse.safetensors_header import TensorEntry
from fuse.stores import sparse

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
LOOKS_APART = 0.01  # seconds; a look costs as much as a block's addition
# Copy on write, because torch wants a writable buffer; nothing is ever written. Without the second flag (Linux's, which
# Python names from 3.13 on) a file larger than the machine's memory could not be mapped.
PRIVATE = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)


class Reader:
    """Maps each file once, until it is left as a context manager or dropped. Threads may share it."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._handles: dict[Path, int] = {}
        self._there: dict[Path, list[sparse.Range] | None] = {}
        self._lock = Lock()
        weakref.finalize(self, _close, self._maps, self._handles)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._maps, self._handles)

    def tensor(self, source: Source) -> Tensor:
        """The stored tensor, in its own dtype and shape, without copying; with an adapter's change, where the source
        has one, in float32 or wider. Do not write to it."""
        return self._stored(source.tensor) if source.update is None else self._adapted(source, source.update).whole()

    def _stored(self, entry: TensorEntry) -> Tensor:
        dtype = TORCH[entry.dtype]
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        mapped = self._map(entry)
        self.check(entry)
        count = entry.nbytes // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=entry.begin).view(entry.shape)

    def check(self, entry: TensorEntry) -> None:
        """CheckpointError where the file of a mapped tensor ends before it does; to touch it would end the process."""
        if os.fstat(self._handles[entry.file]).st_size < entry.end:
            raise CheckpointError("the file became shorter while it was read", where=entry.file)

    def view(self, source: Source, stop: Event) -> Stored:
        """As `tensor`, flat, for a merge method; nothing is read, and no change computed, once `stop` is set."""
        values = self._adapted(source, source.update) if source.update else self._stored(source.tensor).view(-1)
        return Stored(source, values, stop, self.checking(source))

    def checking(self, source: Source) -> Callable[[], None]:
        """`check` of what the source reads, once it is mapped; not again within LOOKS_APART seconds."""
        entries = [one.tensor for one in (source, *source.parts) if one.tensor.nbytes]
        looked = -LOOKS_APART

        def check() -> None:
            nonlocal looked
            now = monotonic()
            if now - looked >= LOOKS_APART:
                looked = now
                for entry in entries:
                    self.check(entry)

        return check

    def _adapted(self, source: Source, update: Update) -> Adapted:
        """Raises CheckpointError where a number of the adapter is not finite."""
        read = {part.tensor.name: checked(self._stored(part.tensor), part) for part in source.parts}
        parts = {role: read[entry.name] for role, entry in update.parts}
        stored = self._stored(source.tensor)
        return Adapted(stored, update.kind, parts, update.scale, update.transposed, update.rows)

    def stored(self, source: Source) -> tuple[int, int, memoryview]:
        """An open file, the byte of it where the stored tensor begins, and the tensor's bytes."""
        entry = source.tensor
        mapped = self._map(entry)
        return self._handles[entry.file], entry.begin, memoryview(mapped)[entry.begin : entry.end]

    def _map(self, entry: TensorEntry) -> mmap.mmap:
        file = entry.file
        with self._lock:
            if file not in self._maps:
                try:
                    self._there[file] = sparse.present(file)
                    self._handles[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                    self._maps[file] = mmap.mmap(self._handles[file], 0, flags=PRIVATE)
                except OSError as error:
                    raise unread(error, file) from None
                except ValueError:  # an empty file cannot be mapped
                    raise CheckpointError("the file became shorter while it was read", where=file) from None
            sparse.check_there(file, self._there[file], entry.begin, entry.end)
            return self._maps[file]


def _close(maps: dict[Path, mmap.mmap], handles: dict[Path, int]) -> None:
    maps.clear()
    for handle in handles.values():
        os.close(handle)
    handles.clear()
