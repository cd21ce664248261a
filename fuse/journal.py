"""What an unfinished output says of itself: a JSON line for each step done, in a file that its writer holds locked."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from fuse.errors import CheckpointError, RecipeError
from fuse.strict_json import parse_object

JOURNAL = "journal.jsonl"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # file systems without locks
LONGEST = 1 << 26  # bytes


@dataclass(frozen=True)
class Shard:
    """A finished weight file. sha256, marks: as a Digest has them, "" where it was not hashed. synced: whether the disk
    had it before the line. stamp: of the file then, () where it is not on this disk."""

    name: str
    bytes: int
    sha256: str
    marks: str
    synced: bool
    stamp: tuple[int, ...] = ()


class Journal:
    """The journal of a folder, locked until `close`. Threads may share it.

    head: what is being made, {} where that was not written yet, None where the file is no journal. shards: the finished
    files by name. complete: the inode of the finished output, once it was checked: it tells it from what it replaced.
    hashes: sha256 of inputs by path. sync: whether the disk has every line at once. shared: others may hold it so too;
    nothing is written to it then.
    Raises RecipeError where another process holds it, OSError where the disk fails.
    """

    def __init__(
        self, folder: Path, target: Path, name: str = JOURNAL, *, sync: bool = True, shared: bool = False
    ) -> None:  # fmt: skip
        self._lock, self._sync = Lock(), sync
        self._handle = _locked(folder / name, target, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        self.head: Mapping[str, Any] | None = {}
        self.shards: dict[str, Shard] = {}
        self.hashes: dict[str, str] = {}
        self.complete: int | None = None
        try:
            self._read(folder / name)
        except BaseException:
            self.close()
            raise

    def begin(self, head: Mapping[str, Any]) -> None:
        """The first line of a run: of what it makes, where that is not said yet, and who makes it."""
        if not self.head:
            self._write({"makes": dict(head)})
            self.head = head
        self.complete = None
        self._write({"run": {"pid": os.getpid(), "host": socket.gethostname()}})

    def add(self, shard: Shard) -> None:
        self._write({"shard": asdict(shard)}, shard)

    def add_hash(self, path: str, sha256: str) -> None:
        """Of an input."""
        self._write({"input": [path, sha256]})
        self.hashes[path] = sha256

    def lose(self, name: str) -> None:
        """A file that is not as `add` said is to be written again."""
        self._write({"lost": name})
        del self.shards[name]

    def finish(self, inode: int) -> None:
        self._write({"complete": inode})
        self.complete = inode

    def forget(self) -> None:
        """Empty it."""
        os.ftruncate(self._handle, 0)
        self.head, self.shards, self.hashes, self.complete = {}, {}, {}, None

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _write(self, line: Mapping[str, Any], shard: Shard | None = None) -> None:
        with self._lock:
            left = json.dumps(line, separators=(",", ":")).encode() + b"\n"
            while left:  # a disk that fills up takes a part
                left = left[os.write(self._handle, left) :]
            if shard:  # its line is there, though the disk may still fail
                self.shards[shard.name] = shard
            if self._sync:
                os.fsync(self._handle)

    def _read(self, path: Path) -> None:
        """Its whole lines; one that a killed writer left half written is cut off."""
        text = os.pread(self._handle, LONGEST, 0)
        whole = text.rfind(b"\n") + 1
        try:
            for line in text[:whole].splitlines():
                self._take(parse_object(line, where=path))
        except (CheckpointError, LookupError, TypeError, ValueError):
            self.head = None
            return
        if whole < len(text):
            os.ftruncate(self._handle, whole)

    def _take(self, line: Mapping[str, Any]) -> None:
        for key, value in line.items():
            if key == "makes":
                self.head = dict(value)
            elif not self.head:
                raise LookupError(key)  # of what?
            elif key == "shard":
                shard = _shard(**value)
                self.shards[shard.name] = shard
            elif key == "input":
                path, digest = value
                self.hashes[path] = digest
            elif key == "lost":
                self.shards.pop(value)
            elif key == "complete":
                self.complete = value
            elif key == "run":
                self.complete = None
            else:
                raise LookupError(key)


def _shard(name: str, bytes: int, sha256: str, marks: str, synced: bool, stamp: Sequence[int] = ()) -> Shard:
    """A shard of a journal, which may have been written by anybody. ValueError for what no run writes."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or "\0" in name or len(name) > 1000:
        raise ValueError(name)
    if type(bytes) is not int or not isinstance(sha256 + marks, str) or type(synced) is not bool:
        raise ValueError(name)
    if not isinstance(stamp, list | tuple) or any(type(part) is not int for part in stamp):
        raise ValueError(name)
    return Shard(name, bytes, sha256, marks, synced, tuple(stamp))


def _locked(path: Path, target: Path, lock: int) -> int:
    """A handle on the journal that no other process holds locked, or only with shared locks as this one."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, host = _holder(handle)
            os.close(handle)
            who = f" (process {pid} on {host})" if pid != "?" else ""
            raise RecipeError(f"another fuse is writing it{who}", where=target) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
            _refuse_living(handle, target)
        if _same(handle, path):
            return handle
        os.close(handle)  # its holder finished and removed it meanwhile


def _same(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _refuse_living(handle: int, target: Path) -> None:
    """Without locks: RecipeError unless the last writer was a process of this machine that has ended."""
    pid, host = _holder(handle)
    if pid == "?":
        return
    told = f"another fuse may be writing it (process {pid} on {host}; the file system has no locks)"
    hint = "if that has ended, remove the .partial folder beside it"
    if host != socket.gethostname():
        os.close(handle)
        raise RecipeError(told, where=target, hint=hint)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return
    except PermissionError:
        pass
    os.close(handle)
    raise RecipeError(told, where=target, hint=hint)


def _holder(handle: int) -> tuple[str, str]:
    """Process and host of the last run that a journal tells."""
    found = ("?", "?")
    for line in os.pread(handle, LONGEST, 0).splitlines():
        if line.startswith(b'{"run":'):
            try:
                run = json.loads(line)["run"]
                found = (str(int(run["pid"])), str(run["host"]))
            except (ValueError, LookupError, TypeError):
                continue
    return found
