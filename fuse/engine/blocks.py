"""A row's values, block by block."""

from collections.abc import Iterator, Mapping
from threading import Event
from types import MappingProxyType

import torch
from torch import Tensor

from fuse import kernels
from fuse.engine.device import Memory, Stage
from fuse.engine.finite import check_views, checked, rounded
from fuse.engine.merging import Merging
from fuse.engine.read import TORCH, Reader
from fuse.engine.table import table_blocks
from fuse.memory import BLOCK
from fuse.plan import Row

Constants = Mapping[str, Tensor]
NO_CONSTANTS: Constants = MappingProxyType({})
MEMORY = Memory()


def blocks(
    row: Row, reader: Reader, stage: Stage = MEMORY, stop: Event | None = None, *, check: bool = True,
    constants: Constants = NO_CONSTANTS,
) -> Iterator[Tensor]:  # fmt: skip
    """The row's values in the output dtype, flat, piece by piece, in memory: what `execute` writes.

    Some are parts of the mapped files: do not write to them. check: look whether what is read is finite, which a caller
    may know; results are looked at in any case. stop: ends the work with Stopped once it is set.
    Raises CheckpointError for a value that is not finite.
    """
    dtype, stop = TORCH[row.dtype], stop or Event()
    if row.action == "fold":
        from fuse.engine.fold import folded

        for start, block in _split(folded(row, reader, constants, check=check, stop=stop)):
            yield rounded(block, dtype, row, start)
    elif row.host is not None:
        for start, block, merging in table_blocks(row, reader, stage, stop, check=check):
            yield rounded(block, dtype, row, start, merging.views if merging else ())
    elif row.action == "copy":
        view = reader.view(row.sources[0], stop)
        for start in range(0, max(view.numel(), 1), BLOCK):
            yield rounded(checked(view[start : start + BLOCK], view.source, start), dtype, row, start)
    else:
        views = [reader.view(source, stop) for source in row.sources]
        base = reader.view(row.base, stop) if row.base else None
        merging = Merging(row, views, base, row.shape, stage, check=check)
        for start in range(0, max(views[0].numel(), 1), merging.step):
            with kernels.rounding(dtype):
                block = merging.block(start, min(start + merging.step, views[0].numel()))
            yield stage.store(rounded(block, dtype, row, start, merging.views))


def whole(
    row: Row, reader: Reader, constants: Constants = NO_CONSTANTS, *, check: bool = True, stop: Event | None = None
) -> Tensor:
    """All values of a row as one tensor in the output dtype."""
    parts = list(blocks(row, reader, stop=stop, check=check, constants=constants))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(row.shape)


def copies_bytes(row: Row) -> bool:
    """Whether the row is a stored tensor as it stands."""
    return row.action == "copy" and row.host is None and row.dtype == row.sources[0].tensor.dtype


def check_copy(row: Row, reader: Reader, stop: Event) -> None:
    """CheckpointError where a tensor that is copied as it stands holds a number that is not finite."""
    view = reader.view(row.sources[0], stop)
    if view.dtype.is_floating_point:
        check_views([view])


def _split(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    flat = tensor.reshape(-1)
    for start in range(0, max(flat.numel(), 1), BLOCK):
        yield start, flat[start : start + BLOCK]
