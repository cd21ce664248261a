"""Inner products in float64."""

import numpy as np
from torch import Tensor

from fuse.kernels.compiler import PIECE, array, kernel, widen

LANES = 16  # sums side by side, in a fixed order


def products(first: Tensor, second: Tensor, base: Tensor | None) -> tuple[float, float, float]:
    """``<x, x>``, ``<x, y>`` and ``<y, y>`` of two tensors, or of their task vectors where a base is given.

    first, second, base: as `fuse.kernels.suit` with halves has them. Differences and products are in float64.
    """
    x, y = array(first), array(second)
    sums = _products(x, y) if base is None else _delta_products(x, y, array(base))
    return float(sums[0].sum()), float(sums[1].sum()), float(sums[2].sum())


@kernel
def _products(x, y):
    sums = np.zeros((3, LANES))
    u, v = np.zeros(PIECE, np.float32), np.zeros(PIECE, np.float32)
    for start in range(0, x.size, PIECE):
        size = min(PIECE, x.size - start)
        if size < PIECE:
            u[:] = 0
            v[:] = 0
        widen(x[start : start + size], u)
        widen(y[start : start + size], v)
        for i in range(0, PIECE, LANES):
            for lane in range(LANES):
                a, b = np.float64(u[i + lane]), np.float64(v[i + lane])
                sums[0, lane] += a * a
                sums[1, lane] += a * b
                sums[2, lane] += b * b
    return sums


@kernel
def _delta_products(x, y, base):
    sums = np.zeros((3, LANES))
    u, v, w = np.zeros(PIECE, np.float32), np.zeros(PIECE, np.float32), np.zeros(PIECE, np.float32)
    for start in range(0, x.size, PIECE):
        size = min(PIECE, x.size - start)
        if size < PIECE:
            u[:] = 0
            v[:] = 0
            w[:] = 0
        widen(x[start : start + size], u)
        widen(y[start : start + size], v)
        widen(base[start : start + size], w)
        for i in range(0, PIECE, LANES):
            for lane in range(LANES):
                ground = np.float64(w[i + lane])
                a, b = np.float64(u[i + lane]) - ground, np.float64(v[i + lane]) - ground
                sums[0, lane] += a * a
                sums[1, lane] += a * b
                sums[2, lane] += b * b
    return sums
