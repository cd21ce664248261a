"""A matrix as the product of two thin ones: the best such product of a given rank, or one that is nearly so.

The best is that of the first singular vectors (Eckart and Young, 1936). Of large matrices it is found in a small
subspace that the matrix itself turns random vectors into (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4).
"""

import torch
from torch import Tensor

EXACT = 1024  # smaller sides than this are decomposed whole
WIDER = 16  # more random vectors than the rank asks for
TURNS = 4  # times that the matrix is applied to them, and its transpose


def low_rank(matrix: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(up [out, r], down [r, in]) in float32 with up @ down near matrix [out, in], r = min(rank, out, in).

    matrix: float32 or float64. Both factors carry the square root of the singular values. The same matrix and seed give
    the same factors on one machine.
    """
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= EXACT or 4 * (rank + WIDER) > min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    else:
        left, values, right = _sketched(matrix.float(), rank + WIDER, seed)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).float(), (root[:, None] * right[:rank]).float()


def _sketched(matrix: Tensor, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values and vectors of the matrix inside the subspace that it turns `width` random vectors into."""
    given = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(matrix @ given)[0]
    for _ in range(TURNS):
        basis = torch.linalg.qr(matrix.T @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    left, values, right = torch.linalg.svd((basis.T @ matrix).double(), full_matrices=False)
    return basis.double() @ left, values, right
