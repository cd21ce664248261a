"""Unpickling happens in another process: what comes back, and what a file can do to it at worst."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fuse.errors import CheckpointError, FuseError, MachineError
from fuse.importers import child, unpickle
from fuse.importers.child import unpickled
from fuse.importers.contents import Contents
from tests.attacks.harness import attack, within
from tests.test_import import FIVE, MAPPER, alone, imported

WIDE = torch.arange(24.0).reshape(4, 6)
STATE = {
    "plain": WIDE, "turned": WIDE.T, "cut": WIDE[1:3, ::2], "shared": WIDE[2], "number": torch.tensor(3.5),
    "empty": torch.empty(0, 7), "half": WIDE.half(), "brain": WIDE.bfloat16()[1:], "long": torch.arange(5),
    "truth": torch.tensor([True, False, True]), "byte": torch.arange(3, dtype=torch.uint8), "double": WIDE.double(),
    "stepped": torch.arange(9.0).as_strided((3, 2), (2, 3)),
}  # fmt: skip


def same(held: Contents) -> None:
    assert list(held.state) == list(STATE)
    for name, tensor in STATE.items():
        assert held.state[name].dtype == tensor.dtype
        assert torch.equal(held.state[name], tensor), name


@pytest.mark.parametrize(("zipped", "start"), [(True, "fork"), (False, "fork"), (False, "spawn")])
def test_every_tensor_comes_back(tmp_path: Path, zipped: bool, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a zip and a new Python too, in test_no_module_comes_from_the_working_directory."""
    file = tmp_path / "a file.pth"
    torch.save({"model": STATE, "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(child, "may_fork", lambda: start == "fork")
    held = unpickled(file, tmp_path)
    assert held.dropped == {"epoch": "of the training, not of the model"}
    same(held)
    held.state["plain"].add_(1)  # changes stay here
    assert torch.equal(torch.load(file)["model"]["plain"], WIDE)
    alone(tmp_path, file.name)


def test_no_byte_of_a_zip_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seen = tmp_path / "file.pth", []
    torch.save({"a": torch.ones(1 << 20), "b": WIDE}, file)
    real = child._mapped
    monkeypatch.setattr(child, "may_fork", lambda: True)
    monkeypatch.setattr(child, "_mapped", lambda one: seen.append(os.fstat(one.fileno()).st_size) or real(one))
    unpickled(file)
    assert seen == [file.stat().st_size, 0]


def endless(*_: object) -> Any:
    while True:
        pass


def asleep(*_: object) -> Any:
    time.sleep(100)


def greedy(*_: object) -> Any:
    return {"a": bytearray(8 << 30)}


def greedy_torch(*_: object) -> Any:
    return {"a": torch.empty(8 << 30, dtype=torch.uint8)}


def writer(*_: object) -> Any:
    Path("made_by_the_file").write_text("x")


def caller(*_: object) -> Any:
    os.system("true")


def networker(*_: object) -> Any:
    socket.create_connection(("127.0.0.1", 9))


def dies(number: int) -> Callable[..., Any]:
    return lambda *_: signal.raise_signal(number)


NEVER = "while it was opened, which no checkpoint needs; it was not done"
WORST: dict[str, tuple[Callable[..., Any], type[FuseError], str]] = {
    "asleep": (asleep, CheckpointError, "takes more than 1 s to be opened; nothing was written"),
    "endless": (endless, CheckpointError, "takes more than 1 s to be opened; nothing was written"),
    "memory": (greedy, CheckpointError, "needs more memory to be opened than a checkpoint of its size"),
    "memory of torch": (greedy_torch, CheckpointError, "needs more memory to be opened than a checkpoint of its size"),
    "segmentation fault": (dies(signal.SIGSEGV), CheckpointError,
                           "the process that opened it broke (SIGSEGV); nothing was written"),
    "killed": (dies(signal.SIGKILL), MachineError,
               "the process that opened it was killed; nothing was written (out of memory?)"),
    "a file": (writer, CheckpointError, f"asked for open {NEVER}"),
    "a program": (caller, CheckpointError, f"asked for os.system {NEVER}"),
    "the network": (networker, CheckpointError, f"asked for socket.getaddrinfo {NEVER}"),
}  # fmt: skip


@pytest.mark.parametrize("case", WORST)
def test_the_worst_that_opening_a_file_can_do(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch's reader could be made to run something: the process is confined and the sentence is one."""
    work, error, told = WORST[case]
    file = tmp_path / "file.pth"
    torch.save(MAPPER, file)
    real = torch.load
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *given, **named: work() or real(*given, **named))
    monkeypatch.setattr(child, "may_fork", lambda: True)
    monkeypatch.setattr(unpickle, "START", 1 if "takes" in told else 60)
    if case in {"a program", "killed"}:
        monkeypatch.setattr(unpickle, "_load", lambda *_: work())
    with pytest.raises(error) as caught:
        unpickled(file, tmp_path)
    assert str(caught.value) == f"{file}: {told}" if "asked" not in told else told in str(caught.value)
    alone(tmp_path, "file.pth")


def bomb(file: Path) -> None:
    """A checkpoint of 128 MB of zeros in a zip of 128 kB."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w") as entry:
            for _ in range(8):
                entry.write(bytes(1 << 24))
        archive.writestr("archive/version", "3")


def test_a_zip_bomb(tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    bomb(file)
    ran = attack(("import", "clipcap", str(file), str(tmp_path / "out"), *FIVE), tmp_path)
    within(ran)
    size = file.stat().st_size
    told = f"its zip of {size:,} bytes unpacks to 134,217,729; a checkpoint's zip is not compressed"
    assert (ran.code, ran.out, ran.err) == (3, "", f"fuse: {file}: {told}\n")
    alone(tmp_path, "file.pth")


def test_a_pickle_that_grows(tmp_path: Path) -> None:
    """Lists inside lists that print as 10^30 texts are small in memory, and no state dict."""
    value: Any = "x"
    for _ in range(30):
        value = [value] * 10
    file = tmp_path / "file.pth"
    torch.save(value, file)
    ran = imported(file)
    assert (ran.code, ran.err) == (3, f"fuse: {file}: holds a list, not a state dict\n")


ROW = ["a", "float32", [2], [1], 0, 0]
NONSENSE = {
    "beyond": [["a", "float32", [20_000], [1], 0, 0]], "before": [["a", "float32", [2], [1], -8, 0]],
    "strides": [["a", "float32", [2], [1 << 40], 0, 0]], "dtype": [["a", "load", [2], [1], 0, 0]],
    "no row": [["a"]], "no list": 3, "place": [["a", "float32", [2], [1], 0, 7]], "name": [[3, *ROW[1:]]],
    "floats": [["a", "float32", [2.5], [1], 0, 0]], "ranks": [["a", "float32", [2], [1, 1], 0, 0]],
}  # fmt: skip


@pytest.mark.parametrize("case", NONSENSE)
def test_a_reader_that_lies(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a process that a file has taken over reaches only bytes of that file."""
    file = tmp_path / "file.pth"
    torch.save(MAPPER, file)
    rows = NONSENSE[case]
    monkeypatch.setattr(unpickle, "_told", lambda *_: {"tensors": rows, "dropped": {}, "args": {}})
    monkeypatch.setattr(child, "may_fork", lambda: True)
    with pytest.raises(CheckpointError) as error:
        unpickled(file)
    assert str(error.value) == f"{file}: its reader told nonsense about where its tensors lie; nothing was written"


def test_no_room_for_what_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.pth"
    torch.save(MAPPER, file, _use_new_zipfile_serialization=False)

    def full(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpickle, "_rows", full)
    monkeypatch.setattr(child, "may_fork", lambda: True)
    with pytest.raises(MachineError) as error:
        unpickled(file, tmp_path)
    told = f"the process that opened it could not go on; nothing was written (is there room in {tmp_path}?)"
    assert str(error.value) == f"{file}: {told}"


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    file, note = tmp_path / "file.pth", tmp_path / "pid"
    torch.save(MAPPER, file)
    script = (
        "import os, time, pathlib; from fuse.importers import child, unpickle\n"
        f"start = child._start\n"
        f"def noted(*given):\n pid = start(*given); pathlib.Path({str(note)!r}).write_text(str(pid)); return pid\n"
        "child._start = noted\n"
        "unpickle._load = lambda *_: time.sleep(100)\n"
        f"child.unpickled(pathlib.Path({str(file)!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        end = time.monotonic() + 60
        while not (note.exists() and note.read_text()) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.3)
        parent.kill()
    pid = int(note.read_text())
    end = time.monotonic() + 10
    while time.monotonic() < end and Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or _state(pid) == "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "Z"


def test_no_module_comes_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.pth"
    torch.save(STATE, file)
    for name in ("zipfile", "pickle", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(child, "may_fork", lambda: False)
    same(unpickled(Path("file.pth")))


def test_records_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MOST_RECORDS", 3)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for number in range(4):
            archive.writestr(f"archive/{number}", b"x")
    (tmp_path / "file.pth").write_bytes(held.getvalue())
    with pytest.raises(CheckpointError, match="its zip has 4 records, more than 3"):
        unpickle._check_zip(tmp_path / "file.pth")
