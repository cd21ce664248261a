"""One safetensors file, written front to back: the header is known from the plan before the first tensor is."""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from fuse.plan import Row
from fuse.safetensors_header import DTYPE_BYTES


def stored_order(rows: Sequence[Row]) -> list[int]:
    """Positions of the rows in the order they are stored: wide dtypes first, so that every tensor is aligned."""
    return sorted(range(len(rows)), key=lambda i: -DTYPE_BYTES[rows[i].dtype])


def header_bytes(rows: Sequence[Row]) -> bytes:
    """The length and JSON header of a file that holds the rows one after another.

    The metadata has one key only: with more, other writers' order is random and files differ from run to run.
    """
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for row in rows:
        table[row.name] = {
            "dtype": row.dtype, "shape": list(row.shape), "data_offsets": [position, position + row.nbytes]
        }  # fmt: skip
        position += row.nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class ShardWriter:
    """Writes one file in order, hashing as it goes; `sha256` is set when the `with` block ends, after the sync."""

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self.sha256 = ""
        self.write(header_bytes(rows))

    def __enter__(self) -> "ShardWriter":
        return self

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self.sha256 = self._hash.hexdigest()
        self._file.close()
