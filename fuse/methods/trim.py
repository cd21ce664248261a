"""Keep the largest magnitudes of a tensor that is seen block by block (TIES, arXiv 2306.01708, section 4, "Trim").

The magnitudes of floats are ordered like their bits read as integers. So the threshold is found digit by digit, 16 bits
at a time, from histograms that add up over blocks: exact, deterministic, and without sorting or a second copy.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DIGIT = 16


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


def find_cut(blocks: Callable[[], Iterable[Tensor]], keep: int) -> Cut:
    """The cut that keeps exactly `keep` elements: the largest magnitudes, and on the threshold the first in order.

    blocks: called once per digit; yields the tensor's flat parts in order, all float32 or all float64. NaN counts as
    the largest magnitude. keep: from 1 to the number of elements.
    """
    prefix, room, shift = 0, keep, None
    while shift != 0:
        counts: Tensor | None = None
        for block in blocks():
            bits = magnitude_bits(block)
            shift = torch.iinfo(bits.dtype).bits - DIGIT if shift is None else shift
            if prefix_shift := (shift + DIGIT) % torch.iinfo(bits.dtype).bits:
                bits = bits[(bits >> prefix_shift) == prefix]
            digits = ((bits >> shift) & ((1 << DIGIT) - 1)).bincount(minlength=1 << DIGIT)
            counts = digits if counts is None else counts.add_(digits)
        if counts is None or shift is None:
            raise ValueError("an empty tensor has no threshold")
        above = counts.flip(0).cumsum(0)  # above[i]: elements whose digit is at least 2**16 - 1 - i
        place = int(torch.searchsorted(above, room))
        room -= int(above[place - 1]) if place else 0
        prefix = prefix << DIGIT | ((1 << DIGIT) - 1 - place)
        shift = None if shift == 0 else shift - DIGIT
        if shift is None:
            break
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
