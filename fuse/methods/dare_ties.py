"""Sign election over task vectors with elements dropped at random (DARE, arXiv 2311.03099, with TIES)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.drop import thinned_at_random
from fuse.methods.ties import elected


def dare_ties(
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
    """The base plus the merge of the thinned task vectors that agree with the elected sign.

    `ties` with random dropping in place of trimming: ``d = w * m * (x - base) / density`` with m 1 with
    probability density, else 0; then the sign of ``sum(d)`` is elected and the d that have it are added up.
    tensors, base: one shape, any float dtypes. weights, density, keys: one a tensor, keys from `random.key`.
    offset: the index, in the whole tensor, of the first element given.
    Returns that shape in float32 (float64 where an input is float64).
    normalize divides by the sum of the weights that agreed; off by default, as in mergekit.
    rescale is 1 / density as in the paper, not mergekit's restoring of the L1 norm (see `drop`).

    Raises ValueError for unequal shapes or lengths, or a density outside 0 (exclusive) to 1.
    """
    thinned = thinned_at_random(tensors, base, weights, density, keys, offset, rescale)
    return elected(thinned, base, weights, lambda_, normalize)
