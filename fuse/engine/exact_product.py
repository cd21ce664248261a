"""Products of thin matrices whose sums are exact, so that every way of cutting them gives the same numbers.

A sum of floats depends on its order, and the order on block sizes, threads and device. Here each row of the left and
each column of the right matrix is written as whole numbers of 22 bits times a power of two, and a rest of 22 bits
likewise; products of such numbers and sums of up to 512 of them are whole numbers below 2^53, which float64 holds
(the idea of Ozaki, Ogita, Oishi and Rump, Numerical Algorithms 59, 2012). Rest times rest, 2^-44 of the largest
product, is left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 22
MOST = 512  # terms of a sum that stay below 2^53


@dataclass(frozen=True)
class Left:
    """A matrix [rows, terms] as `(high + low * 2^-BITS) * factor`, with whole numbers in high and low.

    factor: a power of two for each row, [rows, 1].
    """

    high: Tensor
    low: Tensor
    factor: Tensor

    def __getitem__(self, rows: "slice | Tensor") -> "Left":
        return Left(self.high[rows], self.low[rows], self.factor[rows])


@dataclass(frozen=True)
class Right:
    """A matrix [terms, columns] likewise, with a factor for each column, [1, columns]."""

    high: Tensor
    low: Tensor
    factor: Tensor


def left(matrix: Tensor) -> Left:
    """The pieces of a matrix [rows, terms]."""
    return Left(*_pieces(matrix, 1))


def right(matrix: Tensor, scale: float = 1.0) -> Right:
    """The pieces of `scale` times a matrix [terms, columns]; the scale is put into the factors."""
    high, low, factor = _pieces(matrix, 0)
    return Right(high, low, factor * scale)


def _pieces(matrix: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    wide = matrix.double()
    _, exponent = torch.frexp(wide.abs().amax(dim, keepdim=True))
    factor = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)
    scaled = wide / factor * 2.0**BITS
    high = scaled.round()
    return high, ((scaled - high) * 2.0**BITS).round(), factor * 2.0**-BITS


def product(a: Left, b: Right) -> Tensor:
    """[rows, columns] in float64, within 2^-40 of the largest term; NaN where a number is not finite."""
    total: Tensor | None = None
    for start in range(0, a.high.shape[1], MOST):
        terms = slice(start, start + MOST)
        part = torch.cat([a.high[:, terms], a.low[:, terms]], 1) @ torch.cat([b.low[terms], b.high[terms]])
        part *= 2.0**-BITS
        part += a.high[:, terms] @ b.high[terms]
        total = part if total is None else total.add_(part)
    assert total is not None
    total *= a.factor
    total *= b.factor
    return total
