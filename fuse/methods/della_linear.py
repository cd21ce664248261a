"""Task arithmetic over task vectors thinned at random by rank (DELLA, arXiv 2406.11617)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import summed
from fuse.methods.ranks import thinned_by_rank


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
    to ``density + epsilon``, and is divided by it (see `ranks`). A row is that of `row_blocks.row_width` (in a stack of
    matrices mergekit ranks along the columns).
    tensors, base: one shape, any float dtypes. weights, density, epsilon, keys: one a tensor, keys from `random.key`.
    offset: the index, in the whole tensor, of the first element given, which begins a row.
    Returns that shape in float32 (float64 where an input is float64).
    normalize divides the weights by their sum (by 1 where that is zero, as mergekit).

    Raises ValueError for unequal shapes or lengths, and for probabilities outside 0 (exclusive) to 1.
    """
    thinned = thinned_by_rank(tensors, base, weights, density, epsilon, keys, offset, rescale)
    return summed(thinned, base, weights, lambda_, normalize)
