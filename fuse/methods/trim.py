"""Keep the largest magnitudes of a tensor that is seen block by block (TIES, arXiv 2306.01708, section 4).

The magnitudes of floats are ordered like their bits read as integers. So the threshold is found digit by
digit, 16 bits at a time, from histograms that add up over blocks: exact, deterministic, and without sorting
or a second copy.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DIGIT = 16
DIGIT_MASK = (1 << DIGIT) - 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Where to trim: magnitudes above the threshold stay, and the first `room` of those exactly on it.

    bits: the threshold as the integer with the same bits. room: shrinks from block to block.
    """

    bits: int
    room: int


def kept_count(density: float, size: int) -> int:
    """How many elements stay: ``int(density * size)`` as mergekit counts, and at least one."""
    return min(size, max(1, int(density * size)))


def find_cut(blocks: Callable[[], Iterable[Tensor]], keep: int, dtype: torch.dtype) -> Cut:
    """The cut that keeps exactly `keep` elements: the largest magnitudes, the first in order among equals.

    blocks: called once per digit; yields the tensor's flat parts in order, in dtype (float32 or float64).
    keep: from 1 to the number of elements. NaN counts as the largest magnitude.
    """
    prefix, room, top = 0, keep, torch.finfo(dtype).bits - DIGIT
    for shift in range(top, -1, -DIGIT):
        counts: Tensor | int = 0
        for block in blocks():
            bits = magnitude_bits(block) >> shift
            if shift < top:
                bits = bits[bits >> DIGIT == prefix]
            counts = counts + (bits & DIGIT_MASK).bincount(minlength=DIGIT_MASK + 1)
        # at_least[i]: how many of the digits are DIGIT_MASK - i or more
        at_least = torch.as_tensor(counts).flip(0).cumsum(0)
        place = int(torch.searchsorted(at_least, room))
        room -= int(at_least[place - 1]) if place else 0
        prefix = prefix << DIGIT | (DIGIT_MASK - place)
    return Cut(prefix, room)


def trim(block: Tensor, cut: Cut) -> Cut:
    """Set what the cut drops to zero, in place; returns the cut for the next block."""
    bits = magnitude_bits(block)
    block.masked_fill_(bits < cut.bits, 0)
    ties = (bits == cut.bits).nonzero().view(-1)
    block[ties[cut.room :]] = 0
    return replace(cut, room=max(0, cut.room - len(ties)))


def magnitude_bits(block: Tensor) -> Tensor:
    """The bits of ``|block|`` as int32 or int64, ordered like the magnitudes."""
    dtype = torch.int64 if block.dtype == torch.float64 else torch.int32
    return block.view(dtype) & torch.iinfo(dtype).max
