"""Base plus a weighted sum of task vectors (arXiv 2212.04089, section 2)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import check_lengths, coefficients, combination


def task_arithmetic(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    lambda_: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """The base plus the weighted sum of the task vectors: ``base + sum(lambda * w * (x - base))``.

    tensors, base: one shape, any float dtypes. weights: one number a tensor.
    Returns that shape in float32 (float64 where an input is float64).
    normalize divides the weights by their sum (by 1 where that is zero, as mergekit).

    Raises ValueError for unequal shapes or lengths.
    """
    check_lengths(tensors, weights=weights)
    return combination(tensors, base, coefficients(weights, normalize, lambda_))
