"""The streaming loop: row by row, block by block, in the order of the output files."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from fuse import methods
from fuse.engine.read import TORCH, Reader
from fuse.engine.write import ShardWriter, stored_order
from fuse.errors import CheckpointError
from fuse.memory import BLOCK
from fuse.methods.random import key
from fuse.plan import Row, Source

Progress = Callable[[int], None]
Constants = Mapping[str, Tensor]


def execute(
    rows: Sequence[Row], shards: Sequence[tuple[str, Sequence[int]]], folder: Path, progress: Progress,
    constants: Constants = MappingProxyType({}),
) -> dict[str, str]:  # fmt: skip
    """Write every shard into `folder`; the sha256 of each file by name.

    rows: what to write. shards: file name and row numbers. progress: called with the bytes written since the last call.
    constants: what folds need (`fuse.engine.fold.constants_of`).
    Raises CheckpointError when a value read or computed is not finite, naming tensor, member, count and first place.
    """
    digests = {}
    with Reader() as reader, torch.no_grad():
        for name, numbers in shards:
            inside = [rows[i] for i in numbers]
            inside = [inside[i] for i in stored_order(inside)]
            with ShardWriter(folder / name, inside) as writer:
                for row in inside:
                    for block in blocks(row, reader, constants=constants):
                        data = _bytes(block)
                        writer.write(data)
                        progress(len(data))
            digests[name] = writer.sha256
    return digests


def blocks(
    row: Row, reader: Reader, *, check: bool = True, size: int | None = None,
    constants: Constants = MappingProxyType({}),
) -> Iterator[Tensor]:  # fmt: skip
    """The row's values in the output dtype, flat, piece by piece: what `execute` writes.

    Some are parts of the mapped files: do not write to them. check: look whether what a merge reads is finite, which a
    caller may know; results are looked at in any case. size: elements that an elementwise merge takes at a time, BLOCK
    where left out; any size gives the same bytes. Raises CheckpointError as `execute` does.
    """
    size = size or BLOCK
    dtype = TORCH[row.dtype]
    if row.action == "fold":
        from fuse.engine.fold import folded

        for start, block in _split(folded(row, reader, constants, check=check)):
            yield _round(block, dtype, row, start)
        return
    if row.action == "copy" and row.host is None:
        source = row.sources[0]
        for start, block in _split(reader.tensor(source)):
            yield _round(checked(block, source, start), dtype, row, start)
        return
    merge = methods.load(row.method) if row.runs or row.action == "merge" else None
    tensors = [reader.tensor(s) for s in row.sources]
    base = reader.tensor(row.base) if row.base else None
    if row.host is not None:
        donors = [reader.tensor(s) for s in row.donors]
        for start, block in _table_blocks(row, reader.tensor(row.host), tensors, base, donors, merge):
            yield _round(block, dtype, row, start)
        return
    assert merge is not None
    if methods.METHODS[row.method].kind == "elementwise":
        count = max(tensors[0].numel(), 1)
        for start in range(0, count, size):
            parts = [t.view(-1)[start : start + size] for t in tensors]
            base_part = None if base is None else base.view(-1)[start : start + size]
            yield _round(_merge(row, parts, base_part, merge, start, check), dtype, row, start)
    else:
        for start, block in _split(_merge(row, tensors, base, merge, 0, check)):
            yield _round(block, dtype, row, start)


def whole(row: Row, reader: Reader, constants: Constants = MappingProxyType({}), *, check: bool = True) -> Tensor:
    """All values of a row as one tensor in the output dtype."""
    parts = list(blocks(row, reader, check=check, constants=constants))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(row.shape)


def _merge(
    row: Row, tensors: list[Tensor], base: Tensor | None, merge: Callable[..., Tensor], start: int, check: bool
) -> Tensor:
    """The method over whole tensors or over the blocks that begin at element `start`, checked if asked to."""
    if check:
        for source, tensor in zip(row.sources, tensors, strict=True):
            checked(tensor, source, start)
        if row.base is not None and base is not None:
            checked(base, row.base, start)
    return _apply(row, tensors, base, merge, start)


def _apply(row: Row, tensors: list[Tensor], base: Tensor | None, merge: Callable[..., Tensor], start: int) -> Tensor:
    method = methods.METHODS[row.method]
    arguments = method.arguments(row.parameters, len(tensors))
    if method.random:
        seed = int(row.parameters.get("seed", 0))
        arguments |= {"keys": [key(seed, row.canonical, s.member) for s in row.sources], "offset": start}
    inputs = [tensors] if base is None else [tensors, base]
    return merge(*inputs, **arguments)


def _table_blocks(
    row: Row,
    host: Tensor,
    tensors: list[Tensor],
    base: Tensor | None,
    donors: list[Tensor],
    merge: Callable[..., Tensor] | None,
) -> Iterator[tuple[int, Tensor]]:
    """The host's table with the rows of shared tokens merged and those of new tokens added, flat, in float32 or wider.

    Rows of the output that are neither the host's nor given by `added` are zero. A run's starts are in the order of the
    sources, the base last. Methods that are not elementwise see all shared rows at once; the others see some at a time,
    with the index of their first element among all shared rows.
    """
    assert row.host is not None
    rows, width = row.shape
    mine = _numbers([(run.host, run.length) for run in row.runs])
    theirs = [_numbers([(run.sources[i], run.length) for run in row.runs])
              for i in range(len(row.runs[0].sources) if row.runs else 0)]  # fmt: skip
    lenders, lending = [*row.sources, *row.donors], [*tensors, *donors]
    readers = [*row.sources, *([row.base] if row.base else [])]
    wide = torch.float64 if torch.float64 in {t.dtype for t in (host, *lending)} else torch.float32
    step = max(BLOCK // width, 1) if merge is None or methods.METHODS[row.method].kind == "elementwise" else rows
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        low, high = torch.searchsorted(mine, torch.tensor([start, stop])).tolist()
        block = torch.zeros(stop - start, width, dtype=wide)
        block[: max(len(host) - start, 0)] = checked(host[start:stop], row.host, start * width)
        if low < high and merge is not None:
            tables = [*tensors, *([base] if base is not None else [])]
            gathered = [_rows(t, theirs[i][low:high], readers[i]) for i, t in enumerate(tables)]
            base_rows = None if base is None else gathered.pop()
            merged = _apply(row, gathered, base_rows, merge, low * width).view(high - low, width)
            block.index_copy_(0, mine[low:high] - start, merged.to(wide))
        for added in row.added:
            if start <= added.row < stop and added.source is None:
                block[added.row - start] = 0
            elif start <= added.row < stop and added.source is not None:
                given = lending[added.source][added.source_row]
                block[added.row - start] = checked(given, lenders[added.source], added.source_row * width)
        yield start * width, block.view(-1)


def _numbers(ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Row numbers of ranges (start, length), one after another."""
    parts = [torch.arange(start, start + length) for start, length in ranges]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def _rows(table: Tensor, numbers: Tensor, source: Source) -> Tensor:
    """Some rows of a table, checked; an error names the element of the stored table."""
    found = table.index_select(0, numbers)
    if not _is_finite(found):
        for number in numbers.tolist():
            checked(table[number], source, number * table.shape[1])
    return found


