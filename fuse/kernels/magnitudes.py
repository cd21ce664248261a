"""Counting magnitudes by their bits."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fuse.kernels.compiler import array, kernel

LANES = 4  # histograms side by side: equal neighbours do not wait for each other's count


def lanes() -> NDArray[np.int64]:
    """Empty counts for `count`; their sum over the first axis is the histogram."""
    return np.zeros((LANES, 1 << 16), np.int64)


def count(block: Tensor, shift: int, prefix: int | None, counts: NDArray[np.int64]) -> None:
    """Count how many magnitudes have each value of the 16 bits above `shift`, of those that begin with the prefix.

    block: float32 that `fuse.kernels.suit` takes. prefix: the bits above those 16; None counts all.
    """
    if prefix is None:
        _count_all(array(block), np.uint32(shift), counts)
    else:
        _count_within(array(block), np.uint32(shift), np.uint32(prefix), counts)


def place(block: Tensor, bits: int, number: int) -> tuple[int, int]:
    """How many magnitudes have exactly these bits, and the index of the one with this number (from 1), or -1."""
    return _place(array(block), np.uint32(bits), number)


@kernel
def _count_all(x, shift, counts):
    bits = x.view(np.uint32)
    digit, low = np.uint32(0x7FFFFFFF), np.uint32(0xFFFF)
    whole = bits.size - bits.size % LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            counts[lane, ((bits[i + lane] & digit) >> shift) & low] += 1
    for i in range(whole, bits.size):
        counts[0, ((bits[i] & digit) >> shift) & low] += 1


@kernel
def _count_within(x, shift, prefix, counts):
    bits = x.view(np.uint32)
    digit, low, above = np.uint32(0x7FFFFFFF), np.uint32(0xFFFF), shift + np.uint32(16)
    for i in range(bits.size):
        magnitude = bits[i] & digit
        counts[i % LANES, (magnitude >> shift) & low] += magnitude >> above == prefix  # a branch would be guessed wrong


@kernel
def _place(x, bits, number):
    found = x.view(np.uint32)
    magnitude = np.uint32(0x7FFFFFFF)
    count = 0
    for i in range(found.size):
        count += (found[i] & magnitude) == bits
    if count < number:
        return count, -1
    passed = 0
    for i in range(found.size):
        passed += (found[i] & magnitude) == bits
        if passed == number:
            return count, i
    return count, -1
