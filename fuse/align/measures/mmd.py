"""Maximum mean discrepancy: whether the features of two sides have one distribution, in the space they share."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fuse.align.measures.distances import BLOCK, gaussian, median_squared
from fuse.align.measures.samples import centred, paired, same_width

LEAST = 4


class MMD(NamedTuple):
    """value: MMD^2, about 0 and also below it for equal distributions. null: its standard deviation there.

    value ends at 0.79, ``2 - 2 exp(-1/2)``, for two narrow clouds, however far apart, and cannot exceed 2.
    bandwidth: that of the kernel, in the unit of the features.
    """

    value: float
    null: float
    bandwidth: float


def mmd(x: Tensor, y: Tensor) -> MMD:
    """The unbiased MMD^2 with a Gaussian kernel, whose bandwidth is the median distance over both sides together.

    Gretton et al. (JMLR 2012), lemma 6, equation 4, and section 8 for the median:

        MMD^2 = 1 / (n(n-1)) sum_{i != j} h_ij,   h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i).

    Row i of both sides may be the same image: a pair with itself never enters. For equal distributions the sum is
    degenerate, with the variance ``2 / (n(n-1)) E h^2`` (ibid., appendix B). Its root, with the mean of h_ij^2 for
    E h^2, is the scale `null`: a value within three of it says nothing. This takes samples to be independent; tokens
    of one image are not, and then the scale is too small.
    x, y: ``(n, p)``, any float dtype, n >= 4; computed in float64. Time grows with n^2 p; memory is five blocks of
    512 x n, and 100 MB for the median (`median_squared`).

    Raises Unmeasurable for sides of different widths, fewer than 4 samples, features that are not finite, or all
    samples, or most of them, equal.
    """
    same_width(x, y, "MMD")
    first, second = paired(x, y, LEAST, "MMD")
    n, both = len(first), "both sides together"
    joint = centred(torch.cat([first, second]), both)
    square = median_squared(joint, both)
    first, second = joint[:n], joint[n:]
    total = squares = 0.0
    for start in range(0, n, BLOCK):
        x_rows, y_rows = first[start : start + BLOCK], second[start : start + BLOCK]
        h = gaussian(x_rows, first, square)
        h += gaussian(y_rows, second, square)
        h -= gaussian(x_rows, second, square)
        h -= gaussian(y_rows, first, square)
        h.diagonal(start).zero_()
        total += float(h.sum())
        squares += float(h.square().sum())
    pairs = n * (n - 1)
    return MMD(total / pairs, math.sqrt(2 * squares / pairs / pairs), math.sqrt(square))
