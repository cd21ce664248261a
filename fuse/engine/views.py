"""Stored tensors as merge methods see them: flat, and only ever a slice at a time."""

from collections.abc import Callable
from threading import Event
from typing import Protocol

import torch
from torch import Tensor

from fuse.methods.blocks import Flat
from fuse.plan import Source
from fuse.team import Stopped


class View(Flat, Protocol):
    """A flat tensor that knows where its numbers are stored."""

    source: Source

    def element(self, index: int) -> int:
        """The index, in the stored tensor, of one of the view's elements."""
        ...


class Stored:
    """All of a stored tensor.

    values: flat. stop: once it is set, no more is read. check: called before anything is read.
    """

    def __init__(self, source: Source, values: Flat, stop: Event, check: Callable[[], None] = lambda: None) -> None:
        self.source, self.shape, self.dtype = source, torch.Size([values.numel()]), values.dtype
        self._values, self._stop, self._check = values, stop, check

    def numel(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Tensor:
        if self._stop.is_set():
            raise Stopped
        self._check()
        return self._values[part]

    def element(self, index: int) -> int:
        return index


class Gathered:
    """Some rows of a stored table, one after another.

    table: ``(rows, width)``. numbers: int64, the rows, in the order in which they are seen. stop, check: as for Stored.
    """

    def __init__(
        self, source: Source, table: Tensor, numbers: Tensor, stop: Event, check: Callable[[], None] = lambda: None
    ) -> None:
        self.source, self.dtype = source, table.dtype
        self.shape = torch.Size([len(numbers) * table.shape[1]])
        self._table, self._numbers, self._stop, self._check = table, numbers, stop, check

    def numel(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Tensor:
        if self._stop.is_set():
            raise Stopped
        self._check()
        start, stop, _ = part.indices(self.numel())
        width = self._table.shape[1]
        first, last = start // width, -(-stop // width)
        rows = self._table.index_select(0, self._numbers[first:last])
        return rows.view(-1)[start - first * width : stop - first * width]

    def element(self, index: int) -> int:
        width = self._table.shape[1]
        return int(self._numbers[index // width]) * width + index % width


class Rows:
    """A flat tensor as ``(rows, width)``; a slice is one of rows."""

    def __init__(self, flat: Flat, width: int) -> None:
        self.shape, self.dtype = torch.Size([flat.numel() // max(width, 1), width]), flat.dtype
        self._flat = flat

    def numel(self) -> int:
        return self._flat.numel()

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(self.shape[0])
        width = self.shape[1]
        return self._flat[start * width : stop * width].view(max(stop - start, 0), width)
