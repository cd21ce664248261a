"""The sha256 of files, with marks along the way that tell where a file differs from what it was."""

import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from fuse.checkpoint import LEGACY
from fuse.engine.direct import open_direct
from fuse.safetensors_header import TensorEntry
from fuse.team import Stopped

PIECE = 1 << 24  # bytes between two looks at `stop`
MARK = 8  # hex digits of one mark
RECORD, CARD = "fuse.json", "README.md"  # the record itself, and what `fuse eval` adds to


@dataclass(frozen=True)
class Digest:
    """The sha256 of a file, and its marks: the first 8 hex digits of the sha256 up to each of its places."""

    sha256: str
    marks: str


UNHASHED = Digest("", "")


def in_order(entries: Iterable[TensorEntry]) -> list[TensorEntry]:
    """The tensors of one file as they lie in it."""
    return sorted(entries, key=lambda entry: (entry.begin, entry.end))


def ends_of(entries: Iterable[TensorEntry]) -> list[int]:
    """The places of a safetensors file that get a mark: where its header ends, and where each tensor does."""
    ordered = in_order(entries)
    return [ordered[0].begin, *(entry.end for entry in ordered)]


def file_digest(
    path: Path, ends: Sequence[int], stop: Event, *, direct: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Digest:  # fmt: skip
    """Read a file once; Stopped where it is called off.

    ends: places in bytes, ascending. A mark costs a copy of the running hash, and no second one. The first mark that
    is another one tells between which two places the file first differs: our choice, where a hash of every tensor
    would cost as much as the whole. direct: read past the page cache, where that can be. progress: called with the
    bytes read since the last call.
    """
    handle = open_direct(path, os.O_RDONLY) if direct else -1
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if handle < 0 else handle
    digest, marks = hashlib.sha256(), []
    try:
        with mmap.mmap(-1, PIECE) as buffer, memoryview(buffer) as view:
            place = 0
            while count := os.preadv(handle, [view], place):
                if stop.is_set():
                    raise Stopped
                done = 0
                while len(marks) < len(ends) and ends[len(marks)] <= place + count:
                    until = max(done, ends[len(marks)] - place)
                    digest.update(view[done:until])
                    marks.append(digest.copy().hexdigest()[:MARK])
                    done = until
                digest.update(view[done:count])
                place += count
                progress(count)
    finally:
        os.close(handle)
    return Digest(digest.hexdigest(), "".join(marks))


def sha256_of(data: bytes) -> str:
    """The sha256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a small file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def small_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder that holds no weights, by its path in it, in the order of names.

    Left out are hidden files and what lies in hidden folders, which are no part of a model; fuse.json, which is where
    they are recorded; and the model card, which `fuse eval` adds to.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        weights = path.suffix == ".safetensors" or any(path.match(pattern) for pattern in LEGACY)
        if not hidden and not weights and path.is_file() and inside.as_posix() not in (RECORD, CARD):
            found[inside.as_posix()] = file_sha256(path)
    return found
