"""SVCCA: the mean canonical correlation of what carries most of the spread of each side."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fuse.align import Unmeasurable
from fuse.align.measures.samples import SIDES, centred, paired

LEAST = 4


class SVCCA(NamedTuple):
    """value: between 0 and 1. kept_x, kept_y: the directions kept. chance: what independent features would have.

    chance is the root of the mean squared correlation, ``sqrt(max(kept_x, kept_y) / (n - 1))``, which is exact for
    independent normal features and bounds their mean correlation from above.
    """

    value: float
    kept_x: int
    kept_y: int
    chance: float


def svcca(x: Tensor, y: Tensor, *, share: float = 0.99) -> SVCCA:
    """Each side reduced to the fewest directions that carry a share of its variance, then the mean correlation of CCA.

    Raghu et al. (arXiv 1706.05806), section 2: the canonical correlations are the singular values of ``U_x' U_y``,
    where U_x and U_y are the left singular vectors kept; the mean is over the smaller number of directions.
    Invariant to any invertible linear map of a side only as far as it keeps the same directions.
    x: ``(n, p)``; y: ``(n, q)``, any float dtype; computed in float64. Memory: n x (p + q) and the square of the
    smaller of n and p.
    Where the directions kept on both sides are together no fewer than the samples, some correlations are 1 for any
    features; so n has to be larger (our choice).

    Raises Unmeasurable for too few samples, and features that do not vary or are not finite.
    """
    if not 0 < share < 1:
        raise ValueError(f"share should be between 0 and 1, not {share}")
    sides = [centred(side, whose) for side, whose in zip(paired(x, y, LEAST, "SVCCA"), SIDES, strict=True)]
    first, second = (_directions(side, share) for side in sides)
    n, p, q = len(first), first.shape[1], second.shape[1]
    if n <= p + q:
        raise Unmeasurable(f"SVCCA, which keeps {p} and {q} directions, needs at least {p + q + 1} samples, not {n}")
    correlations = torch.linalg.svdvals(first.T @ second).clamp(max=1)
    return SVCCA(float(correlations.mean()), p, q, math.sqrt(max(p, q) / (n - 1)))


def _directions(x: Tensor, share: float) -> Tensor:
    """The left singular vectors ``(n, kept)`` of the largest singular values."""
    n, p = x.shape
    squares, vectors = torch.linalg.eigh(x.T @ x if p <= n else x @ x.T)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    reached = squares.cumsum(0) < share * squares.sum()
    kept = int(reached.sum()) + 1
    vectors = vectors[:, :kept]
    return x @ vectors / squares[:kept].sqrt() if p <= n else vectors
