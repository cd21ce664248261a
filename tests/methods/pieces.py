"""Measured methods put together in other ways than their functions do it."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fuse.methods.row_blocks import as_rows


class OnlySlices:
    """What `measure` may use of a tensor, and nothing more."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype, self._tensor = tensor.shape, tensor.dtype, tensor

    def numel(self) -> int:
        return self._tensor.numel()

    def __getitem__(self, part: slice) -> Tensor:
        return self._tensor[part].clone()


def in_pieces(
    module: ModuleType, tensors: list[Tensor], base: Tensor | None, step: int, by_row: bool, **arguments: Any
) -> Tensor:
    """measure over views, then apply to `step` elements (rows with by_row) at a time."""
    shaped = [as_rows(t) if by_row else t.reshape(-1) for t in [*tensors, *([] if base is None else [base])]]

    def split(parts: list[Any]) -> list[Any]:
        return [parts] if base is None else [parts[:-1], parts[-1]]

    facts = module.measure(*split([OnlySlices(t) for t in shaped]), **arguments)
    width = shaped[0].shape[1] if by_row else 1
    parts = [
        module.apply(*split([t[start : start + step] for t in shaped]), facts, offset=start * width, **arguments)
        for start in range(0, len(shaped[0]), step)
    ]
    return torch.cat(parts).view(tensors[0].shape)
