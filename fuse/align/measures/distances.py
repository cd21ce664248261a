"""Squared distances between samples, their median, and the Gaussian kernel that is scaled by it."""

import torch
from torch import Tensor

from fuse.align import Unmeasurable

BLOCK = 512  # rows of a matrix of samples by samples at a time
MOST = 2048  # samples whose distances the median is taken of


def squared(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|^2``, at least 0. x: ``(a, p)``; y: ``(b, p)``, both about one mean; returns ``(a, b)``."""
    products = torch.addmm(y.square().sum(1)[None], x, y.T, alpha=-2)
    return products.add_(x.square().sum(1)[:, None]).clamp_(min=0)


def median_squared(x: Tensor, whose: str) -> float:
    """The lower median of ``|x_i - x_j|^2`` over pairs i < j, of a fixed random draw of `MOST` samples where more come.

    Raises Unmeasurable where it is zero.
    """
    if len(x) > MOST:
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:MOST].sort().values.to(x.device)]
    first, second = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    median = float(squared(x, x)[first, second].median())
    # equal samples are apart by rounding of their squares, 1e-16 of these
    if median <= 1e-13 * float(x.square().sum(1).mean()):
        raise Unmeasurable(f"the median distance between samples of {whose} is zero, as most of them are equal")
    return median


def gaussian(x: Tensor, y: Tensor, square: float) -> Tensor:
    """``exp(-|x_i - y_j|^2 / (2 square))``, where square is that of the bandwidth."""
    return squared(x, y).mul_(-0.5 / square).exp_()
