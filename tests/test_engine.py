"""The engine's rooms: views, threads, files, memory; neither threads nor a device's way of working change a byte."""

import hashlib
import os
import platform
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse import kernels
from fuse.digests import UNHASHED, file_digest
from fuse.engine import execute as engine
from fuse.engine import write
from fuse.engine.device import Memory, devices
from fuse.engine.heap import keep_freed_memory
from fuse.engine.room import Room
from fuse.engine.views import Gathered, Rows, Stored
from fuse.engine.write import ShardFile
from fuse.errors import CheckpointError, MachineError, RecipeError
from fuse.methods.row_blocks import row_width
from fuse.plan import Row, Source
from fuse.safetensors_header import read_header
from fuse.team import Stopped

SHAPES = {"small": (3,), "table": (40, 11), "matrix": (31, 23), "empty": (0, 4), "number": ()}
ROWS = {
    "linear": {"weights": [0.3, 0.7]}, "slerp": {"t": 0.4},
    "ties": {"weights": [0.3, 0.7], "density": [0.4, 0.6]},
    "dare_ties": {"weights": [0.3, 0.7], "density": [0.4, 0.6], "seed": 1},
    "task_arithmetic": {"weights": [0.3, 0.7], "lambda": 0.9},
    "della": {"weights": [0.3, 0.7], "density": [0.4, 0.6], "epsilon": 0.1, "seed": 1},
    "breadcrumbs": {"weights": [0.3, 0.7], "density": [0.4, 0.6], "gamma": 0.05}, "model_stock": {},
}  # fmt: skip
BASED = {*ROWS} - {"linear", "slerp"}


