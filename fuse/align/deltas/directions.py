"""The strongest directions of a task vector seen as a matrix, and how many of them two members share.

Directions that several members write to are where merging interferes (TSV, arXiv 2412.00081).
"""

import math
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from fuse.methods.matrices import gram, row_blocks, times

EXACT = 512  # the longest smaller side of a matrix whose spectrum is computed whole
OVERSAMPLING = 8  # more directions than asked for in a sketch
ITERATIONS = 2
PROBES = 8
NOTHING = 1e-3  # a direction this much weaker than the strongest may be rounding: it counts as none (our choice)


@dataclass(frozen=True, slots=True)
class Directions:
    """The k strongest singular triplets of a matrix in float64; zeros where it has fewer.

    left: ``(rows, k)``. values: ``(k,)``, largest first. right: ``(width, k)``.
    participation: ``(sum s^2)^2 / sum s^4`` over all singular values s, the number of directions that a matrix with
    equal singular values would have. energy: the share of ``sum s^2`` that these k have. NaN for a matrix of zeros.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    participation: float
    energy: float


def directions(matrix: Tensor, top: int, seed: int) -> Directions:
    """The `top` strongest directions, at most the smaller side, of a finite matrix ``(rows, width)`` in float32 or 64.

    Up to EXACT they come from an eigendecomposition of the smaller Gram matrix. Beyond it from a sketch with two power
    iterations (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 4.4), whose products are in the matrix's
    dtype; ``sum s^4`` is then exact on what the sketch found and estimated by Hutch++ on the rest (arXiv 2010.09649).
    A sketch finds directions that stand out from the others; of a flat spectrum, such as noise has, it finds some.
    seed: of the sketch. Two matrices to be compared need two seeds, because what a sketch finds in noise depends on it.
    Memory: a few ``(rows + width, top + OVERSAMPLING + PROBES)`` in float64.
    """
    rows, width = matrix.shape
    top = min(top, rows, width)
    scale = _length(matrix) if top else 0
    if scale == 0:
        empty = [torch.zeros(n, top, dtype=torch.float64) for n in (rows, 1, width)]
        return Directions(empty[0], empty[1][0], empty[2], nan, nan)
    if min(rows, width) > EXACT:
        return _sketched(matrix, top, scale, seed)
    if rows < width:
        turned = _exact(matrix.T, top, scale)
        return Directions(turned.right, turned.values, turned.left, turned.participation, turned.energy)
    return _exact(matrix, top, scale)


def _exact(matrix: Tensor, top: int, scale: float) -> Directions:
    squares, vectors = torch.linalg.eigh(gram(matrix) / scale**2)
    values = squares.clamp(min=0).flip(0).sqrt()[:top] * scale
    values = _strong(values)
    right = vectors.flip(1)[:, :top] * (values > 0)
    left = times(matrix, right) * torch.where(values > 0, 1 / values, 0)
    return Directions(left, values, right, float(1 / squares.square().sum()), _energy(values, scale))


def _sketched(matrix: Tensor, top: int, scale: float, seed: int) -> Directions:
    rows, width = matrix.shape
    size = min(top + OVERSAMPLING, rows, width)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, size + PROBES, dtype=matrix.dtype, generator=generator)
    seen, probes = drawn[:, :size], drawn[:, size:].double()
    left = _orthonormal(matrix @ seen)
    for _ in range(ITERATIONS):
        seen = _orthonormal(matrix.T @ left.to(matrix.dtype))
        left = _orthonormal(matrix @ seen.to(matrix.dtype))
    seen = matrix.T @ left.to(matrix.dtype)
    right, values, turn = torch.linalg.svd(seen.double(), full_matrices=False)
    probes -= right @ (right.T @ probes)
    inside = torch.cat([right, probes], 1).to(matrix.dtype)
    fourth = (matrix.T @ ((matrix @ inside) / scale) / scale).double().square().sum(0)
    rank = 1 / float(fourth[:size].sum() + fourth[size:].sum() / PROBES)
    values = _strong(values[:top])
    there = values > 0
    rank = min(max(rank, 1.0), float(min(rows, width)))
    return Directions((left @ turn.T)[:, :top] * there, values, right[:, :top] * there, rank, _energy(values, scale))


def _length(matrix: Tensor) -> float:
    """The Frobenius norm in float64, with no float64 copy of the matrix."""
    return math.hypot(*(float(torch.linalg.vector_norm(block.double())) for (block,) in row_blocks(matrix)))


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns.double()).Q


def _strong(values: Tensor) -> Tensor:
    return torch.where(values > NOTHING * values[0], values, 0)


def _energy(values: Tensor, scale: float) -> float:
    return min(float((values / scale).square().sum()), 1.0)


def overlap(left: Tensor, right: Tensor) -> float:
    """``|A.T B|_F^2 / min(k_a, k_b)``: the share of directions that two subspaces have in common, 0 to 1.

    left, right: ``(dim, k)`` with orthonormal columns, or zeros for a direction that is not there, which does not
    count; k_a and k_b are those that do. The measure of LoRA (arXiv 2106.09685, section 7.2, equation 4), which no
    rotation within a subspace changes. NaN where a subspace is empty.
    """
    few = min(map(_count, (left, right)))
    return float((left.T @ right).square().sum()) / few if few else nan


def chance(left: Tensor, right: Tensor) -> float:
    """The mean `overlap` of two subspaces drawn at random: ``max(k_a, k_b) / dim``; NaN where one is empty."""
    counts = [_count(left), _count(right)]
    return max(counts) / len(left) if min(counts) else nan


def _count(columns: Tensor) -> int:
    return int(columns.any(0).sum())
