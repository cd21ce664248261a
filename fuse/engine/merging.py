"""A merge method over the views of one row: what it makes of any stretch of elements."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fuse import methods
from fuse.engine.device import Stage
from fuse.engine.finite import check_views
from fuse.engine.views import Rows, View
from fuse.errors import CheckpointError
from fuse.methods.arithmetic import Unmergeable
from fuse.methods.blocks import Flat
from fuse.methods.random import key
from fuse.methods.row_blocks import row_width
from fuse.plan import Row


class Merging:
    """`block(start, stop)` is the merge of those elements, flat, in float32 or wider.

    views: flat, of one size, in the order of the method's inputs. base: where the method takes one. shape: what the
    whole is for methods that see rows or matrices. check: look first whether all is finite, where the method could hide
    what is not.
    step: elements that go well together in one block.
    Raises CheckpointError where a value is not finite.
    """

    def __init__(
        self, row: Row, views: Sequence[View], base: View | None, shape: Sequence[int], stage: Stage, *, check: bool
    ) -> None:
        self.row, self._stage = row, stage
        self.method = methods.METHODS[row.method]
        self.views = [*views, *([] if base is None else [base])]
        self._has_base = base is not None
        self._function, self._arguments = methods.load(row.method), self._call(len(views))
        self._width = row_width(shape) if self.method.by_row else 1
        self.step = max(stage.block // max(self._width, 1), 1) * max(self._width, 1)
        self._inputs: list[Flat] = list(self.views)
        if self.method.kind != "elementwise":
            if check and not self.method.transparent:
                check_views(self.views)
            if stage.holds_rows or self.method.kind == "whole":
                self._inputs = [stage.load(view[:]) for view in self.views]
        self._facts, self._merged = None, torch.empty(0)
        try:
            if self.method.kind == "measured":
                self._facts = methods.part(row.method, "measure")(*self._split(self._shaped()), **self._arguments)
            if self.method.kind == "whole":
                whole = [x.view(tuple(shape)) for x in self._inputs if isinstance(x, Tensor)]
                self._merged = self._function(*self._split(whole), **self._arguments).reshape(-1)
        except Unmergeable as error:
            told = str(error).format(*(view.source.member for view in views))
            raise CheckpointError(
                f"{row.method} cannot merge tensor {row.canonical!r}: {told}",
                where=row.sources[0].tensor.file,
                hint="another method, or other parameters for it by a pattern table",
            ) from None

    def block(self, start: int, stop: int) -> Tensor:
        if self.method.kind == "whole":
            return self._merged[start:stop]
        parts = [x[start:stop] for x in self._inputs]
        if not isinstance(self._inputs[0], Tensor):
            parts = [self._stage.load(part) for part in parts]
        if self.method.by_row:
            parts = [part.view(len(part) // max(self._width, 1), self._width) for part in parts]
        if self.method.kind == "elementwise":
            offset = {"offset": start} if self.method.random else {}
            return self._function(*self._split(parts), **self._arguments, **offset).view(-1)
        apply = methods.part(self.row.method, "apply")
        return apply(*self._split(parts), self._facts, offset=start, **self._arguments).view(-1)

    def _call(self, count: int) -> dict[str, Any]:
        arguments = self.method.arguments(self.row.parameters, count)
        if self.method.random:
            seed = int(self.row.parameters.get("seed", 0))
            arguments["keys"] = [key(seed, self.row.canonical, s.member) for s in self.row.sources]
        return arguments

    def _shaped(self) -> list[Flat]:
        return [Rows(x, self._width) for x in self._inputs] if self.method.by_row else self._inputs

    def _split(self, inputs: Sequence[Any]) -> list[Any]:
        return [inputs[:-1], inputs[-1]] if self._has_base else [inputs]
