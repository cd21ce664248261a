"""Dropping elements at random by the rank of their magnitude in their row."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fuse.kernels.compiler import array, kernel
from fuse.kernels.draws import draw

TOGETHER = 1 << 15  # elements whose ranks fit into a core's cache


def drop(rows: Tensor, chances: NDArray[np.float32], rescale: bool, halves: tuple[int, int], first: int) -> None:
    """Keep each element with the chance of its rank, in place.

    rows: float32 ``(rows, width)`` that `fuse.kernels.suit` takes, of at most 2**32 - first elements. chances:
    ``(width,)``, of the smallest magnitude first. rescale: divide what stays by its chance. halves, first: as for
    `fuse.kernels.draws.drop`.
    """
    given, width = array(rows).reshape(rows.shape), rows.shape[1]
    step = max(1, TOGETHER // width)
    space = np.empty((min(step, len(given)), width), np.int64)
    for row in range(0, len(given), step):
        part = given[row : row + step]
        order = space[: len(part)]
        _pack(part.view(np.uint32), order)
        order.sort(axis=-1)  # numpy's, which a processor's widest instructions do, is faster than a radix sort here
        begin = np.uint32((first + row * width + halves[0]) % (1 << 32))
        _drop(part, order, chances, rescale, begin, np.uint32(halves[1]))


@kernel
def _pack(bits, out):
    """Each magnitude's bits above its column: in their order equals keep theirs."""
    magnitude = np.uint32(0x7FFFFFFF)
    for r in range(bits.shape[0]):
        for i in range(bits.shape[1]):
            out[r, i] = (np.int64(bits[r, i] & magnitude) << np.int64(32)) | np.int64(i)


@kernel
def _drop(rows, order, chances, rescale, begin, half):
    width = rows.shape[1]
    chance = np.empty(width, np.float32)
    zero, one = np.float32(0), np.float32(1)
    for r in range(rows.shape[0]):
        row = rows[r]
        for rank in range(width):
            chance[order[r, rank] & np.int64(0xFFFFFFFF)] = chances[rank]
        index = np.uint32(begin + np.uint32(r * width))
        for i in range(width):
            keep = one if draw(np.uint32(index + np.uint32(i)), half) < chance[i] else zero
            row[i] = row[i] * keep
        if rescale:
            for i in range(width):
                row[i] /= chance[i]
