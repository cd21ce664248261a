"""The mean of directions on a sphere (Karcher 1977), as mergekit's karcher."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fuse.methods.arithmetic import check_lengths
from fuse.methods.blocks import Flat, in_blocks
from fuse.methods.gram import combined, cosines, gram, norms_of
from fuse.methods.multislerp import length_of

# Sines and sums of directions below this are rounding.
NOTHING = 1e-12


def karcher(tensors: Sequence[Tensor], *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """The direction with the least sum of squared angles to the tensors', times the mean of their lengths.

    From the direction m of ``sum(x / |x|)``, up to max_iter times: v is the mean of the members in the plane that
    touches the sphere at m, each as far from m as its angle; unless ``|v| < tol``, m moves along the sphere by v.
    tensors: one or more of one shape, any float dtypes, each taken as one long vector.
    Returns that shape in float32 (float64 where an input is float64). The mean stays in the span of the members, so
    that the steps are taken in float64 on their products with each other, not on tensors.
    A zero tensor has no direction but counts among the lengths. Where directions cancel, m begins at the first one; a
    member opposite to m pulls nowhere. All of this is as in mergekit.

    Raises ValueError for unequal shapes or no tensors, max_iter below 0 or tol below 0.
    """
    check_lengths(tensors)
    if max_iter < 0 or not tol >= 0:
        raise ValueError(f"max_iter and tol should be at least 0, not {max_iter} and {tol}")
    return in_blocks(measure, apply, tensors, max_iter=max_iter, tol=tol)


def measure(tensors: Sequence[Flat], *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """The factors ``(n, 1)`` of the tensors."""
    products = gram(tensors)
    lengths = norms_of(products)[:, 0]
    there = lengths.nonzero()[:, 0]
    factors = torch.zeros(len(tensors), 1, dtype=torch.float64)
    if len(there):
        directions = mean_direction(cosines(products)[:, :, 0][there][:, there], max_iter, tol)
        factors[there, 0] = directions * lengths.mean() / lengths[there]
    return factors


def apply(tensors: Sequence[Tensor], facts: Tensor, *, offset: int = 0, **_: object) -> Tensor:
    """`karcher` of one block, given the factors."""
    return combined(tensors, None, facts, offset, "tensor")


def mean_direction(between: Tensor, max_iter: int, tol: float) -> Tensor:
    """The mean of unit vectors as shares ``(n,)`` of them, from the cosines ``(n, n)`` between them."""
    count = len(between)
    mean = torch.ones(count, dtype=torch.float64)
    size = length_of(mean, between)
    mean = mean / size if size > NOTHING else torch.eye(count, dtype=torch.float64)[0]
    for _ in range(max_iter):
        towards = (between @ mean).clamp(-1, 1)
        sines = (1 - towards * towards).sqrt()
        # angle / sin(angle) is 1 at angle 0; at half a turn the direction is open, so that the member is left out
        pulls = torch.where(sines > NOTHING, towards.acos() / sines, (towards > 0).double()) / count
        step = pulls - mean * (pulls * towards).sum()
        length = length_of(step, between)
        if length < tol or length == 0:
            break
        mean = mean * math.cos(length) + step * (math.sin(length) / length)
    return mean
