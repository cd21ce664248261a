"""Stored tensors as torch tensors over memory-mapped files: nothing is read before it is used."""

import mmap
from pathlib import Path

import torch
from torch import Tensor

from fuse.errors import CheckpointError
from fuse.plan import Source

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Reader:
    """Maps each file once; `close` unmaps them. Use as a context manager."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._maps.clear()

    def tensor(self, source: Source) -> Tensor:
        """The stored tensor, in its own dtype and shape, without copying. Do not write to it."""
        entry = source.tensor
        dtype = TORCH[entry.dtype]
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        mapped = self._map(entry.file)
        if len(mapped) < entry.end:
            raise CheckpointError("the file became shorter while it was read", where=entry.file)
        count = entry.nbytes // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=entry.begin).view(entry.shape)

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            try:
                with file.open("rb") as handle:
                    # copy on write, because torch wants a writable buffer; nothing is ever written
                    self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise CheckpointError(f"cannot be read ({error.strerror})", where=file) from None
        return self._maps[file]
