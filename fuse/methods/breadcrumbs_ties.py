"""Sign election over the middle magnitudes of task vectors (Model Breadcrumbs, arXiv 2312.06795, with TIES)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.crumbs import crumbled, measure, over_middles
from fuse.methods.ties import elected

__all__ = ["apply", "breadcrumbs_ties", "measure"]


def breadcrumbs_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """`breadcrumbs` with `ties`' election: what disagrees with the sign of the weighted sum is left out.

    tensors, base: one shape, any float dtypes. weights, density, gamma: one number a tensor.
    Returns that shape in float32 (float64 where an input is float64).
    normalize divides by the sum of the weights that agreed; off by default, as in mergekit.

    Raises ValueError for unequal shapes or lengths, and for density and gamma that do not fit into the whole.
    """
    return crumbled(apply, tensors, base, weights, density, gamma, lambda_=lambda_, normalize=normalize)


apply = over_middles(elected)
