"""Writing past the page cache: wherever a stretch begins and ends, the file holds what was given."""

import hashlib
import mmap
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fuse.digests import file_digest
from fuse.engine import write
from fuse.engine.direct import PAGE, SIZE, Stretch, open_direct
from fuse.engine.write import ShardFile
from fuse.plan import Row


@pytest.fixture(params=[True, False], ids=["direct", "through the cache"])
def handles(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, int, int]:
    file = tmp_path / "file"
    plain = os.open(file, os.O_RDWR | os.O_CREAT)
    past = open_direct(file, os.O_WRONLY) if request.param else -1
    if request.param and past < 0:
        pytest.skip("this file system has no direct transfers")
    return file, past, plain


@pytest.mark.parametrize("start", [0, 1, PAGE - 1, PAGE, PAGE + 7])
@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, 3 * PAGE + 5, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE + 12_345])
def test_a_stretch(handles: tuple[Path, int, int], start: int, size: int) -> None:
    file, past, plain = handles
    before, after = os.urandom(start), os.urandom(9000)
    data = os.urandom(size)
    os.pwrite(plain, before, 0)
    os.pwrite(plain, after, start + size)
    stretch = Stretch(past, plain, start, mmap.mmap(-1, SIZE))
    pieces, at = [1, 100, 70_000, 1 << 20, 3 << 20], 0
    while at < size:
        step = pieces[at % len(pieces)]
        stretch.write(memoryview(data)[at : at + step])
        at += step
    stretch.finish()
    assert file.read_bytes() == before + data + after
    stop = threading.Event()
    assert file_digest(file, (), stop, direct=past >= 0).sha256 == hashlib.sha256(before + data + after).hexdigest()


def test_a_file_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "WORTH_DIRECT", 0)
    shapes = {"a": (1111, 1003), "b": (3,), "c": (1024, 1024), "d": (5, 7)}
    rows = [Row(name, "merge", name, "language", shape, "F32", ()) for name, shape in shapes.items()]
    file = ShardFile(tmp_path / "x.safetensors", rows, direct=True)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}

    def work(row: Row) -> None:
        stretch = file.stretch(row, mmap.mmap(-1, SIZE))
        stretch.write(tensors[row.name].view(-1).view(torch.uint8).numpy().data)
        stretch.finish()

    threads = [threading.Thread(target=work, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    digest = file.finish(threading.Event(), hashed=True, sync=True)
    assert digest.sha256 == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in shapes)


def test_file_systems_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_direct(tmp_path / "not there", os.O_RDONLY) == -1
    monkeypatch.setattr(write, "WORTH_DIRECT", 0)
    monkeypatch.setattr(write, "open_direct", lambda *_: -1)
    row = Row("a", "merge", "a", "language", (5,), "F32", ())
    file = ShardFile(tmp_path / "x.safetensors", [row], direct=True)
    stretch = file.stretch(row, mmap.mmap(-1, SIZE))
    stretch.write(torch.ones(5).view(torch.uint8).numpy().data)
    stretch.finish()
    file.finish(threading.Event(), hashed=True, sync=True)
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [1.0] * 5


def test_a_file_system_that_refuses_a_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some open a file for direct transfers and then take larger pages only."""
    file = tmp_path / "file"
    plain = os.open(file, os.O_RDWR | os.O_CREAT)
    past = os.open(file, os.O_WRONLY)
    real = os.pwrite

    def refuse(handle: int, data: memoryview, place: int) -> int:
        if handle == past:
            raise OSError(22, "Invalid argument")
        return real(handle, data, place)

    monkeypatch.setattr(os, "pwrite", refuse)
    data = os.urandom(2 * SIZE + 77)
    stretch = Stretch(past, plain, 5, mmap.mmap(-1, SIZE))
    stretch.write(memoryview(data))
    stretch.finish()
    assert file.read_bytes()[5:] == data
