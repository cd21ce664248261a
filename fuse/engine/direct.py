"""Writing and reading past the page cache: what is written is on its way to the disk, and no memory is taken for it.

A merge's output is as large as a member and is not read again. Through the page cache it would take as much memory,
push the inputs out of it, and wait for the disk at the end all the same.
"""

import errno
import mmap
import os
from pathlib import Path

PAGE = 4096  # bytes; place, length and memory of direct transfers are multiples of it
SIZE = 1 << 22  # bytes of one transfer


def open_direct(path: Path, flags: int) -> int:
    """A handle for transfers of whole pages, or -1 where the file system has none."""
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_DIRECT)
    except (OSError, AttributeError):
        return -1


class Stretch:
    """Writes a stretch of a file front to back: whole pages directly, what is left at both ends through the page cache.

    direct: a handle of `open_direct`, or -1. plain: an ordinary handle of the same file. start: where it begins.
    buffer: SIZE bytes for this stretch alone, until `finish`.
    """

    def __init__(self, direct: int, plain: int, start: int, buffer: mmap.mmap) -> None:
        self._direct, self._plain, self._buffer = direct, plain, buffer
        self._base = start // PAGE * PAGE  # the place of the buffer's first byte
        self._from = self._at = start  # the first byte that is not in the file yet, and the next to come

    def write(self, data: memoryview) -> None:
        while data:
            fill = self._at - self._base
            some = data[: SIZE - fill]
            self._buffer[fill : fill + len(some)] = some
            self._at, data = self._at + len(some), data[len(some) :]
            if self._at == self._base + SIZE:
                self.finish()
                self._base = self._at

    def finish(self) -> None:
        """Write what is in the buffer."""
        first, last = -(-self._from // PAGE) * PAGE, self._at // PAGE * PAGE
        if self._direct < 0 or first >= last:
            first = last = self._at
        with memoryview(self._buffer) as view:
            for handle, begin, end in (
                (self._plain, self._from, first), (self._direct, first, last), (self._plain, last, self._at),
            ):  # fmt: skip
                self._put(handle, view[begin - self._base : end - self._base], begin)
        self._from = self._at

    def _put(self, handle: int, data: memoryview, place: int) -> None:
        try:
            write_all(handle, data, place)
        except OSError as error:
            if handle != self._direct or error.errno != errno.EINVAL:
                raise
            self._direct = -1  # a file system that wants larger pages
            write_all(self._plain, data, place)


def write_all(handle: int, data: memoryview, place: int) -> None:
    """All of the data at a place of a file."""
    while data:
        written = os.pwrite(handle, data, place)
        data, place = data[written:], place + written
