"""Dropping elements at random by the rank of their magnitude in their row."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fuse.kernels.compiler import array, kernel
from fuse.kernels.draws import draw

DIGIT = 11  # three digits hold the 31 bits of a magnitude


def drop(rows: Tensor, chances: NDArray[np.float32], rescale: bool, halves: tuple[int, int], first: int) -> None:
    """Keep each element with the chance of its rank, in place.

    rows: float32 ``(rows, width)`` that `fuse.kernels.suit` takes, of at most 2**32 - first elements. chances:
    ``(width,)``, of the smallest magnitude first. rescale: divide what stays by its chance. halves, first: as for
    `fuse.kernels.draws.drop`.
    """
    begin = np.uint32((first + halves[0]) % (1 << 32))
    _drop(array(rows).reshape(rows.shape), chances, rescale, begin, np.uint32(halves[1]))


@kernel
def _drop(rows, chances, rescale, begin, half):
    width = rows.shape[1]
    order, other = np.empty(width, np.uint32), np.empty(width, np.uint32)
    chance = np.empty(width, np.float32)
    counts = np.empty((3, 1 << DIGIT), np.uint32)
    zero, one = np.float32(0), np.float32(1)
    for r in range(rows.shape[0]):
        row = rows[r]
        order, other = _ascending(row.view(np.uint32), order, other, counts)
        for rank in range(width):
            chance[order[rank]] = chances[rank]
        index = np.uint32(begin + np.uint32(r * width))
        for i in range(width):
            keep = one if draw(np.uint32(index + np.uint32(i)), half) < chance[i] else zero
            row[i] = row[i] * keep
        if rescale:
            for i in range(width):
                row[i] /= chance[i]


@kernel
def _ascending(bits, order, other, counts):
    """The columns in the order of their magnitudes, the lower first among equals: a radix sort of 11 bits at a time.

    Returns the two buffers, the sorted one first.
    """
    width, mask, magnitude = bits.size, np.uint32((1 << DIGIT) - 1), np.uint32(0x7FFFFFFF)
    counts[:] = 0
    for i in range(width):
        value = bits[i] & magnitude
        counts[0, value & mask] += 1
        counts[1, (value >> np.uint32(DIGIT)) & mask] += 1
        counts[2, value >> np.uint32(2 * DIGIT)] += 1
        order[i] = i
    for place in range(3):
        shift, count = np.uint32(place * DIGIT), counts[place]
        if count[((bits[0] & magnitude) >> shift) & mask] == width:
            continue  # all have the same digit
        total = np.uint32(0)
        for digit in range(1 << DIGIT):
            total, count[digit] = total + count[digit], total
        for i in range(width):
            column = order[i]
            digit = ((bits[column] & magnitude) >> shift) & mask
            other[count[digit]] = column
            count[digit] += np.uint32(1)
        order, other = other, order
    return order, other
