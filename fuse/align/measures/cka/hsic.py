"""Hilbert-Schmidt independence criteria, biased and unbiased, from the sums that determine them; and their ratio, CKA.

For kernel matrices K and L over n samples, with ``H = I - 11'/n`` and with K~ and L~ for K and L with a zero diagonal:

    HSIC_0 = tr(K H L H) / (n - 1)^2                                        (Gretton et al. 2005)
    HSIC_1 = [tr(K~ L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1] / (n(n-3))      (Song et al. 2012)

HSIC_0 is at least zero and grows with p/n even for independent features; HSIC_1 has the mean zero for them.

Linear kernels need no n x n matrix. HSIC_1 is an inner product of U-centred kernels, which a translation of the
features leaves as they are, so that they may be centred first. The sums of every row of K are zero then, which leaves
``1'K~1 = -sum |x|^2``, ``1'K~L~1 = sum |x|^2 |y|^2`` and ``tr(K~L~) = |X'Y|_F^2 - sum |x|^2 |y|^2``: sums over samples,
which stream (our derivation).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fuse.align import Unmeasurable

# HSIC_1 of a side with itself below this share of its largest term is rounding (our choice)
NOTHING = 1e-12
NO_PAIRS = "its samples are all equally far apart, or one lies far from all others"


class Hsic(NamedTuple):
    """Float64, of one shape."""

    biased: Tensor
    unbiased: Tensor


def stacked(several: Iterable[Hsic]) -> Hsic:
    """Join several along a new first dimension."""
    return Hsic(*(torch.stack(values) for values in zip(*several, strict=True)))


def from_features(n: int, product: Tensor, norms: Tensor, square_x: Tensor, square_y: Tensor) -> Hsic:
    """Of linear kernels, from sums over n >= 4 centred samples; all tensors of shapes that broadcast.

    product: ``|X'Y|_F^2``, which is the sum of ``K * L``. norms: the sum of ``|x_i|^2 |y_i|^2``.
    square_x, square_y: the sums of ``|x_i|^2`` and ``|y_i|^2``.
    """
    unbiased = product - n / (n - 2) * norms + square_x * square_y / ((n - 1) * (n - 2))
    return Hsic(product / (n - 1) ** 2, unbiased / (n * (n - 3)))


def from_rows(product: Tensor, rows_x: Tensor, rows_y: Tensor) -> Hsic:
    """Of any kernels with a diagonal of ones, from sums of K~ and L~, whose diagonal is zero.

    product: the sum of ``K~ * L~``, a scalar. rows_x, rows_y: ``(n,)``, the sums of the rows of K~ and L~; n >= 4.
    """
    n = len(rows_x)
    total = rows_x.sum() * rows_y.sum()
    unbiased = product + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_x @ rows_y)
    full_x, full_y = rows_x + 1, rows_y + 1
    biased = product + n - 2 / n * (full_x @ full_y) + full_x.sum() * full_y.sum() / n**2
    return Hsic(biased / (n - 1) ** 2, unbiased / (n * (n - 3)))


def alignment(cross: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """CKA: ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` within -1 to 1 (Cortes et al. 2012; Kornblith et al. 2019).

    cross: ``(L, M)``. first: ``(L, 1)``; second: ``(1, M)``; or scalars.
    """
    return (cross / first.sqrt() / second.sqrt()).clamp(-1, 1)


def check_unbiased(unbiased: Tensor, biased: Tensor, whose: str) -> None:
    """Raise Unmeasurable where HSIC_1 of a side with itself is zero, as it is for equally distant samples, and
    for one sample far from all others."""
    if not bool(unbiased > NOTHING * biased):
        raise Unmeasurable(f"unbiased CKA of {whose} is not defined, as {NO_PAIRS}")
