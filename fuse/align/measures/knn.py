"""Mutual nearest neighbours: how many neighbours of a sample are its neighbours on both sides."""

from typing import NamedTuple

import torch
from torch import Tensor

from fuse.align import Unmeasurable
from fuse.align.measures.distances import BLOCK
from fuse.align.measures.samples import SIDES, centred, paired

K = 10


class Neighbours(NamedTuple):
    """value: between 0 and 1. chance: ``k / (n - 1)``, the mean for independent features."""

    value: float
    chance: float


def least(k: int) -> int:
    """With k + 1 samples all others are neighbours on both sides, whatever the features."""
    return k + 2


def mutual_knn(x: Tensor, y: Tensor, *, k: int = K) -> Neighbours:
    """The mean, over samples, of ``|N_x(i) & N_y(i)| / k``, where N(i) are the k samples with the largest cosine to i.

    Huh et al. (arXiv 2405.07987), appendix A. The features are not centred, as there. Invariant to
    rotating and scaling a side, and to scaling a sample. Among equally near samples the choice is arbitrary.
    x: ``(n, p)``; y: ``(n, q)``, any float dtype, n >= k + 2; computed in float64. Time grows with n^2 (p + q); memory
    is two blocks of 512 x n.

    Raises Unmeasurable for too few samples, features that do not vary or are not finite, or a sample that is zero.
    """
    if k < 1:
        raise ValueError(f"k should be at least 1, not {k}")
    pair = paired(x, y, least(k), f"agreement of {k} nearest neighbours")
    first, second = (_directions(side, whose) for side, whose in zip(pair, SIDES, strict=True))
    n, shared = len(first), 0
    for start in range(0, n, BLOCK):
        near = [_neighbours(side, start, k) for side in (first, second)]
        shared += int((near[0][:, :, None] == near[1][:, None]).sum())
    return Neighbours(shared / (n * k), k / (n - 1))


def _directions(x: Tensor, whose: str) -> Tensor:
    centred(x, whose)
    norms = x.norm(dim=1, keepdim=True)
    zero = (norms[:, 0] == 0).nonzero()
    if len(zero):
        raise Unmeasurable(f"sample {int(zero[0])} of {whose} is zero, which has no direction")
    return x / norms


def _neighbours(x: Tensor, start: int, k: int) -> Tensor:
    cosines = x[start : start + BLOCK] @ x.T
    cosines.diagonal(start).fill_(-torch.inf)
    return cosines.topk(k).indices
