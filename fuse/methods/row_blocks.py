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


def row_width(shape: Sequence[int]) -> int:
    """The length of a row: all of a vector, ``x[i]`` of a matrix, ``x[i, j]`` of three dimensions, ``x[i]`` of more.

    Three are a stack of matrices, such as the experts of a layer, and have the rows that the matrices have one by one.
    More are the kernels of a convolution, one for each channel that comes out; mergekit takes the last dimension there.
    """
    return math.prod({0: (), 1: shape, 3: shape[2:]}.get(len(shape), shape[1:]))


def as_rows(tensor: Tensor) -> Tensor:
    """The tensor as ``(rows, width)``."""
    width = row_width(tensor.shape)
    rows = math.prod(tensor.shape[: 2 if tensor.ndim == 3 else 1]) if tensor.ndim > 1 else 1
    return tensor.reshape(rows, width)


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