@pytest.fixture
def members(tmp_path: Path) -> dict[str, dict[str, Source]]:
    generator = torch.Generator().manual_seed(2)
    made = {}
    for name in ("base", "a", "b"):
        tensors = {key: torch.randn(shape, generator=generator).bfloat16() for key, shape in SHAPES.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        made[name] = {key: Source(name, e) for key, e in read_header(tmp_path / f"{name}.safetensors").items()}
    return made


def rows_of(members: dict[str, dict[str, Source]], method: str) -> list[Row]:
    return [
        Row(key, "merge", key, "language", shape, "F32" if key == "small" else "BF16",
            (members["a"][key], members["b"][key]), members["base"][key] if method in BASED else None, method,
            ROWS[method])
        for key, shape in SHAPES.items()
    ]  # fmt: skip


def written(folder: Path, rows: list[Row], **options: Any) -> dict[str, bytes]:
    folder.mkdir()
    shards = [("one.safetensors", (0, 1)), ("two.safetensors", tuple(range(2, len(rows))))]
    digests = engine.execute(rows, shards, folder, lambda _: None, **options)
    data = {name: (folder / name).read_bytes() for name, _ in shards}
    assert {name: one.sha256 for name, one in digests.items()} == {
        name: hashlib.sha256(data[name]).hexdigest() for name in data
    }
    return data


class Held(Memory):
    """Acts as a GPU does, in memory."""

    block, holds_rows = 16, True

    def load(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    def store(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()


@pytest.mark.parametrize("method", ROWS)
def test_threads_and_held_rows_change_no_byte(
    members: dict, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(members, method)
    one = written(tmp_path / "one", rows, threads=1)
    monkeypatch.setattr(engine, "SMALL", 300)
    assert written(tmp_path / "many", rows, threads=4) == one
    monkeypatch.setattr(engine, "Memory", Held)
    assert written(tmp_path / "held", rows, threads=2) == one
    assert set(load_file(tmp_path / "one" / "two.safetensors")) == {"matrix", "empty", "number"}


@pytest.mark.parametrize("method", ROWS)
def test_compiled_kernels_change_no_byte(
    members: dict, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(members, method)
    plain = written(tmp_path / "plain", rows)
    monkeypatch.setattr(kernels, "LEAST", 1)
    kernels.load()
    assert written(tmp_path / "compiled", rows, threads=2) == plain
    kernels.STATE.ready = False
    monkeypatch.setattr(kernels, "WORTH", 1)
    assert written(tmp_path / "loaded meanwhile", rows, threads=2) == plain
    assert kernels.STATE.ready
    kernels.STATE.ready = False


def test_progress_adds_up_to_the_bytes(members: dict, tmp_path: Path) -> None:
    rows, seen = rows_of(members, "linear"), []
    engine.execute(rows, [("x.safetensors", range(len(rows)))], tmp_path, seen.append, threads=3)
    assert sum(seen) == sum(row.nbytes for row in rows)


def test_without_hashes(members: dict, tmp_path: Path) -> None:
    rows = rows_of(members, "linear")
    found = engine.execute(
        rows, [("x.safetensors", range(len(rows)))], tmp_path, lambda _: None, hashed=False, sync=False
    )
    assert found == {"x.safetensors": UNHASHED} and len(load_file(tmp_path / "x.safetensors")) == len(SHAPES)


def test_copies_are_the_stored_bytes(members: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(k, "copy", k, "encoder", s, "BF16", (members["a"][k],)) for k, s in SHAPES.items()]
    real = os.copy_file_range
    for number, how in enumerate(["kernel", "short", "refused"]):
        if how == "short":  # a kernel may copy less than it was asked to
            monkeypatch.setattr(os, "copy_file_range", lambda s, d, n, *at: real(s, d, min(n, 100), *at))
        if how == "refused":
            monkeypatch.setattr(os, "copy_file_range", _refuse)
        engine.execute(rows, [(f"{number}.safetensors", range(len(rows)))], tmp_path, lambda _: None)
        found, wanted = load_file(tmp_path / f"{number}.safetensors"), load_file(tmp_path / "a.safetensors")
        assert all(torch.equal(found[key], wanted[key]) for key in SHAPES)


def _refuse(*_: object) -> int:
    raise OSError(write.errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize("action", ["merge", "copy"])
def test_what_is_not_finite_is_named_whatever_ran_first(
    tmp_path: Path, action: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SMALL", small)
    tensors = {f"t{i}": torch.ones(4, 300 + i) for i in range(8)}
    save_file(tensors, tmp_path / "good.safetensors")
    for key in ("t2", "t6"):
        tensors[key] = tensors[key].clone()
        tensors[key][1, 5] = float("nan")
    save_file(tensors, tmp_path / "bad.safetensors")
    good, bad = (read_header(tmp_path / f"{name}.safetensors") for name in ("good", "bad"))
    rows = [
        Row(key, action, key, "language", tuple(tensors[key].shape), "F32",
            (Source("bad", bad[key]), Source("good", good[key]))[: 2 if action == "merge" else 1], None,
            "linear" if action == "merge" else "", {"weights": [1, 1]} if action == "merge" else {})
        for key in tensors
    ]  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        engine.execute(rows, [("x.safetensors", range(8))], tmp_path, lambda _: None, threads=1)
    first = "'t2' of bad holds nan at element 307" if small else "'t6' of bad holds nan at element 311"  # the larger
    assert caught.value.problem == f"tensor {first}"


def test_called_off(members: dict, tmp_path: Path) -> None:
    rows, stop = rows_of(members, "ties"), threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        view = Stored(members["a"]["table"], torch.ones(3), stop)
        view[0:1]
    copy = Row("c", "copy", "c", "encoder", SHAPES["table"], "BF16", (members["a"]["table"],))
    for row in (rows[1], copy):
        with pytest.raises(Stopped):
            engine.execute([row], [(f"{row.name}.safetensors", [0])], tmp_path, lambda _: None, stop=stop)


def test_room_is_shared_out() -> None:
    room, inside, most = Room(10), 0, 0
    lock = threading.Lock()

    def work(need: int) -> None:
        nonlocal inside, most
        with room.taken(need):
            with lock:
                inside += min(need, 10)
                most = max(most, inside)
            time.sleep(0.001)
            with lock:
                inside -= min(need, 10)

    threads = [threading.Thread(target=work, args=(need,)) for need in (3, 4, 5, 6, 100, 1, 10, 2) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most <= 10 and inside == 0


def test_gathered_rows(members: dict) -> None:
    table, numbers = torch.arange(24.0).view(6, 4), torch.tensor([5, 0, 3])
    view = Gathered(members["a"]["table"], table, numbers, threading.Event())
    flat = table[numbers].view(-1)
    assert view.numel() == 12 and view.shape == (12,)
    for start in range(12):
        for stop in range(start, 14):
            assert torch.equal(view[start:stop], flat[start:stop])
    assert [view.element(i) for i in range(12)] == flat.long().tolist()
    rows = Rows(view, 4)
    assert rows.shape == (3, 4) and torch.equal(rows[1:9], table[numbers][1:])


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        ((7,), 7),
        ((3, 5), 5),
        ((3, 5, 2), 2),
        ((3, 5, 2, 2), 20),
        ((3, 5, 2, 2, 2), 40),
        ((), 1),
        ((4, 0), 0),
        ((3, 0, 2), 2),
    ],
)
def test_width_of_rows(shape: tuple[int, ...], width: int) -> None:
    assert row_width(shape) == width


def test_a_file_holds_its_rows_wherever_writing_begins(tmp_path: Path) -> None:
    rows = [Row(name, "merge", name, "language", (2, 3), "F32", ()) for name in "ab"]
    file = ShardFile(tmp_path / "x.safetensors", rows)
    values = torch.arange(12.0).view(2, 2, 3)
    data = {row.name: value.view(-1).view(torch.uint8).numpy().data for row, value in zip(rows, values, strict=True)}
    file.write(rows[1], 8, data["b"][8:])
    file.write(rows[0], 0, data["a"])
    file.write(rows[1], 0, data["b"][:8])
    digest = file.finish(threading.Event(), hashed=True, sync=True)
    assert digest.sha256 == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    assert {k: v.tolist() for k, v in load_file(tmp_path / "x.safetensors").items()} == {
        "a": values[0].tolist(), "b": values[1].tolist(),
    }  # fmt: skip


def test_a_disk_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _unsupported)
    row = Row("a", "merge", "a", "language", (5,), "F32", ())
    file = ShardFile(tmp_path / "x.safetensors", [row])
    file.write(row, 0, torch.ones(5).view(torch.uint8).numpy().data)
    file.finish(threading.Event(), hashed=False, sync=False)
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [1.0] * 5


def _unsupported(*_: object) -> None:
    raise OSError(write.errno.EOPNOTSUPP, "Operation not supported")


def test_hashing_is_called_off(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    stop = threading.Event()
    assert file_digest(tmp_path / "x", (), stop).sha256 == hashlib.sha256(b"x").hexdigest()
    stop.set()
    with pytest.raises(Stopped):
        file_digest(tmp_path / "x", (), stop)


def test_devices() -> None:
    assert devices("cpu") == ["cpu"]
    for name in ("gpu", "cuda:", "cuda:x", "cuda:1234", "CUDA", ""):
        with pytest.raises(RecipeError) as caught:
            devices(name)
        assert str(caught.value) == f"device {name!r}: a merge runs on cpu, cuda (every GPU) or cuda:N"
    if not torch.cuda.is_available():
        for name in ("cuda", "cuda:0"):
            with pytest.raises(MachineError) as missing:
                devices(name)
            assert str(missing.value) == f"device {name!r}: torch finds no GPU here (cpu works everywhere)"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's heap")
def test_the_heap_keeps_what_is_freed() -> None:
    """A block's pages are cleared for its first use alone, in any thread."""
    keep_freed_memory()
    faults: list[int] = []

    def work() -> None:
        for _ in range(40):
            torch.empty(1 << 19).fill_(1)
            faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert faults[-1] - faults[19] < 100  # 20 times 512 pages otherwise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ROWS)
def test_a_gpu_changes_no_byte(members: dict, tmp_path: Path, method: str) -> None:
    rows = rows_of(members, method)
    assert written(tmp_path / "gpu", rows, device="cuda") == written(tmp_path / "cpu", rows)
