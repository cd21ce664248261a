"""Weighted sums of tensors, or of their task vectors."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fuse.kernels import rounded_result
from fuse.kernels.compiler import PIECE, array, kernel, narrow, widen

NO_BASE, SUBTRACTED, ADDED = 0, 1, 2  # what a base is to a sum


def weighted(tensors: Sequence[Tensor], base: Tensor | None, factors: Sequence[float]) -> Tensor:
    """``f0 * x0 + f1 * x1 + ...`` from left to right; with a base, ``f0 * (x0 - base) + ... + base``.

    tensors, base: as `fuse.kernels.suit` with halves has them. Returns their shape, as `rounded_result` does.
    """
    arrays, numbers = tuple(array(tensor) for tensor in tensors), np.array(factors, dtype=np.float32)
    given = arrays, arrays[0] if base is None else array(base), NO_BASE if base is None else SUBTRACTED, numbers
    return rounded_result(tensors[0].shape, lambda out: _weighted(*given, array(out)))


def moved(deltas: Sequence[Tensor], base: Tensor, factors: Sequence[float]) -> Tensor:
    """``f0 * d0 + f1 * d1 + ... + base``. deltas: float32, as `fuse.kernels.suit` has them; base: with halves.

    Returns their shape, as `rounded_result` does.
    """
    given = tuple(array(delta) for delta in deltas), array(base), ADDED, np.array(factors, dtype=np.float32)
    return rounded_result(base.shape, lambda out: _weighted(*given, array(out)))


@kernel
def _weighted(xs, base, role, factors, out):
    wide, ground, total = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    bad = 0
    for start in range(0, out.size, PIECE):
        part = out[start : start + PIECE]
        if role != NO_BASE:
            widen(base[start : start + PIECE], ground)
        for k in range(len(xs)):
            widen(xs[k][start : start + PIECE], wide)
            factor = factors[k]
            if role == SUBTRACTED:
                for i in range(part.size):
                    wide[i] -= ground[i]
            if k == 0:
                for i in range(part.size):
                    total[i] = wide[i] * factor
            else:
                for i in range(part.size):
                    total[i] += wide[i] * factor
        if role != NO_BASE:
            for i in range(part.size):
                total[i] += ground[i]
        bad += narrow(total, part)
    return bad
