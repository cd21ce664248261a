"""The sum of the task matrices with all its directions made equally strong (Iso-C, arXiv 2502.04959, section 4)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.matrices import as_matrices, total
from fuse.methods.spectrum import polar


def iso_c(tensors: Sequence[Tensor], base: Tensor, *, lambda_: float = 1.0) -> Tensor:
    """The base plus the sum of the task matrices, every singular value of which is replaced by their mean.

    ``base + lambda * mean(s) * U @ V.T`` with ``U diag(s) V.T`` the sum. It is as large as the sum, so that lambda is
    below 1 in practice (0.4 in the OptMerge benchmark).
    tensors, base: one shape, any float dtypes. Tensors of one dimension get the sum of the task vectors, as the code
    of that benchmark does; `as_matrices` says what is a matrix.
    Returns that shape in float32 (float64 where an input is float64), computed in float64.
    Memory: the members in float32, nine more such tensors, and ten squares of the shorter side. The last bits may
    depend on the linear algebra library.
    Directions in which the sum is zero stay zero; they count in the mean. (The official code fills them with whatever
    vectors its decomposition returns.) A sum of zero is zero.

    Raises ValueError for unequal shapes.
    """
    return as_matrices(tensors, base, _merged, lambda_, vectors="sum")


def _merged(deltas: Sequence[Tensor]) -> Tensor:
    directions, values = polar(total(deltas))
    return directions.mul_(values.mean())
