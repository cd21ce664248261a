"""WUDI's minimum along as many directions as the spectrum has (ASWUDI, of the OptMerge benchmark's code)."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fuse.methods.interference import descend, quadratic
from fuse.methods.matrices import as_matrices, gram
from fuse.methods.matrix_sides import sides
from fuse.methods.swudi import LEAST, STARTS, check_start


def aswudi(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    init: str = "sum",
    rank: str = "participation_sqrt",
    share: float = 0.9,
    lambda_: float = 1.0,
) -> Tensor:
    """The base plus the minimum of WUDI's loss along C's strongest eigenvectors, and the start along the others.

    The loss and C are those of `interference`; the start is the "sum" of the task matrices, their "mean", or "zero".
    From the sum the result is as large as the sum, so that lambda is about one divided by the number of members.
    How many eigenvectors are the strongest, a rule says of the eigenvalues l, largest first (`RULES`):

    "stable_rank": ``sum(l^2) / l_1^2``, rounded up. "entropy": ``exp(H(l / sum(l)))``, rounded up.
    "participation": ``sum(l)^2 / sum(l^2)``, rounded up; "participation_sqrt" the same of ``sqrt(l)``.
    "cumvar": as many as it takes until their sum reaches `share` of all; no other rule looks at share.
    "gavish_donoho": those with ``sqrt(l)`` above the optimal threshold for a matrix of that shape, times their median
    (arXiv 1305.5870, equation 11, with the official code's estimate of the median of pure noise).

    tensors, base: one shape, any float dtypes. Tensors of one dimension get the mean of the task vectors, as in the
    official code; `as_matrices` says what is a matrix.
    Returns that shape in float32 (float64 where an input is float64), computed in float64.
    Memory: the members in float32, eight more such tensors, and nine squares of the width. The last bits may depend on
    the linear algebra library. A member equal to the base adds nothing, but counts in the mean.

    Raises ValueError for unequal shapes, another init or rank, or a share outside 0 (exclusive) to 1.
    """
    check_start(init)
    if rank not in RULES:
        raise ValueError(f"rank should be one of {', '.join(RULES)}, not {rank!r}")
    if not 0 < share <= 1:
        raise ValueError(f"share should be greater than 0 and at most 1, not {share}")
    rows, width = sides(base.shape)

    def progress(values: Tensor) -> Tensor:
        known = values.clamp(min=LEAST)
        count = RULES[rank](known.flip(0), rows, width, share)
        covered = 1 / known
        covered[: width - max(1, min(width, count))] = 0
        return covered

    def merged(deltas: Sequence[Tensor]) -> Tensor:
        loss = quadratic((delta, delta, gram(delta)) for delta in deltas)
        return descend(STARTS[init](deltas), loss, progress)

    return as_matrices(tensors, base, merged, lambda_)


def _stable_rank(values: Tensor, *_: float) -> int:
    return math.ceil(values.square().sum() / values[0] ** 2)


def _entropy(values: Tensor, *_: float) -> int:
    return math.ceil(torch.special.entr(values / values.sum()).sum().exp())


def _participation(values: Tensor, *_: float) -> int:
    return math.ceil(values.sum() ** 2 / values.square().sum())


def _participation_sqrt(values: Tensor, *_: float) -> int:
    return _participation(values.sqrt())


def _cumvar(values: Tensor, rows: int, width: int, share: float) -> int:
    del rows, width
    return int((values.cumsum(0) / values.sum() < share).sum()) + 1


def _gavish_donoho(values: Tensor, rows: int, width: int, share: float) -> int:
    del share
    aspect = min(rows, width) / max(rows, width)
    known_noise = math.sqrt(2 * (aspect + 1) + 8 * aspect / (aspect + 1 + math.sqrt(aspect**2 + 14 * aspect + 1)))
    median = math.sqrt((1 - aspect) ** 2 + aspect) if aspect < 0.9999 else math.sqrt(2 + math.sqrt(3))
    roots = values.sqrt()
    return int((roots > known_noise / median * roots.median()).sum())


RULES: Mapping[str, Callable[[Tensor, int, int, float], int]] = {
    "stable_rank": _stable_rank,
    "entropy": _entropy,
    "participation": _participation,
    "participation_sqrt": _participation_sqrt,
    "cumvar": _cumvar,
    "gavish_donoho": _gavish_donoho,
}
