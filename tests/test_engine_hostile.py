"""What the engine meets seldom: odd widths, one wide dtype, files that changed, little memory, a merge called off."""

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.engine import execute as engine
from fuse.engine import read, write
from fuse.engine.device import Memory
from fuse.engine.read import Reader
from fuse.engine.table import table_blocks
from fuse.errors import CheckpointError, MachineError
from fuse.plan import Fold, Row, Source
from fuse.rows import Run
from fuse.safetensors_header import TensorEntry, read_header
from fuse.team import Stopped


def stored(file: Path, **tensors: torch.Tensor) -> dict[str, Source]:
    """A member of that name."""
    save_file(tensors, file)
    return {key: Source(file.stem, entry) for key, entry in read_header(file).items()}


def names(folder: str | Path) -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


@pytest.mark.parametrize("method", ["arcee_fusion", "nuslerp", "model_stock"])
def test_rows_without_numbers(tmp_path: Path, method: str) -> None:
    a, b, base = (stored(tmp_path / f"{name}.safetensors", t=torch.empty(4, 0), u=torch.ones(2))["t"] for name in "abz")
    values: dict[str, Any] = {
        "nuslerp": {"weights": [1.0, 2.0], "row_wise": True}, "model_stock": {"filter_wise": True}
    }.get(method, {})  # fmt: skip
    sources = (a,) if method == "arcee_fusion" else (a, b)
    row = Row("t", "merge", "t", "language", (4, 0), "BF16", sources, base, method, values)
    engine.execute([row], [("o.safetensors", [0])], tmp_path, lambda _: None, threads=1)
    assert load_file(tmp_path / "o.safetensors")["t"].shape == (4, 0)


def test_a_base_in_float64_is_rounded_once_in_a_table_too(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    a, b, base = (torch.randn(6, 5, generator=generator) for _ in range(3))
    wide = base.double() + torch.randn(6, 5, generator=generator).double() * 1e-9
    members = [stored(tmp_path / f"{n}.safetensors", t=t)["t"] for n, t in (("a", a), ("b", b), ("base", wide))]
    row = Row(
        "t", "merge", "t", "language", (6, 5), "F64", tuple(members[:2]), members[2], "task_arithmetic",
        {"weights": [0.5, 0.25]}, members[0], (Run(0, 6, (0, 0, 0)),),
    )  # fmt: skip
    engine.execute([row], [("o.safetensors", [0])], tmp_path, lambda _: None)
    wanted = wide + ((a.double() - wide) * 0.5 + (b.double() - wide) * 0.25)
    assert (load_file(tmp_path / "o.safetensors")["t"] - wanted).abs().max() < 1e-14


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_that_became_shorter(tmp_path: Path, size: int) -> None:
    source = stored(tmp_path / "a.safetensors", t=torch.ones(9, 9))["t"]
    os.truncate(tmp_path / "a.safetensors", size)
    with Reader() as reader, pytest.raises(CheckpointError, match="the file became shorter while it was read"):
        reader.tensor(source)


@pytest.mark.parametrize("action", ["merge", "copy", "table"])
def test_a_file_that_becomes_shorter_while_it_is_merged(
    tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "LOOKS_APART", 0)
    a, b = (stored(tmp_path / f"{name}.safetensors", t=torch.ones(700, 4000))["t"] for name in "ab")
    table: dict[str, Any] = {"host": b, "runs": (Run(0, 700, (0, 0)),)} if action == "table" else {}
    row = Row(
        "t", "copy" if action == "copy" else "merge", "t", "language", (700, 4000),
        "BF16" if action == "copy" else "F32", (a,) if action == "copy" else (a, b), None, "linear",
        {"weights": [1, 1]}, **table,
    )  # fmt: skip

    def progress(_: int) -> None:
        os.truncate(tmp_path / "a.safetensors", 1000)

    with pytest.raises(CheckpointError) as caught:
        engine.execute([row], [("o.safetensors", [0])], tmp_path, progress, threads=1)
    assert str(caught.value) == f"{tmp_path / 'a.safetensors'}: the file became shorter while it was read"


def test_a_file_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    size = 1 << 40
    with (tmp_path / "a").open("wb") as file:
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("no sparse file of a terabyte")
    with Reader() as reader:
        tensor = reader.tensor(Source("a", TensorEntry(tmp_path / "a", "t", "U8", (16,), size - 16, size)))
        assert tensor.tolist() == [0] * 16


@pytest.mark.parametrize(("number", "kind"), [("ENOMEM", MachineError), ("EMFILE", MachineError),
                                              ("EIO", CheckpointError)])  # fmt: skip
def test_who_is_to_blame(tmp_path: Path, number: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored(tmp_path / "a.safetensors", t=torch.ones(9))["t"]

    def fail(*_: object, **__: object) -> None:
        raise OSError(getattr(write.errno, number), "no")

    monkeypatch.setattr(read.mmap, "mmap", fail)
    with Reader() as reader, pytest.raises(kind, match=r"cannot be read \(no") as caught:
        reader.tensor(source)
    assert type(caught.value) is kind


def test_a_reader_that_is_dropped_closes_its_files(tmp_path: Path) -> None:
    source = stored(tmp_path / "a.safetensors", t=torch.ones(9))["t"]
    gc.collect()
    before = len(names("/proc/self/fd"))
    for _ in range(5):
        reader = Reader()
        reader.tensor(source)
    del reader
    gc.collect()
    assert len(names("/proc/self/fd")) == before


def test_a_copy_through_memory_is_called_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored(tmp_path / "a.safetensors", t=torch.arange(100.0))["t"]
    row, stop, written = Row("t", "copy", "t", "encoder", (100,), "F32", (source,)), threading.Event(), []
    file = write.ShardFile(tmp_path / "o.safetensors", [row])

    def refuse(*_: object) -> int:
        raise OSError(write.errno.EXDEV, "Invalid cross-device link")

    def first(_: Row, position: int, data: memoryview) -> None:
        written.append((position, len(data)))
        stop.set()

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(write, "PIECE", 64)
    monkeypatch.setattr(file, "write", first)
    with Reader() as reader, pytest.raises(Stopped):
        file.copy(row, *reader.stored(source), stop)
    file.close()
    assert written == [(0, 64)]


def test_a_table_is_called_off_between_blocks(tmp_path: Path) -> None:
    source = stored(tmp_path / "a.safetensors", t=torch.ones(6, 5))["t"]
    row, stop = Row("t", "copy", "t", "language", (8, 5), "F32", (source,), host=source), threading.Event()
    stage = Memory()
    stage.block = 10
    with Reader() as reader:
        found = table_blocks(row, reader, stage, stop, check=True)
        assert next(found)[0] == 0
        stop.set()
        with pytest.raises(Stopped):
            next(found)


def test_no_row_begins_once_all_is_called_off(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    fold = Row("t", "fold", "t", "language", (2,), "F32", (), fold=Fold("g", "none", None))  # would fail if it began
    with pytest.raises(Stopped):
        engine.execute([fold], [("o.safetensors", [0])], tmp_path, lambda _: None, stop=stop)
