"""Keep elements of a task vector at random, large ones of each row rather than small (DELLA, arXiv 2406.11617)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fuse import kernels
from fuse.methods import random
from fuse.methods.arithmetic import check_lengths, difference, working_dtype
from fuse.methods.checks import keep_range_problem
from fuse.methods.row_blocks import as_rows
from fuse.methods.trim import magnitude_bits

COLUMN_BITS = 32


def thinned_by_rank(
    tensors: Sequence[Tensor], base: Tensor, weights: Sequence[float], density: Sequence[float],
    epsilon: Sequence[float], keys: Sequence[int], offset: int, rescale: bool,
) -> list[Tensor]:  # fmt: skip
    """`drop_by_rank` of each task vector ``x - base``.

    Raises ValueError for unequal shapes or lengths, and for probabilities outside 0 (exclusive) to 1.
    """
    check_lengths(tensors, weights=weights, density=density, epsilon=epsilon, keys=keys)
    if problem := keep_range_problem(density, epsilon):
        raise ValueError(problem)
    dtype = working_dtype([*tensors, base])
    return [
        drop_by_rank(difference(tensor, base, dtype), share, half, rescale, key, offset)
        for tensor, share, half, key in zip(tensors, density, epsilon, keys, strict=True)
    ]


def drop_by_rank(delta: Tensor, density: float, epsilon: float, rescale: bool, key: int, offset: int) -> Tensor:
    """Set elements of a task vector to zero at random, in place; the rank of one in its row says how likely.

    delta: contiguous, float32 or float64; a row is that of `row_width`.
    The smallest magnitude of a row stays with probability ``density - epsilon``, the largest with
    ``density + epsilon``, those between evenly spaced (the paper's MAGPRUNE); in a row of one it is density.
    rescale divides what stays by its probability, so that the mean stays, as in the paper; mergekit restores the L1
    norm instead.
    Element i takes draw number offset + i of the key's stream. NaN stays, so that a check of the output sees it.
    """
    if (density == 1 and epsilon == 0) or not delta.numel():
        return delta
    rows = as_rows(delta)
    count, width = rows.shape
    steps = torch.arange(width, dtype=torch.float64, device=delta.device) / max(width - 1, 1)
    spread = (density - epsilon + 2 * epsilon * steps if width > 1 else density + 0 * steps).clamp_(max=1)
    if kernels.suit([rows]) and offset % random.WORD + rows.numel() <= random.WORD:
        from fuse.kernels.ranks import drop

        ((_, _, halves, first),) = random.stretches(rows.numel(), key, offset)
        drop(rows, spread.float().numpy(), rescale, halves, first)
        return delta
    chances = torch.empty_like(rows)
    chances.scatter_(1, ascending(rows), spread.to(rows.dtype).expand(count, width))
    draws = random.uniform(key, rows.numel(), offset, rows.device).view(count, width).to(rows.dtype)
    rows.mul_(torch.lt(draws, chances, out=draws))
    if rescale:
        rows.div_(chances)
    return delta


def ascending(rows: Tensor) -> Tensor:
    """The columns of each row in the order of their magnitudes, the lower column first among equals, as int64.

    rows: float32 or float64 ``(rows, width)``. On a CPU, float32 is sorted by numpy, as 64-bit integers that hold the
    magnitude's bits above the column: several times faster than a sort of pairs.
    """
    if rows.dtype == torch.float64:
        return torch.sort(rows.abs(), dim=-1, stable=True).indices
    columns = torch.arange(rows.shape[1], device=rows.device)
    packed = magnitude_bits(rows).to(torch.int64).mul_(1 << COLUMN_BITS).add_(columns)
    if packed.device.type == "cpu":
        packed.numpy().sort(axis=-1)
    else:
        packed = packed.sort(-1).values
    return packed.bitwise_and_((1 << COLUMN_BITS) - 1)
