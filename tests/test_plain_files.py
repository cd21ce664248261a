"""Only regular files are opened, and nothing is waited for."""

import os
import socket
from pathlib import Path

import pytest

from fuse import plain_files
from fuse.errors import CheckpointError
from fuse.plain_files import open_plain, read_plain


def test_a_file_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_plain(tmp_path / name) as file:
            assert file.read() == b"12345"
        assert read_plain(tmp_path / name, 5) == b"12345"


def make(what: str, path: Path) -> None:
    match what:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))
        case "circle":
            path.symlink_to(path.name)


KINDS = {
    "pipe": plain_files.NOT_PLAIN, "folder": plain_files.NOT_PLAIN, "device": plain_files.NOT_PLAIN,
    "socket": plain_files.NOT_PLAIN, "circle": "the file is missing", "nothing": "the file is missing",
}  # fmt: skip


@pytest.mark.parametrize("what", KINDS)
def test_anything_else_is_refused_at_once(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(what, Path("x"))
    for read in (open_plain, lambda path: read_plain(path, 1 << 20)):
        with pytest.raises(CheckpointError) as error:
            read(Path("x"))
        assert str(error.value) == f"x: {KINDS[what]}"


def test_what_takes_a_files_place_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    with pytest.raises(CheckpointError, match=plain_files.NOT_PLAIN):
        open_plain(tmp_path / "pipe")


def test_a_name_that_is_none() -> None:
    with pytest.raises(CheckpointError, match="the file is missing"):
        open_plain(Path("a\0b"))


def test_no_more_than_allowed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"123456")
    with pytest.raises(CheckpointError) as error:
        read_plain(file, 5)
    assert str(error.value) == f"{file}: 6 bytes is more than the 5 that fuse reads"
    huge = tmp_path / "huge"
    with huge.open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes is more"):
        read_plain(huge, 1 << 20)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no file here says that it is empty and is not")
def test_a_file_that_says_that_it_is_empty() -> None:
    with pytest.raises(CheckpointError, match="11 bytes is more than the 10 that fuse reads"):
        read_plain(Path("/proc/self/maps"), 10)
