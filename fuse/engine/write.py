"""One safetensors file: the header is known from the plan before the first tensor is, so any tensor may come first."""

import errno
import json
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock

from fuse.digests import UNHASHED, Digest, file_digest
from fuse.engine.direct import Stretch, open_direct, write_all
from fuse.plan import Row
from fuse.safetensors_header import DTYPE_BYTES
from fuse.team import Stopped

WORTH_DIRECT = 1 << 24  # bytes of a file
PIECE = 1 << 24  # bytes that are copied between two looks at `stop`
NO_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}


def stored_order(rows: Sequence[Row]) -> list[int]:
    """Positions of the rows in the order they are stored: wide dtypes first, so that every tensor is aligned."""
    return sorted(range(len(rows)), key=lambda i: -DTYPE_BYTES[rows[i].dtype])


def header_bytes(rows: Sequence[Row]) -> bytes:
    """The length and JSON header of a file that holds the rows one after another.

    The metadata has one key only: with more, other writers' order is random and files differ from run to run.
    """
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for row in rows:
        table[row.name] = {
            "dtype": row.dtype, "shape": list(row.shape), "data_offsets": [position, position + row.nbytes]
        }  # fmt: skip
        position += row.nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class ShardFile:
    """A file of known size; threads write their tensors where they belong, in any order.

    It is made at the first write, with room for all of it. `finish` once every row is written. direct: write past the
    page cache, where the file system can.
    """

    def __init__(self, path: Path, rows: Sequence[Row], *, direct: bool = False) -> None:
        self.path, self.rows = path, rows
        self._wants_direct, self._direct = direct, -1
        self._header = header_bytes(rows)
        self._starts: dict[str, int] = {}
        position = len(self._header)
        self._ends = [position]
        for row in rows:
            self._starts[row.name] = position
            position += row.nbytes
            self._ends.append(position)
        self.size, self._handle, self._lock = position, -1, Lock()  # size: bytes of the file

    def write(self, row: Row, position: int, data: memoryview) -> None:
        """Bytes of a row, from byte `position` of it on."""
        write_all(self._open(), data, self._starts[row.name] + position)

    def stretch(self, row: Row, buffer: mmap.mmap) -> Stretch:
        """What takes a whole row front to back. buffer: the thread's own, of `direct.SIZE` bytes."""
        handle = self._open()
        return Stretch(self._direct, handle, self._starts[row.name], buffer)

    def copy(self, row: Row, source: int, begin: int, data: memoryview, stop: Event) -> None:
        """All bytes of a row, as they stand in another open file from byte `begin` on; by the kernel where it can.

        data: the same bytes in memory, for file systems between which it cannot.
        """
        handle, done, size = self._open(), 0, row.nbytes
        try:
            while done < size:
                if stop.is_set():
                    raise Stopped
                place = self._starts[row.name] + done
                count = os.copy_file_range(source, handle, min(PIECE, size - done), begin + done, place)
                if count == 0:
                    break
                done += count
        except OSError as error:
            if error.errno not in NO_COPY:
                raise
        for at in range(done, size, PIECE):
            if stop.is_set():
                raise Stopped
            self.write(row, at, data[at : at + PIECE])

    def finish(self, stop: Event, *, hashed: bool, sync: bool) -> Digest:
        """Close the file; its sha256 where `hashed`. sync: wait until the disk has it."""
        handle = self._open()
        digest = file_digest(self.path, self._ends, stop, direct=self._direct >= 0) if hashed else UNHASHED
        if sync:
            os.fsync(handle)
        self.close()
        return digest

    def close(self) -> None:
        with self._lock:
            for handle in (self._handle, self._direct):
                if handle >= 0:
                    os.close(handle)
            self._handle = self._direct = -1

    def _open(self) -> int:
        with self._lock:
            if self._handle < 0:
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                _reserve(self._handle, self.size)
                os.pwrite(self._handle, self._header, 0)
                if self._wants_direct and self.size >= WORTH_DIRECT:
                    self._direct = open_direct(self.path, os.O_WRONLY)
            return self._handle


def _reserve(handle: int, size: int) -> None:
    """Room on the disk, so that a full one is seen now; file systems that cannot reserve get the size alone."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
        os.ftruncate(handle, size)
