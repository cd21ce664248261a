"""Task arithmetic over the middle magnitudes of task vectors (Model Breadcrumbs, arXiv 2312.06795)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import summed
from fuse.methods.crumbs import crumbled, measure, over_middles

__all__ = ["apply", "breadcrumbs", "measure"]


def breadcrumbs(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """The base plus the weighted sum of the task vectors without their largest and their smallest magnitudes.

    Of each task vector ``x - base`` the share gamma with the largest magnitudes is dropped (the paper's beta), and of
    the others the share density of the whole is kept, the largest of them.
    tensors, base: one shape, any float dtypes. weights, density, gamma: one number a tensor.
    Returns that shape in float32 (float64 where an input is float64).
    normalize divides the weights by their sum (by 1 where that is zero). mergekit drops fewer of the largest where
    density + gamma is more than 1; here that is an error. Its rescale, which restores the L1 norm, is not offered.

    Raises ValueError for unequal shapes or lengths, and for density and gamma that do not fit into the whole.
    """
    return crumbled(apply, tensors, base, weights, density, gamma, lambda_=lambda_, normalize=normalize)


apply = over_middles(summed)
