"""The process that unpickles: it reads one file of PyTorch under limits and tells where each tensor lies.

A pickle is read with torch's `weights_only` unpickler, which builds tensors, numbers, texts, lists and dicts and
refuses everything else. `argparse.Namespace`, which training scripts store beside the weights, is built too: it is a
plain record. Before the file is opened this process gives up, for good: memory and time beyond what a checkpoint of
that size needs, the network, other programs, and files to write. Tensors of a zip stay where they are in the file;
those of older formats are copied into an unnamed file that the parent opened. Run as
`python -m fuse.importers.unpickle`, or in a fork of a process without threads.
"""

import argparse
import faulthandler
import json
import os
import pickle
import re
import resource
import signal
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch

from fuse.errors import CheckpointError
from fuse.importers.contents import Contents, contents_of

IN_FILE, COPIED = 0, 1
ROOM = 1 << 30  # bytes of memory beside what is loaded
START = 60  # seconds beside those for reading
SLOWEST = 20_000_000  # bytes a second
MOST_RECORDS = 1_000_000  # in a zip
FORBIDDEN = re.compile(
    r"socket\.|subprocess\.|os\.(exec|fork|forkpty|posix_spawn|spawn|startfile|system|kill|remove|rename|rmdir|mkdir"
    r"|chmod|chown|link|symlink|truncate|utime|putenv)$|shutil\.|pty\.|ctypes\.(dlopen|call_function)|urllib\.|ftplib\."
)
_RESAVE = "where you trust it, save its state dict alone: torch.save(model.state_dict(), NEW_FILE)"
_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
TOO_BIG = "needs more memory to be opened than a checkpoint of its size"


def seconds_for(size: int) -> int:
    """The time that a file of so many bytes may take."""
    return START + size // SLOWEST


def run(file: Path, table: int, copy: int, parent: int) -> NoReturn:
    """Open the file, write a JSON table into the descriptor `table` and copied tensors into `copy`, and end.

    parent: the process that asked, with which this one ends.
    The table has `tensors`, rows of name, dtype, shape, stride, first byte, IN_FILE or COPIED; `dropped` and `args`; or
    `refused`, a problem and a hint.
    """
    code = 1
    try:
        _confine(file.stat().st_size, parent)
        try:
            told: dict[str, Any] = _told(file, copy)
        except CheckpointError as error:
            told = {"refused": [error.problem, error.hint]}
        except MemoryError:
            told = {"refused": [TOO_BIG, ""]}
        with os.fdopen(table, "wb", closefd=False) as stream:
            stream.write(json.dumps(told).encode())
        code = 0
    finally:
        os._exit(code)


def _confine(size: int, parent: int) -> None:
    """Give up what opening a file of so many bytes does not need."""
    torch.set_num_threads(1)
    faulthandler.disable()
    with Path(os.devnull).open("wb") as nothing:  # what libraries print is not fuse's sentence
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_CPU, seconds_for(size), 1)  # at the limit comes SIGXCPU, which tells why; then SIGKILL
    _limit(resource.RLIMIT_FSIZE, 2 * size + ROOM)
    if (used := _address_space()) is not None:
        _limit(resource.RLIMIT_AS, used + 3 * size + ROOM)
    sys.addaudithook(_refuse)


def _limit(what: int, most: int, beyond: int = 0) -> None:
    before = resource.getrlimit(what)[1]
    soft, hard = (one if before == resource.RLIM_INFINITY else min(one, before) for one in (most, most + beyond))
    resource.setrlimit(what, (soft, hard))


def _address_space() -> int | None:
    """Bytes of addresses in use; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before it was asked about
        os._exit(1)


def _refuse(event: str, given: tuple[Any, ...]) -> None:
    """An audit hook, which cannot be taken off."""
    writes = event == "open" and (
        (isinstance(given[1], str) and set(given[1]) & set("wax+"))
        or (isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )
    if (writes and not isinstance(given[0], int)) or FORBIDDEN.match(event):
        raise CheckpointError(f"asked for {event} while it was opened, which no checkpoint needs; it was not done")


def _told(file: Path, copy: int) -> dict[str, Any]:
    with file.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    if zipped:
        _check_zip(file)
    mapped: list[tuple[int, int]] = []
    contents = contents_of(_load(file, zipped, mapped))
    return {
        "tensors": _rows(contents, mapped[0] if mapped else (0, 0), copy),
        "dropped": contents.dropped, "args": contents.args,
    }  # fmt: skip


def _check_zip(file: Path) -> None:
    """Nothing in it is compressed, as torch writes it, so that nothing grows."""
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"is cut off or no checkpoint of PyTorch ({error})") from None
    if len(records) > MOST_RECORDS:
        raise CheckpointError(f"its zip has {len(records):,} records, more than {MOST_RECORDS:,}")
    if any(one.compress_type != zipfile.ZIP_STORED for one in records) or sum(one.file_size for one in records) > size:
        held = sum(one.file_size for one in records)
        raise CheckpointError(f"its zip of {size:,} bytes unpacks to {held:,}; a checkpoint's zip is not compressed")


def _load(file: Path, zipped: bool, mapped: list[tuple[int, int]]) -> Any:
    """What torch's reader makes of the file. mapped: gets where in memory the file begins and how long it is."""
    from_file = torch.UntypedStorage.from_file

    def noted(*given: Any, **named: Any) -> Any:
        whole: Any = from_file(*given, **named)
        mapped.append((whole.data_ptr(), whole.nbytes()))
        return whole

    try:
        torch.UntypedStorage.from_file = staticmethod(noted)  # pyright: ignore[reportAttributeAccessIssue]
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which are read or refused
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(str(error)), hint=_RESAVE) from None
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # torch's readers raise anything for a broken file
        if any(text in str(error) for text in _MEMORY):
            raise MemoryError from None
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"is cut off or no checkpoint of PyTorch ({told})") from None


def _refused(told: str) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", told)
    what = f"its pickle asks for {asked[1]}" if asked else "its pickle holds more than tensors and plain values"
    return f"{what}, which loading might run; fuse reads weights only, and nothing was run"


def _rows(contents: Contents, mapped: tuple[int, int], copy: int) -> list[list[Any]]:
    """Where each tensor lies: in the file as it is, else at the end of `copy`, where it is written row by row."""
    begin, size = mapped
    rows: list[list[Any]] = []
    end = 0
    with os.fdopen(copy, "wb", closefd=False) as stream:
        for name, tensor in contents.state.items():
            at = tensor.data_ptr() - begin
            end_at = at + extent(tensor.shape, tensor.stride(), tensor.element_size())
            inside = tensor.numel() and 0 <= at <= end_at <= size
            dtype = str(tensor.dtype).removeprefix("torch.")
            if inside:
                rows.append([name, dtype, list(tensor.shape), list(tensor.stride()), at, IN_FILE])
                continue
            plain = tensor.contiguous()
            rows.append([name, dtype, list(plain.shape), list(plain.stride()), end, COPIED])
            if plain.numel():
                stream.write(plain.reshape(-1).view(torch.uint8).numpy().data)
            end += plain.numel() * plain.element_size()
            end += stream.write(bytes(-end % 64))
    return rows


def extent(shape: Any, stride: Any, width: int) -> int:
    """Bytes from the first element of a tensor to the end of its last; 0 where it has none."""
    if 0 in shape:
        return 0
    return width * (1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)))


if __name__ == "__main__":
    run(Path(os.fsdecode(sys.argv[1])), *map(int, sys.argv[2:5]))
