"""Counting magnitudes by their bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fuse.kernels.compiler import PIECE, array, kernel, widen

LANES = 4  # histograms side by side: equal neighbours do not wait for each other's count


def lanes() -> NDArray[np.int64]:
    """Empty counts for `count`; their sum over the first axis is the histogram."""
    return np.zeros((LANES, 1 << 16), np.int64)


def count(tensor: Tensor, base: Tensor | None, shift: int, prefix: int | None, counts: NDArray[np.int64]) -> None:
    """Count how many magnitudes have each value of the 16 bits above `shift`, of those that begin with the prefix.

    tensor, base: float32, or bfloat16, that `fuse.kernels.suit` takes; with a base the magnitudes are those of
    ``tensor - base``. prefix: the bits above those 16; None counts all.
    """
    _count(*_pair(tensor, base), np.uint32(shift), np.uint32(prefix or 0), prefix is None, counts)


def place(tensor: Tensor, base: Tensor | None, bits: int, number: int) -> tuple[int, int]:
    """How many magnitudes have exactly these bits, and the index of the one with this number (from 1), or -1.

    tensor, base: as for `count`.
    """
    return _place(*_pair(tensor, base), np.uint32(bits), number)


def _pair(tensor: Tensor, base: Tensor | None) -> tuple[NDArray[Any], NDArray[Any], bool]:
    return array(tensor), array(tensor if base is None else base), base is not None


@kernel
def _read(x, base, based, start, wide, ground):
    """The magnitudes of the piece from `start` on, as bits; how many they are is the shorter of PIECE and the rest."""
    widen(x[start : start + PIECE], wide)
    if based:
        widen(base[start : start + PIECE], ground)
        for i in range(min(PIECE, x.size - start)):
            wide[i] -= ground[i]
    bits = wide.view(np.uint32)
    for i in range(PIECE):
        bits[i] &= np.uint32(0x7FFFFFFF)
    return bits[: min(PIECE, x.size - start)]


@kernel
def _count(x, base, based, shift, prefix, whole, counts):
    wide, ground = np.zeros(PIECE, np.float32), np.empty(PIECE, np.float32)
    low, above = np.uint32(0xFFFF), shift + np.uint32(16)
    for start in range(0, x.size, PIECE):
        bits = _read(x, base, based, start, wide, ground)
        if whole:
            even = bits.size - bits.size % LANES
            for i in range(0, even, LANES):
                for lane in range(LANES):
                    counts[lane, (bits[i + lane] >> shift) & low] += 1
            for i in range(even, bits.size):
                counts[0, (bits[i] >> shift) & low] += 1
        else:
            for i in range(bits.size):
                counts[i % LANES, (bits[i] >> shift) & low] += bits[i] >> above == prefix  # a branch is guessed wrong


@kernel
def _place(x, base, based, bits, number):
    wide, ground = np.zeros(PIECE, np.float32), np.empty(PIECE, np.float32)
    total, index = 0, -1
    for start in range(0, x.size, PIECE):
        found = _read(x, base, based, start, wide, ground)
        count = 0
        for i in range(found.size):
            count += found[i] == bits
        if total < number <= total + count:
            passed = total
            for i in range(found.size):
                passed += found[i] == bits
                if passed == number:
                    index = start + i
                    break
        total += count
    return total, index
