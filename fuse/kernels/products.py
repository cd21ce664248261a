"""Inner products in float64."""

import numpy as np
from torch import Tensor

from fuse.kernels.compiler import PIECE, array, kernel, widen


def products(first: Tensor, second: Tensor, base: Tensor | None) -> tuple[list[float], list[float], list[float]]:
    """``<x, x>``, ``<x, y>`` and ``<y, y>`` of each piece of two tensors, or of their task vectors if a base is given.

    first, second, base: as `fuse.kernels.suit` with halves has them. Differences and products are in float64, and a
    piece's are added up as `fuse.methods.gram.halved` does.
    """
    x, y = array(first), array(second)
    sums = np.empty((3, -(-x.size // PIECE)))
    _products(x, y, x if base is None else array(base), base is not None, sums)
    return sums[0].tolist(), sums[1].tolist(), sums[2].tolist()


@kernel
def _dot(a, b, terms):
    """The product of one piece. Three halvings at once, then those of what is left."""
    part = PIECE // 8
    a0, a1, a2, a3 = a[:part], a[part : 2 * part], a[2 * part : 3 * part], a[3 * part : 4 * part]
    a4, a5, a6, a7 = a[4 * part : 5 * part], a[5 * part : 6 * part], a[6 * part : 7 * part], a[7 * part :]
    b0, b1, b2, b3 = b[:part], b[part : 2 * part], b[2 * part : 3 * part], b[3 * part : 4 * part]
    b4, b5, b6, b7 = b[4 * part : 5 * part], b[5 * part : 6 * part], b[6 * part : 7 * part], b[7 * part :]
    for i in range(part):
        even = (a0[i] * b0[i] + a4[i] * b4[i]) + (a2[i] * b2[i] + a6[i] * b6[i])
        terms[i] = even + ((a1[i] * b1[i] + a5[i] * b5[i]) + (a3[i] * b3[i] + a7[i] * b7[i]))
    size = part // 2
    while size:
        for i in range(size):
            terms[i] += terms[i + size]
        size //= 2
    return terms[0]


@kernel
def _products(x, y, base, based, sums):
    wide, a, b = np.empty(PIECE, np.float32), np.empty(PIECE), np.empty(PIECE)
    terms = np.empty(PIECE // 8)
    for number in range(sums.shape[1]):
        start = number * PIECE
        size = min(PIECE, x.size - start)
        if size < PIECE:
            wide[size:] = 0
        widen(x[start : start + size], wide)
        for i in range(PIECE):
            a[i] = wide[i]
        widen(y[start : start + size], wide)
        for i in range(PIECE):
            b[i] = wide[i]
        if based:
            widen(base[start : start + size], wide)
            for i in range(PIECE):
                a[i] -= wide[i]
                b[i] -= wide[i]
        sums[0, number] = _dot(a, a, terms)
        sums[1, number] = _dot(a, b, terms)
        sums[2, number] = _dot(b, b, terms)
