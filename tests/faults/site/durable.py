"""Which changes under a folder no fsync has promised yet, and how to undo them as a power cut may.

Files are known by their inode, since the folder they lie in is renamed. It is stricter than most file systems are: an
entry of a folder counts as written only when the folder itself was synced.
"""

# It runs beneath pathlib.
# ruff: noqa: PTH104, PTH108, PTH112, PTH116, PTH118, PTH120
import ctypes
import os
import shutil
import threading

_lock = threading.Lock()
_written: set[int] = set()  # inodes of files with bytes that the disk may not have
_entries: list[tuple[int, str, list[str]]] = []  # what changed in a folder: its inode, how, one path or two
DATA = {"open", "write", "pwrite", "pwritev", "writev", "copy_file_range", "sendfile", "ftruncate", "truncate",
        "posix_fallocate"}  # fmt: skip


def after(name: str, paths: list[str], done: object) -> None:
    """A call succeeded."""
    with _lock:
        if name in {"fsync", "fdatasync"}:
            _written.discard(_inode(paths[0]))
            _entries[:] = [one for one in _entries if one[0] != _inode(paths[0])]
        elif name == "open" and os.stat(paths[0]).st_size == 0:
            _note("made", paths[:1])
            _written.add(_inode(paths[0]))
        elif name in {"mkdir", "link", "symlink"}:
            _note("made", paths[-1:])
        elif name in {"rename", "replace", "exchange"}:
            _note(name, paths)
        elif name in DATA - {"open"}:
            _written.add(_inode(paths[-1]))


def undo(root: str, how: str) -> None:
    """Take back what is not promised, the last first."""
    with _lock:
        for path in _files(root):
            if os.stat(path).st_ino in _written:
                size = os.stat(path).st_size
                os.truncate(path, 0)
                if how == "zeros":
                    os.truncate(path, size)
        for _, kind, paths in reversed(_entries):
            _undo(kind, paths)


def _undo(kind: str, paths: list[str]) -> None:
    if kind == "exchange":
        ctypes.CDLL(None).syscall(316, -100, os.fsencode(paths[0]), -100, os.fsencode(paths[1]), 2)  # x86-64
    elif kind != "made":
        if os.path.lexists(paths[1]) and not os.path.lexists(paths[0]) and os.path.isdir(os.path.dirname(paths[0])):
            os.rename(paths[1], paths[0])
    elif os.path.isdir(paths[0]):
        shutil.rmtree(paths[0])
    elif os.path.lexists(paths[0]):
        os.unlink(paths[0])


def _note(kind: str, paths: list[str]) -> None:
    _entries.append((_inode(os.path.dirname(paths[-1])), kind, paths))


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _files(root: str) -> list[str]:
    return [os.path.join(at, name) for at, _, names in os.walk(root) for name in names]
