"""Faults at chosen calls that change files under one folder, in a process that runs the real `fuse`.

The environment says what happens, and is read at each call, so that a forked child may have its own:
FUSE_TEST_ROOT   the folder; calls elsewhere pass untouched
FUSE_TEST_LOG    a file outside it: a line for each call, and before them one with the process's id
FUSE_TEST_FAULT  ACTION:CALL:K[:ARGUMENT], several with spaces between; CALL is a name of CALLS, or `any` for each of
                 them; the K-th such call, from 1 on; `K+` is each from the K-th on
                 or `child`, for each line of the program's own that a process runs which the command has forked
                 or `lock`, for the moment after each lock of Python's own threads that the main thread takes
  kill            SIGKILL, before the call
  torn            half of the bytes of a write, then SIGKILL
  cut:...:HOW     what a power cut may do: all that no fsync has promised is undone, then SIGKILL. Files that were written
                  since are full of zeros (HOW `zeros`) or empty (`empty`), entries of folders are as before
  signal:...:NAME the process sends itself this signal and goes on
  sleep:...:S     the call takes S seconds more
  ENOSPC, EIO ... the call fails with this error
  change:...:DO=F what another program does to the file F meanwhile, see CHANGES
"""

# It runs beneath pathlib.
# ruff: noqa: PTH109, PTH115, PTH116, PTH118, PTH119
import builtins
import contextlib
import ctypes
import errno
import fcntl
import io
import os
import shutil  # before anything is replaced: it looks at these functions when it is imported
import signal
import sys
import threading
import time

import durable

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# name -> (where it is found, which arguments say what it changes: positions of paths or of open files)
CALLS = {
    "open": (os, (0,)), "mkdir": (os, (0,)), "rmdir": (os, (0,)), "unlink": (os, (0,)), "remove": (os, (0,)),
    "rename": (os, (0, 1)), "replace": (os, (0, 1)), "link": (os, (1,)), "symlink": (os, (1,)), "chmod": (os, (0,)),
    "truncate": (os, (0,)), "ftruncate": (os, (0,)), "posix_fallocate": (os, (0,)), "fsync": (os, (0,)),
    "fdatasync": (os, (0,)), "write": (os, (0,)), "pwrite": (os, (0,)), "pwritev": (os, (0,)), "writev": (os, (0,)),
    "copy_file_range": (os, (1,)), "sendfile": (os, (0,)), "flock": (fcntl, (0,)),
}  # fmt: skip
DATA = {"write", "pwrite"}  # calls that can be torn: the bytes are the second argument
_lock = threading.Lock()
_off: set[int] = set()  # threads whose calls are the fault itself
_counts: dict[str, int] = {}
_real: dict[str, object] = {}


def install() -> None:
    for name, (module, at) in CALLS.items():
        _real[name] = getattr(module, name)
        setattr(module, name, _wrapped(name, at, _real[name]))
        for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if _real[name] in able:
                able.add(getattr(module, name))
    _real["fork"] = os.fork
    os.fork = _fork
    _real["enter"] = threading.Condition.__enter__
    threading.Condition.__enter__ = _enter
    _real["io.open"] = io.open
    io.open = builtins.open = _open
    _real["attribute"] = ctypes.CDLL.__getattr__
    ctypes.CDLL.__getattr__ = _attribute


