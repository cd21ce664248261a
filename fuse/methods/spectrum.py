"""Singular vectors of a matrix from an eigendecomposition of its smaller Gram matrix, in float64.

About three times cheaper than a singular value decomposition and, since float64 carries the squares of what float32
holds, as exact as one in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fuse.methods.eigen import eigh
from fuse.methods.matrices import gram, times

# A singular value below this share of the largest is rounding: its direction counts as none.
NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The leading singular triplets of a matrix, largest first, in float64.

    left: ``(rows, rank)``. values: ``(rank,)``. right: ``(width, rank)``. Where a value is zero, so are both vectors.
    """

    left: Tensor
    values: Tensor
    right: Tensor


def spectrum(matrix: Tensor, rank: int) -> Spectrum:
    """The `rank` largest singular values of a finite matrix with their vectors. rank: at most the smaller side."""
    rows, width = matrix.shape
    if rows < width:
        turned = spectrum(matrix.T, rank)
        return Spectrum(turned.right, turned.values, turned.left)
    values, vectors = eigh(gram(matrix))
    found = _singular(values).flip(0)[:rank]
    right = vectors.flip(1)[:, :rank] * (found > 0)
    return Spectrum(times(matrix, right).mul_(_inverse(found)), found, right)


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of that rank, in float64."""
    found = spectrum(matrix, rank)
    return (found.left * found.values) @ found.right.T


def polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix with every singular value set to 1, in its dtype, and the singular values, smallest first, in float64.

    Directions in which the matrix is zero stay zero. A full singular value decomposition puts arbitrary vectors there.
    """
    rows, width = matrix.shape
    if rows < width:
        turned, values = polar(matrix.T)
        return turned.T, values
    squares, vectors = eigh(gram(matrix))
    values = _singular(squares)
    return times(matrix, (vectors * _inverse(values)) @ vectors.T, matrix.dtype), values


def _singular(squares: Tensor) -> Tensor:
    values = squares.clamp(min=0).sqrt()
    return torch.where(values > NOTHING * values.max(), values, 0)


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0)
