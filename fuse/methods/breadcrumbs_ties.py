"""Sign election over the middle magnitudes of task vectors (Model Breadcrumbs, arXiv 2312.06795, with TIES)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import check_lengths
from fuse.methods.blocks import Flat, in_blocks
from fuse.methods.checks import crumbs_problem
from fuse.methods.crumbs import Cuts, cuts_of, middles
from fuse.methods.ties import elected


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
    """`breadcrumbs_ties` of one block of flat tensors, given what `measure` found in the whole."""
    deltas = middles(tensors, base, facts, offset)
    return elected(deltas, base, weights, lambda_, normalize)
