"""Spherical linear interpolation of two whole tensors (Shoemake 1985)."""

import math
from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import Unmergeable, combination
from fuse.methods.blocks import Flat, in_blocks
from fuse.methods.gram import gram

# Above this |cosine| the arc is nearly a line or, between opposite tensors, any half circle. As mergekit.
COLLINEAR = 0.9995


def slerp(tensors: Sequence[Tensor], *, t: float) -> Tensor:
    """The point at t on the arc from the first tensor to the second, each taken as one long vector.

    ``sin((1 - t) * a) / sin(a) * x0 + sin(t * a) / sin(a) * x1`` with ``cos(a) = <x0, x1> / (|x0| |x1|)``.
    tensors: exactly two of one shape, any float dtypes.
    Returns that shape in float32 (float64 where an input is float64); the cosine is computed in float64.
    Where ``cos(a) > 0.9995``, both tensors are zero, one is not finite, or t is 0 or 1, it is the straight line
    ``(1 - t) * x0 + t * x1``.

    Raises ValueError for other than two tensors, unequal shapes, or t outside 0 to 1; Unmergeable where one tensor is
    zero and the other is not, or the two are opposite (``cos(a) < -0.9995``), so that no arc is defined. There mergekit
    takes a right angle, and the straight line.
    """
    if len(tensors) != 2:
        raise ValueError(f"slerp takes 2 tensors, not {len(tensors)}")
    if not 0 <= t <= 1:
        raise ValueError(f"t should be from 0 to 1, not {t}")
    return in_blocks(measure, apply, tensors, t=t)


def measure(tensors: Sequence[Flat], *, t: float) -> tuple[float, float]:
    """The factors of the two tensors. Raises Unmergeable where they are joined by no arc, or by any."""
    found = _products(*tensors)
    zero = [square == 0 for square in found[1:]]
    if 0 < t < 1 and zero[0] != zero[1]:
        at, other = ("{0}", "{1}") if zero[0] else ("{1}", "{0}")
        raise Unmergeable(f"it is all zeros in {at} and not in {other}, so no arc joins the two")
    angle = _cosine(*found)
    if 0 < t < 1 and angle < -COLLINEAR:
        raise Unmergeable(f"it points in opposite directions in {{0}} and {{1}} (cosine {angle:.6f}), so any arc fits")
    return arc_weights(angle, t)


def apply(tensors: Sequence[Tensor], facts: tuple[float, float], *, t: float, offset: int = 0) -> Tensor:
    """`slerp` of one block, given the factors that `measure` found."""
    del t, offset
    return combination(tensors, None, facts)


def cosine(first: Flat, second: Flat) -> float:
    """``<x, y> / (|x| |y|)`` in float64, within -1 to 1; NaN where a norm is zero or not finite."""
    return _cosine(*_products(first, second))


def _products(first: Flat, second: Flat) -> list[float]:
    """``<x, y>``, ``<x, x>`` and ``<y, y>``."""
    products = gram([first, second])
    return [float(products[i, j]) for i, j in ((0, 1), (0, 0), (1, 1))]


def _cosine(dot: float, *squares: float) -> float:
    norm = math.prod(map(math.sqrt, squares))
    return max(-1.0, min(1.0, dot / norm)) if 0 < norm < math.inf and math.isfinite(dot) else math.nan


def arc_weights(cosine: float, t: float) -> tuple[float, float]:
    """The factors of the first and the second tensor; those of the straight line where there is no arc."""
    if math.isnan(cosine) or abs(cosine) > COLLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
