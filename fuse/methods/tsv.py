"""The members' leading singular vectors, made orthogonal to each other (TSV-Merge, arXiv 2412.00081)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fuse.methods.matrices import as_matrices, times
from fuse.methods.spectrum import polar, spectrum


def tsv(tensors: Sequence[Tensor], base: Tensor, *, lambda_: float = 1.0) -> Tensor:
    """The base plus the sum of the members' low-rank task matrices, whose singular vectors do not interfere.

    Each of N task matrices keeps its ``max(1, min(rows, width) // N)`` largest singular triplets. The left vectors of
    all, side by side, are replaced by the nearest matrix with orthonormal columns, and so are the right ones; the sum
    of the triplets so changed is the merged task matrix. lambda multiplies it.
    tensors, base: one shape, any float dtypes. Tensors of one dimension get the mean of the task vectors, as the
    code of the OptMerge benchmark does; `as_matrices` says what is a matrix.
    Returns that shape in float32 (float64 where an input is float64), computed in float64.
    Memory: the members in float32, nine more such tensors, and ten squares of the shorter side. The last bits may
    depend on the linear algebra library.
    A member equal to the base adds nothing, but counts in N. Where members share a direction, it is shared out evenly
    (the paper's decomposition is arbitrary there).

    Raises ValueError for unequal shapes.
    """
    return as_matrices(tensors, base, _merged, lambda_)


def _merged(deltas: Sequence[Tensor]) -> Tensor:
    rows, width = deltas[0].shape
    rank = max(1, min(rows, width) // len(deltas))
    left, right, values = (deltas[0].new_empty(n, len(deltas) * rank, dtype=torch.float64) for n in (rows, width, 1))
    for n, delta in enumerate(deltas):
        found, mine = spectrum(delta, rank), slice(n * rank, (n + 1) * rank)
        left[:, mine], values[:, mine], right[:, mine] = found.left, found.values, found.right
    left, _ = polar(left)
    right, _ = polar(right)
    return times(left.mul_(values), right.T, deltas[0].dtype)
