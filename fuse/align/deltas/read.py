"""The task vectors of one row of a plan, read block by block or one of them as a matrix."""

from collections.abc import Iterator
from math import prod
from threading import Event

import torch
from torch import Tensor

from fuse.engine.finite import check_views, is_finite
from fuse.engine.read import Reader
from fuse.engine.views import Gathered, View
from fuse.methods.arithmetic import working_dtype
from fuse.methods.blocks import blocks
from fuse.plan import Row, Source


class TaskVectors:
    """The members' tensors and the base's, none of them held.

    members: their names, in the row's order. shape: of each tensor; where the row's tables are matched by token,
    that of the rows of shared tokens, which stand in the order of the host's.
    """

    def __init__(self, row: Row, reader: Reader) -> None:
        assert row.base is not None
        self.members = [source.member for source in row.sources]
        sources = [*row.sources, row.base]
        if row.host is None:
            self.shape = tuple(row.base.tensor.shape)
            self._views: list[View] = [reader.view(source, Event()) for source in sources]
        else:
            self.shape = (sum(run.length for run in row.runs), *row.shape[1:])
            self._views = [_gathered(row, number, source, reader) for number, source in enumerate(sources)]

    @property
    def is_matrix(self) -> bool:
        """Whether there are rows and columns; a convolution's kernel is ``(first dimension, the rest)``."""
        return len(self.shape) > 1 and prod(self.shape) > 0

    def blocks(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        """A block of every member's tensor and of the base's, flat, as stored.

        Raises CheckpointError for a number that is not finite, naming tensor, member and element.
        """
        for _, parts in blocks(self._views):
            if not all(map(is_finite, parts)):
                check_views(self._views)
            yield parts[:-1], parts[-1]

    def matrix(self, number: int) -> Tensor:
        """One member's task vector, ``(rows, width)``, in float32 (float64 where an input is float64)."""
        pair = [self._views[number], self._views[-1]]
        out = torch.empty(prod(self.shape), dtype=working_dtype(pair))
        for start, (mine, ground) in blocks(pair):
            out[start : start + len(mine)] = mine.to(torch.float64, copy=True).sub_(ground.double())
        return out.view(self.shape[0], -1)


def _gathered(row: Row, number: int, source: Source, reader: Reader) -> Gathered:
    """A table's rows of the tokens that all share."""
    ranges = [torch.arange(run.sources[number], run.sources[number] + run.length) for run in row.runs]
    return Gathered(source, reader.tensor(source), torch.cat(ranges), Event(), reader.checking(source))
