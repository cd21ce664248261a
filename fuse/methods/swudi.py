"""WUDI's loss descended in one go, along its strongest directions only (SWUDI, of the OptMerge benchmark's code)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fuse.methods.interference import descend, quadratic
from fuse.methods.matrices import as_matrices, gram, mean, total

# Eigenvalues below this are rounding.
LEAST = 1e-8
STARTS: Mapping[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "sum": total,
    "mean": mean,
    "zero": lambda deltas: torch.zeros_like(deltas[0]),
}


def swudi(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    init: str = "sum",
    time: float = 300.0,
    ratio: float = 0.65,
    lambda_: float = 1.0,
) -> Tensor:
    """The base plus what gradient descent on WUDI's loss comes to after a time, seen in C's strongest eigenvectors.

    The loss is that of `wudi`. Descent by small steps for a time t covers the share ``1 - exp(-l t)`` of the way to
    the minimum along an eigenvector of C (`interference`) with eigenvalue l; along the others than the
    ``ceil(ratio * width)`` strongest it stays at the start: the "sum" of the task matrices, their "mean", or "zero".
    From the sum the result is as large as the sum, so that lambda is about one divided by the number of members.
    tensors, base: one shape, any float dtypes. Tensors of one dimension get the mean of the task vectors, as in the
    official code; `as_matrices` says what is a matrix.
    Returns that shape in float32 (float64 where an input is float64), computed in float64.
    Memory: the members in float32, eight more such tensors, and nine squares of the width. The last bits may depend on
    the linear algebra library. A member equal to the base adds nothing, but counts in the mean.

    Raises ValueError for unequal shapes, another init, a time below 0, or a ratio outside 0 (exclusive) to 1.
    """
    check_start(init)
    if not time >= 0:
        raise ValueError(f"time should be at least 0, not {time}")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio should be greater than 0 and at most 1, not {ratio}")

    def progress(values: Tensor) -> Tensor:
        width = len(values)
        known = values.clamp(min=LEAST)
        covered = -torch.expm1(-known * time) / known
        # as the official code rounds up
        covered[: width - max(1, min(width, int(width * ratio + 0.999)))] = 0
        return covered

    def merged(deltas: Sequence[Tensor]) -> Tensor:
        loss = quadratic((delta, delta, gram(delta)) for delta in deltas)
        return descend(STARTS[init](deltas), loss, progress)

    return as_matrices(tensors, base, merged, lambda_)


def check_start(init: str) -> None:
    """Raise ValueError for an init that there is not."""
    if init not in STARTS:
        raise ValueError(f"init should be sum, mean or zero, not {init!r}")
