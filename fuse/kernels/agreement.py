"""The base plus the sum of what has the elected sign."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fuse.kernels import rounded_result
from fuse.kernels.compiler import PIECE, array, kernel, narrow, widen


def elected(
    deltas: Sequence[Tensor], base: Tensor, weights: Sequence[float], lambda_: float, normalize: bool
) -> Tensor:  # fmt: skip
    """`fuse.methods.ties.elected`. deltas: float32 that `fuse.kernels.suit` takes; base: also bfloat16."""
    given = tuple(map(array, deltas)), array(base), np.array(weights, dtype=np.float32), np.float32(lambda_), normalize
    return rounded_result(base.shape, lambda out: _elected(*given, array(out)))


@kernel
def _elected(deltas, base, weights, scale, normalize, out):
    sign, share, ground = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    total = np.empty(PIECE, np.float32)
    zero, one, bad = np.float32(0), np.float32(1), 0
    for start in range(0, out.size, PIECE):
        part = out[start : start + PIECE]
        for i in range(part.size):
            sign[i] = deltas[0][start + i] * weights[0]
        for k in range(1, len(deltas)):
            delta, weight = deltas[k][start : start + PIECE], weights[k]
            for i in range(part.size):
                sign[i] += delta[i] * weight
        for i in range(part.size):
            sign[i], total[i], share[i] = one if sign[i] >= zero else -one, zero, zero
        for k in range(len(deltas)):
            delta, weight = deltas[k][start : start + PIECE], weights[k]
            for i in range(part.size):
                along = delta[i] * weight * sign[i]
                total[i] += zero if along <= zero else along  # NaN stays
                share[i] += weight if along > zero else zero
        widen(base[start : start + PIECE], ground)
        for i in range(part.size):
            divisor = one if share[i] == zero or not normalize else share[i]
            total[i] = total[i] * sign[i] / divisor * scale + ground[i]
        bad += narrow(total, part)
    return bad
