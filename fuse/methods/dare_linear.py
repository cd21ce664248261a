"""Task arithmetic over task vectors with elements dropped at random (DARE, arXiv 2311.03099, section 3)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import summed
from fuse.methods.drop import thinned_at_random


def dare_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    keys: Sequence[int],
    offset: int = 0,
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
) -> Tensor:
    """The base plus the weighted sum of the thinned task vectors.

    ``base + sum(lambda * w * m * (x - base) / density)`` with m 1 with probability density, else 0.
    tensors, base: one shape, any float dtypes. weights, density, keys: one a tensor, keys from `random.key`.
    offset: the index, in the whole tensor, of the first element given.
    Returns that shape in float32 (float64 where an input is float64).
    normalize divides the weights by their sum (by 1 where that is zero, as mergekit).
    rescale is 1 / density as in the paper, not mergekit's restoring of the L1 norm (see `drop`).

    Raises ValueError for unequal shapes or lengths, or a density outside 0 (exclusive) to 1.
    """
    thinned = thinned_at_random(tensors, base, weights, density, keys, offset, rescale)
    return summed(thinned, base, weights, lambda_, normalize)
