"""A local copy of a far file, filled where it was asked for: of its full size, with holes.

`.NAME.ranges` beside it says what is there, a line "begin end;" each, written once the disk has those bytes. It is made
before the file and removed when nothing is missing, so a file without it is whole. Whoever makes, fills, closes or
discards a file takes turns with others (`fuse.stores.turns`).
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TypeAlias

from fuse import interruption
from fuse.errors import CheckpointError, MachineError
from fuse.handles import reason
from fuse.team import ended

PIECE = 1 << 24  # bytes of one request
GAP = 1 << 20  # bytes that are fetched rather than asked around
THREADS = 8
UNCHANGED = (0, 0)  # times of a file that fills up: what is there of it does not change
LINE = re.compile(r"^(\d+) (\d+);$", re.MULTILINE)  # one that a killed run left half written is none

Range: TypeAlias = tuple[int, int]  # [begin, end)


def note_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.ranges")


def present(file: Path) -> list[Range] | None:
    """What is there of a file, in order and without touching ranges; None for a whole file."""
    try:
        text = note_of(file).read_text()
    except FileNotFoundError:
        return None
    return joined((int(begin), int(end)) for begin, end in LINE.findall(text))


def check_there(file: Path, ranges: Sequence[Range] | None, begin: int, end: int) -> None:
    """CheckpointError for a range that lies in a hole; ranges as `present` has them."""
    if ranges is not None and missing(ranges, [(begin, end)]):
        raise CheckpointError(f"bytes {begin:,} to {end:,} were not fetched from the store", where=file)


def joined(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """The same bytes in ascending ranges, those not further apart than the gap made one."""
    found: list[Range] = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1] + gap:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def missing(there: Sequence[Range], wanted: Iterable[Range]) -> list[Range]:
    """What of the wanted ranges is not there."""
    found: list[Range] = []
    for begin, end in joined(wanted):
        at = begin
        for first, last in there:
            if last > at and first < end:
                if first > at:
                    found.append((at, first))
                at = last
        if at < end:
            found.append((at, end))
    return found


def pieces(ranges: Iterable[Range]) -> list[Range]:
    """Ranges as requests: neighbours together, none longer than PIECE."""
    return [
        (at, min(at + PIECE, end)) for begin, end in joined(ranges, GAP) for at in range(begin, end, PIECE)
    ]  # fmt: skip


def here(file: Path, size: int) -> list[Range]:
    """What is there of a file of this size; nothing where it was not made."""
    if not file.exists():
        return []
    ranges = present(file)
    return [(0, size)] if ranges is None else ranges


def prepare(file: Path, size: int) -> list[Range]:
    """The file, made where it is not there: all holes. What is there of it."""
    if not file.exists():
        note_of(file).write_text("")  # whatever it said of an earlier one
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            if os.fstat(handle).st_size != size:
                os.ftruncate(handle, size)
            os.utime(handle, ns=UNCHANGED)
        finally:
            os.close(handle)
    return here(file, size)


def fill(
    file: Path, wanted: Sequence[Range], get: Callable[[int, int], bytes], progress: Callable[[int], None]
) -> None:
    """Fetch ranges into a prepared file, several at once; what has come stays when one fails.

    get: the bytes of a range, from several threads. progress: called with the bytes that came.
    """

    telling = Lock()

    def bring(begin: int, end: int) -> None:
        data = get(begin, end)
        if len(data) != end - begin:
            raise CheckpointError(f"bytes {begin:,} to {end:,} came back as {len(data):,} bytes", where=file)
        put(file, begin, data)
        with telling:
            progress(len(data))

    with interruption.held():
        pool = ThreadPoolExecutor(THREADS, "fetch")
        try:
            for job in ended([pool.submit(bring, begin, end) for begin, end in pieces(wanted)]):
                job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a store may not answer for long


def put(file: Path, begin: int, data: bytes) -> None:
    """Write at a place of the file, and note it once the disk has it.

    A note that is gone is not made again: the file is whole by now, and a note would make holes of it.
    """
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            view, place = memoryview(data), begin
            while view:
                written = os.pwrite(handle, view, place)
                view, place = view[written:], place + written
            os.utime(handle, ns=UNCHANGED)
            os.fdatasync(handle)
        finally:
            os.close(handle)
        _note(file, f"\n{begin} {begin + len(data)};")
    except OSError as error:
        raise MachineError(f"cannot be written ({reason(error)})", where=file) from None


def _note(file: Path, line: str) -> None:
    try:
        handle = os.open(note_of(file), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def close(file: Path, size: int) -> None:
    """Forget the note of a file that is whole."""
    if present(file) == [(0, size)]:
        note_of(file).unlink(missing_ok=True)


def discard(file: Path) -> None:
    file.unlink(missing_ok=True)
    note_of(file).unlink(missing_ok=True)
