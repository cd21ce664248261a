"""The header of a safetensors file, read with the standard library and checked in full before anything is believed."""

import os
import re
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fuse import strict_json
from fuse.errors import CheckpointError, short
from fuse.plain_files import open_plain

MAX_HEADER = 100_000_000
MAX_TENSORS = 200_000  # of one file; the largest models have some thousands in each
MAX_NAME = 1024
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# bytes of one element; the first group is what fuse computes with, the rest can only be copied
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
DTYPE_BYTES = FLOAT_BYTES | {
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
# what else is met under this name, by its first bytes -> what it is and what would work
CONVERT = "load it with transformers where you trust it, and `save_pretrained`"
OTHERS = {
    b"version ": ("a git-lfs pointer", "run `git lfs pull` in that folder"),
    b"PK\3\4": ("a zip archive, as torch.save makes it", CONVERT),
    **{bytes((0x80, protocol)): ("a pickle", CONVERT) for protocol in range(2, 6)},
    b"\x1f\x8b\x08": ("a gzip archive", "unpack it"),
    b"\x89HDF": ("an HDF5 file", CONVERT),
    b"GGUF": ("a GGUF file", "merge the checkpoint that it was made of"),
    b"<!DOC": ("a page of HTML", "download it again"),
    b"<html": ("a page of HTML", "download it again"),
}
QUANTISED = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"}


Stamp: TypeAlias = tuple[int, int, int, int]


def stamp(status: os.stat_result) -> Stamp:
    """What tells a file from itself after a change: size, inode, and in nanoseconds the time of its last change as it
    says (anybody may set it) and as the system noted it (nobody may)."""
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One stored tensor: its safetensors dtype name, shape, and byte range [begin, end) within `file`."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    stamp: Stamp | None = field(default=None, compare=False, repr=False)  # of the file, where it was at hand

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a safetensors file by name, in file order.

    Raises CheckpointError for whatever is not a well-formed file: a git-lfs pointer, a truncated or overlong body,
    holes or overlaps, sizes that disagree with shape and dtype, unknown or quantised dtypes, duplicate or odd names.
    """
    with open_plain(path) as file:

        def read(begin: int, end: int) -> bytes:
            file.seek(begin)
            return file.read(end - begin)

        status = os.fstat(file.fileno())
        return parse_header(read, status.st_size, path, stamp(status))


def parse_header(
    read: Callable[[int, int], bytes], size: int, path: Path, seen: Stamp | None = None
) -> dict[str, TensorEntry]:  # fmt: skip
    """As `read_header`, for a file of `size` bytes of which `read(begin, end)` gives any range. seen: its stamp."""
    start = read(0, 9)
    plain = start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= MAX_HEADER  # a length may look like any magic
    for magic, (told, hint) in OTHERS.items():
        if start.startswith(magic) and not plain:
            raise CheckpointError(f"this is {told}, not safetensors", where=path, hint=hint)
    if len(start) < 8:
        raise CheckpointError(f"{size} bytes is too short for a safetensors file", where=path)
    (length,) = struct.unpack("<Q", start[:8])
    if length > MAX_HEADER:
        raise CheckpointError(f"a header of {length:,} bytes is more than {MAX_HEADER:,}", where=path)
    if 8 + length > size:
        raise CheckpointError(f"the header ends at byte {8 + length:,} of {size:,}: truncated", where=path)
    data = read(8, 8 + length)
    if not data.startswith(b"{"):
        raise CheckpointError("the header does not begin with '{'", where=path)
    table = strict_json.parse_object(data, where=path)
    _check_metadata(table.pop("__metadata__", {}), path)
    if not table:
        raise CheckpointError("holds no tensors", where=path)
    if len(table) > MAX_TENSORS:
        raise CheckpointError(f"{len(table):,} tensors is more than {MAX_TENSORS:,}", where=path)
    if len({unicodedata.normalize("NFC", name) for name in table}) != len(table):
        raise CheckpointError("two tensor names are the same text in other code points", where=path)
    entries = {name: _entry(path, name, row, 8 + length, seen) for name, row in table.items()}
    _check_layout(path, list(entries.values()), 8 + length, size)
    return entries


def _check_metadata(metadata: Any, path: Path) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("__metadata__ is not a table of strings", where=path)


def _entry(path: Path, name: str, row: Any, body: int, seen: Stamp | None) -> TensorEntry:
    def where() -> str | Path:
        return f"{path}: tensor {name!r}" if len(name) <= MAX_NAME else path

    if not name or len(name) > MAX_NAME or CONTROL.search(name):
        raise CheckpointError("a tensor name is empty, overlong or has control characters", where=where())
    if name.startswith("/") or ".." in name.split("/"):
        raise CheckpointError("a tensor name looks like a path", where=where())
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("the header row is not {dtype, shape, data_offsets}", where=where())
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if isinstance(dtype, str) and dtype in QUANTISED:
        raise CheckpointError(
            f"dtype {dtype} is quantised and cannot be merged",
            where=where(),
            hint="use the unquantised checkpoint",
        )
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"unknown dtype {short(dtype)}", where=where(), hint=f"known: {', '.join(DTYPE_BYTES)}")
    if not _are_counts(shape) or len(shape) > 16:
        raise CheckpointError(f"shape {short(shape)} is not a list of sizes", where=where())
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"data_offsets {short(offsets)} are not [begin, end]", where=where())
    expected = DTYPE_BYTES[dtype]
    for n in shape:
        expected *= n
    if expected != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"shape {shape} of {dtype} needs {expected:,} bytes but the header gives {offsets[1] - offsets[0]:,}",
            where=where(),
        )
    return TensorEntry(path, name, dtype, tuple(shape), body + offsets[0], body + offsets[1], seen)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _check_layout(path: Path, entries: list[TensorEntry], body: int, size: int) -> None:
    position = body
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise CheckpointError(f"begins at byte {entry.begin:,} and {what}", where=f"{path}: tensor {entry.name!r}")
        position = entry.end
    if position != size:
        what = "truncated" if size < position else "trailing bytes"
        raise CheckpointError(f"the tensors end at byte {position:,} but the file has {size:,}: {what}", where=path)
