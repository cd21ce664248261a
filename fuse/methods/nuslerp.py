"""Spherical interpolation of two tensors or task vectors, whole, by row or by column (NuSLERP of mergekit)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fuse.methods.arithmetic import check_lengths
from fuse.methods.blocks import Flat
from fuse.methods.checks import arc_problem
from fuse.methods.gram import Per, combined, cosines, gram, norms_of
from fuse.methods.row_blocks import in_rows

# Nearer than this to a cosine of 1, arc and line agree to 9 digits; nearer to -1 the arc's factors lose all digits.
NEARLY_ONE = 1e-8


def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    weights: Sequence[float],
    flatten: bool = True,
    row_wise: bool = False,
) -> Tensor:
    """The point at ``t = w1 / (w0 + w1)`` on the arc from the first tensor to the second, as mergekit's nuslerp.

    ``sin((1 - t) * a) / sin(a) * x0 + sin(t * a) / sin(a) * x1`` with ``cos(a) = <x0, x1> / (|x0| |x1|)``; with a base,
    the base plus that of the task vectors. A negative weight goes beyond an end of the arc.
    tensors: exactly two of one shape, any float dtypes. weights: one number a tensor.
    flatten: the angle is that of the whole tensors. Otherwise each vector has an angle of its own: the rows
    ``x[i]`` or, with row_wise, the columns ``x[:, j]`` (what mergekit does under that name, though its guide says the
    reverse). `row_blocks.row_width` says what the rows of other shapes are, and columns go through all of these; what
    has one row only is one vector.
    Returns that shape in float32 (float64 where an input is float64); angles are computed in float64.
    Where the vectors are parallel or opposite, or one is zero or not finite, it is the straight line
    ``(1 - t) * x0 + t * x1``. For a zero vector that is our choice: mergekit takes a right angle there.

    Raises ValueError for other than two tensors, unequal shapes or lengths, or weights that sum to zero (mergekit
    takes equal ones then).
    """
    if len(tensors) != 2:
        raise ValueError(f"nuslerp takes 2 tensors, not {len(tensors)}")
    check_lengths(tensors, weights=weights)
    if problem := arc_problem(weights):
        raise ValueError(problem)
    return in_rows(measure, apply, tensors, base, weights=weights, flatten=flatten, row_wise=row_wise)


def measure(
    tensors: Sequence[Flat],
    base: Flat | None = None,
    *,
    weights: Sequence[float],
    flatten: bool = True,
    row_wise: bool = False,
) -> tuple[Tensor, Per]:
    """The factors ``(2, vectors)`` of the two tensors, and what a vector is."""
    per: Per = "tensor" if flatten or tensors[0].shape[0] == 1 else "column" if row_wise else "row"
    products = gram(tensors, base, per)
    return arc_factors(products, weights[1] / math.fsum(weights)), per


def apply(tensors: Sequence[Tensor], *base_and_facts: Any, offset: int = 0, **_: object) -> Tensor:
    """`nuslerp` of some rows, given what `measure` found in the whole; the base, if there is one, before the facts."""
    *base, (factors, per) = base_and_facts
    return combined(tensors, base[0] if base else None, factors, offset, per)


def arc_factors(products: Tensor, t: float) -> Tensor:
    """The factors ``(2, vectors)`` of pairs of vectors with the Gram matrices ``(2, 2, vectors)``."""
    angle_cosines = cosines(products)[0, 1]
    angles = angle_cosines.acos()
    arcs = torch.stack([((1 - t) * angles).sin(), (t * angles).sin()]) / angles.sin()
    line = torch.tensor([[1 - t], [t]], dtype=arcs.dtype)
    straight = (angle_cosines.abs() > 1 - NEARLY_ONE) | (norms_of(products) == 0).any(0) | angle_cosines.isnan()
    return torch.where(straight, line, arcs)