def _split(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    flat = tensor.reshape(-1)
    for start in range(0, max(flat.numel(), 1), BLOCK):
        yield start, flat[start : start + BLOCK]


def checked(tensor: Tensor, source: Source, start: int) -> Tensor:
    """The tensor, after a check that every stored value is finite."""
    if not _is_finite(tensor):
        bad = torch.nonzero(~torch.isfinite(tensor.reshape(-1))).flatten()
        value = tensor.reshape(-1)[bad[0]].item()
        raise CheckpointError(
            f"tensor {source.tensor.name!r} of {source.member} holds {value} at element {start + int(bad[0]):,}",
            where=source.tensor.file,
            hint="the checkpoint is damaged; fuse writes nothing from it",
        )
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite; always so for integers.

    A finite sum says so at a fraction of the cost, because an infinity or NaN never leaves a sum; an infinite sum may
    also come from large numbers.
    """
    if not tensor.is_floating_point():
        return True
    total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32).item()
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())


def _round(block: Tensor, dtype: torch.dtype, row: Row, start: int) -> Tensor:
    """The block in the output dtype, rounded once; an overflow is an error."""
    out = block.to(dtype)
    if not _is_finite(out):
        first = int(torch.nonzero(~torch.isfinite(out)).flatten()[0])
        raise CheckpointError(
            f"output tensor {row.name!r} is {out[first].item()} in {row.dtype} at element {start + first:,} "
            f"(computed as {block[first].item():g})",
            hint="choose a wider output.dtype, or smaller weights",
        )
    return out


def _bytes(block: Tensor) -> memoryview:
    return block.contiguous().view(torch.uint8).numpy().data
