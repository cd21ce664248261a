"""Tensors seen as rows, some whole rows at a time."""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fuse.methods.arithmetic import working_dtype
from fuse.methods.blocks import BLOCK

# At most torch's grain size, so that a sum never depends on the number of threads.
SUM = 1 << 15


def as_rows(tensor: Tensor) -> Tensor:
    """The tensor as ``(rows, width)``: a row is all of a vector, and all but the first dimension of anything else."""
    rows = tensor.shape[0] if tensor.ndim > 1 else 1
    return tensor.reshape(rows, math.prod(tensor.shape[1:] if tensor.ndim > 1 else tensor.shape))


def row_step(width: int, size: int | None = None) -> int:
    """How many rows of this width make a block of about `size` elements (BLOCK where left out); at least one."""
    return max(1, (size or BLOCK) // max(width, 1))


def row_sums(rows: Tensor) -> Tensor:
    """The sum of each row, in an order that depends on its width alone; not on threads or on the rows beside it."""
    return reduce(Tensor.add_, (piece.sum(-1) for piece in rows.split(SUM, -1)))


def in_rows(
    measure: Callable[..., Any], apply: Callable[..., Tensor], tensors: Sequence[Tensor], base: Tensor | None = None,
    **arguments: Any,
) -> Tensor:  # fmt: skip
    """A method measured by row over whole tensors: measure, then apply to some rows at a time.

    Returns their shape in the working dtype. `apply` is told the index of its block's first element as `offset`.
    Raises what `measure` and `apply` raise.
    """
    everything = [*tensors, *([] if base is None else [base])]
    dtype = working_dtype(everything)
    given = [as_rows(tensor) for tensor in everything]

    def split(parts: list[Tensor]) -> list[Any]:
        return [parts] if base is None else [parts[:-1], parts[-1]]

    facts = measure(*split(given), **arguments)
    merged = torch.empty(tensors[0].shape, dtype=dtype, device=tensors[0].device)
    out, (rows, width) = as_rows(merged), given[0].shape
    step = row_step(width)
    for start in range(0, rows, step):
        parts = [tensor[start : start + step] for tensor in given]
        out[start : start + step] = apply(*split(parts), facts, offset=start * width, **arguments)
    return merged
