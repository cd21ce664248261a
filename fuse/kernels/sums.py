"""Weighted sums of tensors, or of their task vectors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fuse.kernels.compiler import PIECE, array, kernel, widen


def weighted(tensors: Sequence[Tensor], base: Tensor | None, factors: Sequence[float]) -> Tensor:
    """``f0 * x0 + f1 * x1 + ...`` from left to right; with a base, ``f0 * (x0 - base) + ... + base``.

    tensors, base: as `fuse.kernels.suit` with halves has them. Returns float32 of their shape.
    """
    out = torch.empty(tensors[0].shape, dtype=torch.float32)
    arrays = tuple(array(tensor) for tensor in tensors)
    numbers = np.array(factors, dtype=np.float32)
    if base is None:
        _weighted(arrays, numbers, array(out))
    else:
        _weighted_deltas(arrays, array(base), numbers, array(out))
    return out


@kernel
def _weighted(xs, factors, out):
    wide = np.empty(PIECE, np.float32)
    for start in range(0, out.size, PIECE):
        part = out[start : start + PIECE]
        for k in range(len(xs)):
            widen(xs[k][start : start + PIECE], wide)
            factor = factors[k]
            if k == 0:
                for i in range(part.size):
                    part[i] = wide[i] * factor
            else:
                for i in range(part.size):
                    part[i] += wide[i] * factor


@kernel
def _weighted_deltas(xs, base, factors, out):
    wide, ground = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    for start in range(0, out.size, PIECE):
        part = out[start : start + PIECE]
        widen(base[start : start + PIECE], ground)
        for k in range(len(xs)):
            widen(xs[k][start : start + PIECE], wide)
            factor = factors[k]
            if k == 0:
                for i in range(part.size):
                    part[i] = (wide[i] - ground[i]) * factor
            else:
                for i in range(part.size):
                    part[i] += (wide[i] - ground[i]) * factor
        for i in range(part.size):
            part[i] += ground[i]
