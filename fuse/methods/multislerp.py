"""Barycentric mean of directions on a sphere, by way of a tangent plane (Multi-SLERP of mergekit)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fuse.methods.arithmetic import check_lengths, coefficients
from fuse.methods.blocks import Flat, in_blocks
from fuse.methods.gram import combined, cosines, gram, norms_of
from fuse.methods.table import sums_to_zero


def multislerp(
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    weights: Sequence[float],
    normalize: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """A weighted mean of the tensors' directions, as long as the weighted mean of their lengths, as mergekit's.

    ``u = x / |x|``; m is the direction of ``sum(w * u)``; ``v = sum(w * (u - <m, u> m))`` is the members' mean in the
    plane that touches the sphere at m; and the result is ``sum(w * |x|) * (cos(|v|) * m + sin(|v|) * v / |v|)``. With a
    base, the base plus that of the task vectors.
    tensors: one or more of one shape, any float dtypes, each taken as one long vector. weights: one number a tensor.
    normalize divides the weights by their sum. eps: a length up to which a vector counts as having no direction;
    mergekit's is added to lengths, which differs by about eps.
    Returns that shape in float32 (float64 where an input is float64); the factors are computed in float64.
    Where the weighted directions cancel, it is ``sum(w * x)``.

    Raises ValueError for unequal shapes or lengths, and for weights that sum to zero where normalize divides by it.
    """
    check_lengths(tensors, weights=weights)
    if normalize and sums_to_zero(weights):
        raise ValueError(f"the weights {list(weights)} sum to zero, so they cannot be normalized")
    return in_blocks(measure, apply, tensors, base, weights=weights, normalize=normalize, eps=eps)


def measure(
    tensors: Sequence[Flat],
    base: Flat | None = None,
    *,
    weights: Sequence[float],
    normalize: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """The factors ``(n, 1)`` of the tensors."""
    products = gram(tensors, base)
    shares = torch.tensor(coefficients(weights, normalize), dtype=torch.float64)
    lengths, between = norms_of(products)[:, 0], cosines(products)[:, :, 0]
    directed = shares * (lengths > eps)  # of unit vectors; zero ones have none
    size = length_of(directed, between)
    if not size > eps:
        return shares[:, None]
    mean = directed / size
    tangent = directed - mean * (directed * (between @ mean)).sum()
    slope = length_of(tangent, between)
    units = mean * math.cos(slope) + tangent * (math.sin(slope) / slope if slope > 0 else 1.0)
    along = units * (shares * lengths).sum()
    return torch.where(lengths > eps, along / lengths, 0.0)[:, None]


def apply(tensors: Sequence[Tensor], *base_and_facts: Any, offset: int = 0, **_: object) -> Tensor:
    """`multislerp` of one block, given the factors; the base, if there is one, before them."""
    *base, factors = base_and_facts
    return combined(tensors, base[0] if base else None, factors, offset, "tensor")


def length_of(shares: Tensor, between: Tensor) -> float:
    """The length of ``sum(share * u)`` of unit vectors u that have these cosines between them."""
    return math.sqrt(max(0.0, (shares @ between @ shares).item()))
