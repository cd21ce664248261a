"""Task arithmetic over task vectors thinned at random by rank (DELLA, arXiv 2406.11617)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import check_lengths, coefficients, difference, moved, working_dtype
from fuse.methods.checks import keep_range_problem
from fuse.methods.ranks import drop_by_rank


def della_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    keys: Sequence[int],
    offset: int = 0,
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
) -> Tensor:
    """`task_arithmetic` over task vectors thinned at random, small magnitudes of a row more than large ones.

    An element stays with a probability that rises with the rank of its magnitude in its row, from ``density - epsilon``
    to ``density + epsilon``, and is divided by it (see `ranks`). A row is ``x[i]`` (for more than two dimensions
    mergekit ranks along the second one), and all of a vector.
    tensors, base: one shape, any float dtypes. weights, density, epsilon, keys: one a tensor, keys from `random.key`.
    offset: the index, in the whole tensor, of the first element given, which begins a row.
    Returns that shape in float32 (float64 where an input is float64).
    normalize divides the weights by their sum (by 1 where that is zero, as mergekit).

    Raises ValueError for unequal shapes or lengths, and for probabilities outside 0 (exclusive) to 1.
    """
    check_lengths(tensors, weights=weights, density=density, epsilon=epsilon, keys=keys)
    if problem := keep_range_problem(density, epsilon):
        raise ValueError(problem)
    dtype = working_dtype([*tensors, base])
    thinned = (
        drop_by_rank(difference(tensor, base, dtype), share, half, rescale, key, offset)
        for tensor, share, half, key in zip(tensors, density, epsilon, keys, strict=True)
    )
    return moved(base, thinned, coefficients(weights, normalize, lambda_))
