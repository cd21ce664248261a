"""Task vectors, whole or thinned, straight from what is stored."""

import numpy as np
import torch
from torch import Tensor

from fuse.kernels.compiler import PIECE, array, kernel, widen
from fuse.kernels.draws import draw


def difference(tensor: Tensor, base: Tensor) -> Tensor:
    """``tensor - base`` in float32; both as `fuse.kernels.suit` with halves has them."""
    out = torch.empty(tensor.shape, dtype=torch.float32)
    _trimmed(array(tensor), array(base), np.uint32(0), 0, array(out))
    return out


def trimmed(tensor: Tensor, base: Tensor, bits: int, late: int) -> Tensor:
    """``tensor - base`` where its magnitude's bits are at least `bits`, and from element `late` on above; else zero."""
    out = torch.empty(tensor.shape, dtype=torch.float32)
    _trimmed(array(tensor), array(base), np.uint32(bits), late, array(out))
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
def _trimmed(x, base, bits, late, out):
    """bits 0 keeps all."""
    wide, ground = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    magnitude, zero = np.uint32(0x7FFFFFFF), np.float32(0)
    delta = wide.view(np.uint32)
    for start in range(0, out.size, PIECE):
        part = out[start : start + PIECE]
        widen(x[start : start + PIECE], wide)
        widen(base[start : start + PIECE], ground)
        for i in range(part.size):
            wide[i] -= ground[i]
        turn = min(max(late - start, 0), part.size)
        for i in range(turn):
            part[i] = wide[i] if delta[i] & magnitude >= bits else zero
        above = bits + np.uint32(bits > 0)
        for i in range(turn, part.size):
            part[i] = wide[i] if delta[i] & magnitude >= above else zero


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
