"""Weighted mean of the members (model soups, arXiv 2203.05482, section 2)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import check_lengths, coefficients, combination
from fuse.methods.table import sums_to_zero


def linear(tensors: Sequence[Tensor], *, weights: Sequence[float], normalize: bool = True) -> Tensor:
    """The weighted mean of the tensors: ``sum(w / sum(w) * x)``, or ``sum(w * x)`` without normalize.

    tensors: one or more of any one shape and any float dtypes. weights: one number a tensor.
    Returns that shape in float32 (float64 where an input is float64).
    The weights are divided before the sum, in Python floats, so that one model alone comes out unchanged.

    Raises ValueError for unequal shapes or lengths and, with normalize, for weights that sum to zero.
    """
    check_lengths(tensors, weights=weights)
    if normalize and sums_to_zero(weights):
        raise ValueError(f"the weights {list(weights)} sum to zero, so they cannot be normalized")
    return combination(tensors, None, coefficients(weights, normalize))
