"""Task arithmetic over the middle magnitudes of task vectors (Model Breadcrumbs, arXiv 2312.06795)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import check_lengths, coefficients, moved
from fuse.methods.blocks import Flat, in_blocks
from fuse.methods.checks import crumbs_problem
from fuse.methods.crumbs import Cuts, cuts_of, middles


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
    check_lengths(tensors, weights=weights, density=density, gamma=gamma)
    if problem := crumbs_problem(density, gamma):
        raise ValueError(problem)
    return in_blocks(
        measure, apply, tensors, base,
        weights=weights, density=density, gamma=gamma, lambda_=lambda_, normalize=normalize,
    )  # fmt: skip


def measure(
    tensors: Sequence[Flat], base: Flat, *, density: Sequence[float], gamma: Sequence[float], **_: object
) -> tuple[Cuts, ...]:
    """Where each member's task vector is cut."""
    return cuts_of(tensors, base, density, gamma)


def apply(
    tensors: Sequence[Tensor],
    base: Tensor,
    facts: Sequence[Cuts],
    *,
    weights: Sequence[float],
    offset: int = 0,
    lambda_: float = 1.0,
    normalize: bool = False,
    **_: object,
) -> Tensor:
    """`breadcrumbs` of one block of flat tensors, given what `measure` found in the whole."""
    deltas = middles(tensors, base, facts, offset)
    return moved(base, deltas, coefficients(weights, normalize, lambda_))
