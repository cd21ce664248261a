"""Drop elements of a task vector at random and scale up the rest (DARE, arXiv 2311.03099, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fuse import kernels
from fuse.methods import random
from fuse.methods.arithmetic import check_lengths, difference, working_dtype


def drop(delta: Tensor, keep: Tensor, density: float, rescale: bool) -> Tensor:
    """``delta * keep``, with rescale times ``1 / density``; in place.

    delta: float32 or float64. keep: of the same shape, true or 1 where an element stays.
    mergekit's rescale restores the L1 norm of the whole task vector instead; 1 / density is the paper's and
    needs no look at the other elements. NaN is kept, so that a check of the output sees it.
    """
    delta.mul_(keep)
    return delta.mul_(1 / density) if rescale else delta


def thinned_at_random(
    tensors: Sequence[Tensor], base: Tensor, weights: Sequence[float], density: Sequence[float], keys: Sequence[int],
    offset: int, rescale: bool,
) -> list[Tensor]:  # fmt: skip
    """`drop_at_random` of each task vector ``x - base``.

    Raises ValueError for unequal shapes or lengths, or a density outside 0 (exclusive) to 1.
    """
    check_lengths(tensors, weights=weights, density=density, keys=keys)
    dtype = working_dtype([*tensors, base])
    return [
        drop_at_random(tensor, base, dtype, density=share, rescale=rescale, key=key, offset=offset)
        for tensor, share, key in zip(tensors, density, keys, strict=True)
    ]


def drop_at_random(
    tensor: Tensor, base: Tensor, dtype: torch.dtype, *, density: float, rescale: bool, key: int, offset: int
) -> Tensor:  # fmt: skip
    """`drop` of ``tensor - base`` in dtype, with each element kept with probability density.

    Element i takes draw number offset + i of the key's stream. Density 1 draws nothing.
    Raises ValueError for a density outside 0 (exclusive) to 1.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density should be greater than 0 and at most 1, not {density}")
    if density < 1 and dtype == torch.float32 and kernels.suit([tensor, base], halves=True):
        from fuse.kernels.deltas import dropped

        scale = 1 / density if rescale else 1.0
        parts = random.stretches(tensor.numel(), key, offset)
        flat, ground = tensor.view(-1), base.view(-1)
        done = [dropped(flat[i:j], ground[i:j], density, scale, halves, first) for i, j, halves, first in parts]
        return (done[0] if len(done) == 1 else torch.cat(done)).view(tensor.shape)
    delta = difference(tensor, base, dtype)
    if density == 1:
        return delta
    draws = random.uniform(key, delta.numel(), offset, delta.device)
    keep = torch.lt(draws, density, out=draws)
    return drop(delta, keep.view(delta.shape), density, rescale)
