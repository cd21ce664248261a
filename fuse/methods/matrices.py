"""Task vectors as matrices: what the methods share that look at a tensor's rows and columns."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fuse import interruption
from fuse.methods.arithmetic import check_lengths, task_vector, working_dtype
from fuse.methods.matrix_sides import sides

# Numbers of a block of rows that is computed in float64.
BLOCK = 1 << 20
Rule = Callable[[Sequence[Tensor]], Tensor]


def as_matrices(tensors: Sequence[Tensor], base: Tensor, rule: Rule, lambda_: float, vectors: str = "mean") -> Tensor:
    """``base + lambda * rule(deltas)``, the task vectors as matrices ``(rows, width)``.

    A tensor of three dimensions is a stack of matrices, such as the experts of a layer: the rule sees one by one. One
    of more, such as a convolution's kernel, is ``(first dimension, the rest)``. Tensors of one dimension or none are
    no matrices: their task vectors are averaged, or added up with vectors "sum".
    Numbers that are not finite go by the rule too, because an eigendecomposition would refuse them: the task vectors
    are then added up, so that each stays in its place.
    rule: finite matrices in the working dtype -> one matrix of that shape, of any float dtype.
    Returns base's shape in float32 (float64 where an input is float64).

    Raises ValueError for no tensors or unequal shapes.
    """
    check_lengths(tensors)
    dtype = working_dtype([*tensors, base])
    start = base.to(dtype)
    deltas = [task_vector(tensor, start) for tensor in tensors]
    if start.ndim < 2 or start.numel() == 0:
        merged = total(deltas)
        if vectors == "mean":
            merged.div_(len(deltas))
    elif all(bool(delta.isfinite().all()) for delta in deltas):
        stacks = [delta.view(-1, *sides(delta.shape)) for delta in deltas]
        parts = [rule(matrices).to(dtype) for matrices in zip(*stacks, strict=True)]
        merged = (parts[0] if len(parts) == 1 else torch.stack(parts)).view(start.shape)
    else:
        merged = total(deltas)
    return merged.mul_(lambda_).add_(start)


def total(deltas: Sequence[Tensor]) -> Tensor:
    """The sum, from left to right, in memory of its own."""
    merged = deltas[0].clone()
    for delta in deltas[1:]:
        merged.add_(delta)
    return merged


def mean(deltas: Sequence[Tensor]) -> Tensor:
    """The sum divided by the number of task vectors."""
    return total(deltas).div_(len(deltas))


def gram(matrix: Tensor) -> Tensor:
    """``matrix.T @ matrix`` in float64, ``(width, width)``, added up over blocks of rows."""
    products = matrix.new_zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for (block,) in row_blocks(matrix):
        wide = block.double()
        products.addmm_(wide.T, wide)
    return products


def times(matrix: Tensor, right: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """``matrix @ right``, computed in float64 with no float64 copy of the matrix. right: float64."""
    product = matrix.new_empty(matrix.shape[0], right.shape[1], dtype=dtype)
    for block, out in row_blocks(matrix, product):
        out.copy_(block.double() @ right)
    return product


def row_blocks(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of rows of matrices with one number of rows, as views. Each is a place where a signal ends the work."""
    step = max(BLOCK // matrices[0].shape[1], 1)
    for blocks in zip(*(matrix.split(step) for matrix in matrices), strict=True):
        interruption.check()
        yield blocks
