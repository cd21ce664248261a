"""fuse.handles: as many open files as are granted, and what is said where there are none left."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fuse import handles
from fuse.errors import CheckpointError, MachineError
from fuse.handles import SPARE, reason, spare_handles, unread

ALLOWED = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
NO_MORE = f"Too many open files: {ALLOWED:,} are allowed, `ulimit -n NUMBER` allows more"


def opened_now() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_command_takes_what_the_system_grants() -> None:
    """A shell's soft limit is lower than what it may have."""
    program = (
        "import resource as r; from fuse import handles; r.setrlimit(r.RLIMIT_NOFILE, (40, 90)); handles.take_all(); "
        "print(r.getrlimit(r.RLIMIT_NOFILE)); r.setrlimit(r.RLIMIT_NOFILE, (90, 90)); handles.take_all(); "
        "print(r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(90, 90)\n(90, 90)\n"


@pytest.mark.parametrize(
    ("number", "kind", "told"),
    [
        (errno.EMFILE, MachineError, NO_MORE),
        (errno.ENFILE, MachineError, "Too many open files in system of all programs together: end some"),
        (errno.ENOMEM, MachineError, "Cannot allocate memory"),
        (errno.EIO, CheckpointError, "Input/output error"),
    ],
)
def test_who_is_to_blame(number: int, kind: type, told: str) -> None:
    error = OSError(number, os.strerror(number), "a/file")
    assert reason(error) == told
    said = unread(error, "a/file")
    assert (type(said), str(said)) == (kind, f"a/file: cannot be read ({told})")


def test_an_error_without_a_number() -> None:
    assert reason(OSError("in words")) == "in words"


def test_some_are_put_by(tmp_path: Path) -> None:
    before = opened_now()
    with spare_handles(tmp_path) as spare:
        assert opened_now() == before + SPARE
        spare.release()
        spare.release()
        assert opened_now() == before


def test_none_are_left_to_put_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, opened = opened_now(), os.open, []

    def few(*given: object) -> int:
        if len(opened) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        opened.append(real(*given))  # pyright: ignore[reportArgumentType]
        return opened[-1]

    monkeypatch.setattr(handles.os, "open", few)
    with pytest.raises(MachineError) as caught, spare_handles(tmp_path):
        pass
    assert str(caught.value) == f"{tmp_path}: cannot be written ({NO_MORE})"
    assert opened_now() == before