def _fork():
    pid = _real["fork"]()
    if not pid and ":child:" in os.environ.get("FUSE_TEST_FAULT", ""):
        log = os.environ.get("FUSE_TEST_LOG")
        handle = _real["open"](log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if log else -1
        _counts.pop("child", None)
        sys.settrace(lambda frame, event, _: _lines(handle) if _own(frame) else None)
    return pid


def _enter(lock):
    taken = _real["enter"](lock)
    if ":lock:" in os.environ.get("FUSE_TEST_FAULT", "") and threading.get_ident() == threading.main_thread().ident:
        _counts["lock"] = now = _counts.get("lock", 0) + 1
        _log("lock")
        _fault_at("lock", {"lock": now}, "lock", (), None)
    return taken


def _own(frame) -> bool:
    return f"{os.sep}fuse{os.sep}" in frame.f_code.co_filename


def _lines(log: int):
    """What is called at each line of a function; its log is open before the process gives up to open any."""

    def line(frame, event, _):
        if event == "line":
            _counts["child"] = now = _counts.get("child", 0) + 1
            if log >= 0:
                _real["write"](log, f"child {os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}\n".encode())
            _fault_at("child", {"child": now}, "child", (), None)
        return line

    return line


def _wrapped(name, at, real):
    def call(*args, **how):
        if name == "open" and not (args[1] if len(args) > 1 else how.get("flags", 0)) & WRITES:
            return real(*args, **how)
        paths = [_path(args[i], how.get("dir_fd") or how.get("src_dir_fd")) for i in at if i < len(args)]
        if not (paths and any(map(_counted, paths))):
            return real(*args, **how)
        _before(name, paths, args, real)
        done = real(*args, **how)
        durable.after(name, paths, done)
        return done

    return call


def _open(file, mode="r", *args, **how):
    if isinstance(file, int) or not set(mode) & set("wax+") or not _counted(path := _path(file, None)):
        return _real["io.open"](file, mode, *args, **how)
    _before("open", [path], (), None)
    done = _real["io.open"](file, mode, *args, **how)
    durable.after("open", [path], done.fileno())
    return done


def _attribute(library, name):
    function = _real["attribute"](library, name)
    if name != "renameat2":
        return function

    def renameat2(old_at, old, new_at, new, flags):
        paths = [_path(old, None), _path(new, None)]
        if any(map(_counted, paths)):
            try:
                _before("rename", paths, (), None)
            except OSError as error:
                ctypes.set_errno(error.errno)
                return -1
        done = function(old_at, old, new_at, new, flags)
        if done == 0 and any(map(_counted, paths)):
            durable.after("exchange" if flags & 2 else "rename", paths, 0)
        return done

    return renameat2


def _path(given, folder) -> str:
    if isinstance(given, int) or hasattr(given, "fileno"):
        handle = given if isinstance(given, int) else given.fileno()
        try:
            return os.readlink(f"/proc/self/fd/{handle}")
        except OSError:
            return ""
    start = _path(folder, None) if isinstance(folder, int) else os.getcwd()
    return os.path.normpath(os.path.join(start, os.fsdecode(given)))


def _counted(path: str) -> bool:
    root = os.environ.get("FUSE_TEST_ROOT", "")
    mine = bool(root) and (path == root or path.startswith(root + "/"))
    return mine and threading.get_ident() not in _off


def _before(name, paths, args, real) -> None:
    """Count and log the call, and do what is asked for before it."""
    with _lock:
        for key in (name, "any"):
            _counts[key] = _counts.get(key, 0) + 1
        now = dict(_counts)
        _log(" ".join([name, *(os.path.relpath(path, os.environ["FUSE_TEST_ROOT"]) for path in paths)]))
    _fault_at(name, now, "any", args, real)


def _fault_at(name, now, other, args, real) -> None:
    for one in os.environ.get("FUSE_TEST_FAULT", "").split():
        action, call, place, *argument = one.split(":", 3)
        reached = now[call] if call in {name, other} else 0
        if reached >= int(place[:-1]) if place.endswith("+") else reached == int(place):
            _fault(action, argument[0] if argument else "", name, args, real)


def _fault(action: str, argument: str, name: str, args, real) -> None:
    if name == "child" and action in {"kill", "signal"}:  # a process that may neither open a file nor call kill
        signal.raise_signal(getattr(signal, argument or "SIGKILL"))
        return
    if action == "torn" and name in DATA:
        real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
    if action == "cut":
        with _lock:  # where the other threads now wait
            _off.add(threading.get_ident())
            durable.undo(os.environ["FUSE_TEST_ROOT"], argument or "zeros")
    if action in {"kill", "torn", "cut"}:
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "signal":
        _log(f"sent {time.monotonic()}")
        os.kill(os.getpid(), getattr(signal, argument))
    elif action == "sleep":
        time.sleep(float(argument))
    elif action == "change":
        do, file = argument.split("=", 1)
        CHANGES[do](file)
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))


def _log(line: str) -> None:
    name = os.environ.get("FUSE_TEST_LOG")
    if not name:
        return
    handle = _real["open"](name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    first = b"" if os.fstat(handle).st_size else f"pid {os.getpid()}\n".encode()
    _real["write"](handle, first + os.fsencode(line).replace(b"\n", b"\\n") + b"\n")
    os.close(handle)


def _flip(file: str) -> None:
    """The last byte of the file is another."""
    with _real["io.open"](file, "r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)[0]
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))


def _rewrite(file: str) -> None:
    """Another file of the same bytes stands under the name."""
    shutil.copyfile(file, file + ".other")
    _real["rename"](file + ".other", file)


def _fill(file: str) -> None:
    """The disk is full."""
    handle = _real["open"](file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for size in (1 << 20, 1 << 12, 1):
        with contextlib.suppress(OSError):
            while _real["write"](handle, b"\0" * size):
                pass
    os.close(handle)


CHANGES = {
    "fill": _fill,
    "flip": _flip,
    "rewrite": _rewrite,
    "truncate": lambda file: _real["truncate"](file, 1000),
    "empty": lambda file: _real["truncate"](file, 0),
    "append": lambda file: _real["truncate"](file, os.stat(file).st_size + 1),
    "vanish": lambda file: _real["unlink"](file),  # noqa: PLW0108 - it is not there yet
}
