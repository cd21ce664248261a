"""Orthogonal Procrustes distance: what is left of one side when the other is rotated onto it as well as can be."""

import torch
from torch import Tensor

from fuse.align.measures.moments import Cross, Means
from fuse.align.measures.samples import SIDES, centred, enough, paired

LEAST = 2
ROWS = 4096


def procrustes(x: Tensor, y: Tensor) -> float:
    """``min_R |x~ - y~ R|_F^2 = 2 - 2 |x~' y~|_*``, both centred and scaled to a Frobenius norm of 1.

    Ding, Denain and Steinhardt (arXiv 2108.01661). R is orthogonal; the narrower side is padded with zero
    columns, which leaves the nuclear norm as it is. 0 for rotated, scaled and moved copies, at most 2. Like CCA
    it grows smaller where features are not few beside samples, whether they are alike or not.
    x: ``(n, p)``; y: ``(n, q)``, any float dtype, n >= 2; computed in float64. Time is that of the singular values of
    a matrix of min(n, p) x min(n, q).

    Raises Unmeasurable for fewer than 2 samples, and features that do not vary or are not finite.
    """
    sides = [
        centred(side, whose) for side, whose in zip(paired(x, y, LEAST, "Procrustes distance"), SIDES, strict=True)
    ]
    squares = [float(side.square().sum()) for side in sides]
    # X' = Q R: the singular values of X'Y are those of R_x R_y', which is smaller where samples are few
    first, second = (torch.linalg.qr(side.T, mode="r").R if len(side) < side.shape[1] else side.T for side in sides)
    return _distance(first @ second.T, *squares)


class Procrustes:
    """The same distance, a batch of samples at a time; memory is p x q numbers and `ROWS` samples in float64."""

    def __init__(self) -> None:
        self._means: list[Means] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in the same samples of both sides, ``(rows, p)`` and ``(rows, q)``."""
        if len(x) != len(y):
            raise ValueError(f"both sides should have the same samples, not {len(x)} and {len(y)}")
        if not self._means:
            self._means = [Means([side.shape[1]], side.device) for side in (x, y)]
            self._cross = Cross(x.shape[1], y.shape[1], x.device)
        for pieces in zip(x.split(ROWS), y.split(ROWS), strict=True):
            self._cross.add(*(means.add([piece]) for means, piece in zip(self._means, pieces, strict=True)))

    def value(self) -> float:
        """Of the samples so far; raises as `procrustes`."""
        enough(self._means[0].n if self._means else 0, LEAST, "Procrustes distance")
        for means, whose in zip(self._means, SIDES, strict=True):
            means.check(0, whose)
        return _distance(self._cross.matrix, *(float(means.squares) for means in self._means))


def _distance(cross: Tensor, square_x: float, square_y: float) -> float:
    nuclear = float(torch.linalg.svdvals(cross).sum())
    return max(0.0, 2 - 2 * nuclear / (square_x**0.5 * square_y**0.5))
