"""Keep the largest magnitudes of a tensor that is seen block by block (TIES, arXiv 2306.01708, section 4).

The magnitudes of floats are ordered like their bits read as integers. So the threshold is found digit by
digit, 16 bits at a time, from histograms that add up over blocks: exact, deterministic, and without sorting
or a second copy.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor

DIGIT = 16
BINS = 1 << DIGIT
Blocks: TypeAlias = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where to trim: magnitudes above the threshold stay, and those exactly on it up to element `last`.

    bits: the threshold as the integer with the same bits. last: an index into the whole flat tensor.
    """

    bits: int
    last: int


def kept_count(density: float, size: int) -> int:
    """How many elements stay: ``int(density * size)`` as mergekit counts, and at least one."""
    return min(size, max(1, int(density * size)))


def find_cut(blocks: Blocks, keep: int, dtype: torch.dtype) -> Cut:
    """The cut that keeps exactly `keep` elements: the largest magnitudes, the first in order among equals.

    blocks: called once per pass; yields the tensor's flat parts in order, in dtype (float32 or float64).
    keep: from 1 to the number of elements. NaN counts as the largest magnitude.
    """
    first = list(islice(blocks(), 2))
    if len(first) == 1 and first[0].numel() <= BINS:
        return _small_cut(magnitude_bits(first[0]), keep)
    prefix, room, top = 0, keep, torch.finfo(dtype).bits - DIGIT
    on_it = 0
    for shift in range(top, -1, -DIGIT):
        counts: Tensor | int = 0
        for block in blocks():
            bits = magnitude_bits(block)
            if shift < top:
                bits = _within(bits, shift + DIGIT, prefix)
            digits = (bits >> shift) & (BINS - 1)
            counts = counts + digits.bincount(minlength=BINS)
        # at_least[i]: how many of the digits are BINS - 1 - i or more
        at_least = torch.as_tensor(counts).flip(0).cumsum(0)
        place = int(torch.searchsorted(at_least, room))
        above = int(at_least[place - 1]) if place else 0
        on_it = int(at_least[place]) - above
        room -= above
        prefix = prefix << DIGIT | (BINS - 1 - place)
    return Cut(prefix, _last(blocks, prefix, room, on_it))


def _small_cut(bits: Tensor, keep: int) -> Cut:
    """`find_cut` of a single block that is smaller than a histogram."""
    threshold = bits.kthvalue(bits.numel() - keep + 1).values
    on_it = (bits == threshold).nonzero().view(-1)
    return Cut(int(threshold), int(on_it[keep - int((bits > threshold).sum()) - 1]))


def _within(bits: Tensor, shift: int, prefix: int) -> Tensor:
    """The bits that begin with the prefix. On a CPU numpy picks them several times faster than torch."""
    if bits.device.type == "cpu":
        numbers = bits.numpy()
        return torch.from_numpy(numbers[numbers >> shift == prefix])
    return bits[bits >> shift == prefix]


def _last(blocks: Blocks, bits: int, room: int, on_it: int) -> int:
    """The index of the element number `room` of those exactly on the threshold, which are `on_it` in all."""
    start = 0
    for block in blocks() if room < on_it else ():
        ties = magnitude_bits(block) == bits
        count = int(ties.sum())
        if count >= room:
            return start + int(ties.nonzero()[room - 1])
        room -= count
        start += block.numel()
    return torch.iinfo(torch.int64).max


def trim(block: Tensor, cut: Cut, offset: int) -> Tensor:
    """Set what the cut drops to zero, in place. offset: where in the whole tensor the block begins."""
    late = max(0, cut.last + 1 - offset)
    if cut.bits:
        _shrink(block[:late], cut.bits - 1)
        _shrink(block[late:], cut.bits)
    return block


def _shrink(block: Tensor, bits: int) -> None:
    """Zero the magnitudes up to the float with these bits, in place."""
    whole = torch.int64 if block.dtype == torch.float64 else torch.int32
    most = torch.tensor(bits, dtype=whole).view(block.dtype).item()
    if block.numel():
        block.copy_(torch.hardshrink(block, most))


def magnitude_bits(block: Tensor) -> Tensor:
    """The bits of ``|block|`` as int32 or int64, ordered like the magnitudes."""
    dtype = torch.int64 if block.dtype == torch.float64 else torch.int32
    return block.view(dtype) & torch.iinfo(dtype).max
