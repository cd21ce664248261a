"""Task vectors, whole or thinned, straight from what is stored."""

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fuse.kernels.compiler import PIECE, array, kernel, widen
from fuse.kernels.draws import draw

NO_TOP = np.uint32(0xFFFFFFFF)


def difference(tensor: Tensor, base: Tensor) -> Tensor:
    """``tensor - base`` in float32; both as `fuse.kernels.suit` with halves has them."""
    out = torch.empty(tensor.shape, dtype=torch.float32)
    _between(array(tensor), array(base), np.uint32(0), 0, NO_TOP, 0, array(out))
    return out


Edge: TypeAlias = tuple[int, int]


def between(tensor: Tensor, base: Tensor, low: Edge, high: Edge | None) -> Tensor:
    """``tensor - base`` where it lies within two edges; else zero.

    An edge is the bits of a magnitude and an element: what is within `low`, or beyond `high`, has at least these bits,
    and from that element on more. What is beyond and not finite becomes NaN.
    """
    out = torch.empty(tensor.shape, dtype=torch.float32)
    bits, late = high or (int(NO_TOP), 0)
    _between(array(tensor), array(base), np.uint32(low[0]), low[1], np.uint32(bits), late, array(out))
    return out


def dropped(tensor: Tensor, base: Tensor, density: float, scale: float, halves: tuple[int, int], first: int) -> Tensor:
    """``scale * (tensor - base)`` where draw number ``first + i`` is less than density, else zero.

    tensor, base: as for `difference`, of at most 2**32 - first elements. halves: of the key, each 32 bits.
    """
    out = torch.empty(tensor.shape, dtype=torch.float32)
    begin, half = np.uint32((first + halves[0]) % (1 << 32)), np.uint32(halves[1])
    _dropped(array(tensor), array(base), np.float32(density), np.float32(scale), begin, half, array(out))
    return out


@kernel
def _between(x, base, low, late_low, high, late_high, out):
    """low 0 keeps the smallest."""
    wide, ground = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    magnitude, zero = np.uint32(0x7FFFFFFF), np.float32(0)
    delta = wide.view(np.uint32)
    for start in range(0, out.size, PIECE):
        part = out[start : start + PIECE]
        widen(x[start : start + PIECE], wide)
        widen(base[start : start + PIECE], ground)
        for i in range(part.size):
            wide[i] -= ground[i]
        turn = min(max(late_low - start, 0), part.size)
        for i in range(turn):
            part[i] = wide[i] if delta[i] & magnitude >= low else zero
        above = low + np.uint32(low > 0)
        for i in range(turn, part.size):
            part[i] = wide[i] if delta[i] & magnitude >= above else zero
        if high != NO_TOP:
            turn = min(max(late_high - start, 0), part.size)
            for i in range(turn):
                part[i] -= part[i] if delta[i] & magnitude >= high else zero
            for i in range(turn, part.size):
                part[i] -= part[i] if delta[i] & magnitude > high else zero


@kernel
def _dropped(x, base, density, scale, begin, half, out):
    wide, ground = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    zero, one = np.float32(0), np.float32(1)
    for start in range(0, out.size, PIECE):
        part = out[start : start + PIECE]
        widen(x[start : start + PIECE], wide)
        widen(base[start : start + PIECE], ground)
        index = np.uint32(begin + np.uint32(start))
        for i in range(part.size):
            keep = one if draw(np.uint32(index + np.uint32(i)), half) < density else zero
            part[i] = (wide[i] - ground[i]) * keep * scale
