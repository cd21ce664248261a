"""Tables whose rows stand for tokens: the host's, with the rows of shared tokens merged and those of new ones added."""

from collections.abc import Iterator, Sequence
from threading import Event

import torch
from torch import Tensor

from fuse.engine.device import Stage
from fuse.engine.finite import checked
from fuse.engine.merging import Merging
from fuse.engine.read import Reader
from fuse.engine.views import Gathered
from fuse.plan import Row, Source
from fuse.team import Stopped


def table_blocks(
    row: Row, reader: Reader, stage: Stage, stop: Event, *, check: bool
) -> Iterator[tuple[int, Tensor, Merging | None]]:
    """Where each block begins, the block, flat, in float32 or wider, and what merged it.

    Rows of the output that are neither the host's nor given by `added` are zero. A run's starts are in the order of the
    sources, the base last.
    """
    assert row.host is not None
    rows, width = row.shape
    host = reader.tensor(row.host)
    mine = _numbers([(run.host, run.length) for run in row.runs])
    merging = _merging(row, reader, stage, stop, check=check) if row.runs else None
    lenders = [*row.sources, *row.donors]
    lending = [reader.tensor(lender) for lender in lenders]
    seen = [host, *lending, *(merging.views if merging else ())]
    wide = torch.float64 if torch.float64 in {one.dtype for one in seen} else torch.float32
    step = max((merging.step if merging else stage.block) // width, 1)
    checks = [reader.checking(source) for source in (row.host, *lenders)]
    for start in range(0, rows, step):
        if stop.is_set():
            raise Stopped
        for check_file in checks:
            check_file()
        end = min(start + step, rows)
        low, high = torch.searchsorted(mine, torch.tensor([start, end])).tolist()
        block = torch.zeros(end - start, width, dtype=wide)
        block[: max(len(host) - start, 0)] = checked(host[start:end], row.host, start * width)
        if low < high and merging:
            merged = merging.block(low * width, high * width).view(high - low, width)
            block.index_copy_(0, mine[low:high] - start, stage.store(merged.to(wide)))
        for added in row.added:
            if start <= added.row < end and added.source is None:
                block[added.row - start] = 0
            elif start <= added.row < end and added.source is not None:
                given = lending[added.source][added.source_row]
                block[added.row - start] = checked(given, lenders[added.source], added.source_row * width)
        yield start * width, block.view(-1), merging


def _merging(row: Row, reader: Reader, stage: Stage, stop: Event, *, check: bool) -> Merging:
    """The method over the shared tokens' rows."""
    sources: Sequence[Source] = [*row.sources, *([row.base] if row.base else [])]
    numbers = [_numbers([(run.sources[i], run.length) for run in row.runs]) for i in range(len(sources))]
    views = [
        Gathered(source, reader.tensor(source), own, stop, reader.checking(source))
        for source, own in zip(sources, numbers, strict=True)
    ]
    base = views.pop() if row.base else None
    return Merging(row, views, base, (sum(run.length for run in row.runs), row.shape[1]), stage, check=check)


def _numbers(ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Row numbers of ranges (start, length), one after another."""
    parts = [torch.arange(start, start + length) for start, length in ranges]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
