"""Keep the largest magnitudes of a tensor that is seen block by block (TIES, arXiv 2306.01708, section 4).

The magnitudes of floats are ordered like their bits read as integers. So the threshold is found digit by
digit, 16 bits at a time, from histograms that add up over blocks: exact, deterministic, and without sorting
or a second copy.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fuse import kernels
from fuse.methods.arithmetic import difference

DIGIT = 16
BINS = 1 << DIGIT


class Delta(NamedTuple):
    """``tensor - base``, to be computed where it is looked at; both flat."""

    tensor: Tensor
    base: Tensor

    def numel(self) -> int:
        return self.base.numel()


Block: TypeAlias = Tensor | Delta
Blocks: TypeAlias = Callable[[], Iterable[Block]]


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

    blocks: called once per pass; yields the tensor's flat parts in order, in dtype (float32 or float64), or
    as differences that are to be in dtype.
    keep: from 1 to the number of elements. NaN counts as the largest magnitude.
    """
    return find_cuts(blocks, [keep], dtype)[0]


def find_cuts(blocks: Blocks, keeps: Sequence[int], dtype: torch.dtype) -> list[Cut]:
    """`find_cut` for several numbers of elements in as many passes as for one."""
    found = thresholds(blocks, keeps, dtype)
    return [Cut(one.bits, last) for one, last in zip(found, _lasts(blocks, found, dtype), strict=True)]


@dataclass(frozen=True, slots=True)
class Threshold:
    """The smallest magnitude that is kept, as the integer with the same bits.

    room: how many of those exactly on it are kept. on_it: how many there are.
    """

    bits: int
    room: int
    on_it: int


def thresholds(blocks: Blocks, keeps: Sequence[int], dtype: torch.dtype) -> list[Threshold]:
    """The thresholds that keep so many elements each; arguments as for `find_cut`."""
    first = list(islice(blocks(), 2))
    if len(first) == 1 and first[0].numel() <= BINS:
        return [_of_few(magnitude_bits(_numbers(first[0], dtype)), keep) for keep in keeps]
    top = torch.finfo(dtype).bits - DIGIT
    found = [Threshold(0, keep, 0) for keep in keeps]
    for shift in range(top, -1, -DIGIT):
        counts = {one.bits: _Histogram(dtype, shift, None if shift == top else one.bits) for one in found}
        for block in blocks():
            for histogram in counts.values():
                histogram.add(block)
        # at_least[i]: how many of the digits are BINS - 1 - i or more
        at_least = {prefix: histogram.total().flip(0).cumsum(0) for prefix, histogram in counts.items()}
        found = [_with_digit(one, at_least[one.bits]) for one in found]
    return found


class _Histogram:
    """How many magnitudes have each value of the digit above `shift`, of those that begin with the prefix if any."""

    def __init__(self, dtype: torch.dtype, shift: int, prefix: int | None) -> None:
        self._dtype, self._shift, self._prefix = dtype, shift, prefix
        self._counts, self._lanes = torch.zeros(BINS, dtype=torch.int64), None

    def add(self, block: Block) -> None:
        if pair := _compiled(block, self._dtype):
            from fuse.kernels import magnitudes

            self._lanes = magnitudes.lanes() if self._lanes is None else self._lanes
            magnitudes.count(*pair, self._shift, self._prefix, self._lanes)
            return
        bits = magnitude_bits(_numbers(block, self._dtype))
        inside = bits if self._prefix is None else _within(bits, self._shift + DIGIT, self._prefix)
        self._counts = self._counts.to(bits.device) + ((inside >> self._shift) & (BINS - 1)).bincount(minlength=BINS)

    def total(self) -> Tensor:
        return self._counts if self._lanes is None else self._counts + torch.from_numpy(self._lanes.sum(0))


def _with_digit(found: Threshold, at_least: Tensor) -> Threshold:
    place = int(torch.searchsorted(at_least, found.room))
    above = int(at_least[place - 1]) if place else 0
    on_it = int(at_least[place]) - above
    return Threshold(found.bits << DIGIT | (BINS - 1 - place), found.room - above, on_it)


def _of_few(bits: Tensor, keep: int) -> Threshold:
    """The threshold of a single block that is smaller than a histogram."""
    threshold = bits.kthvalue(bits.numel() - keep + 1).values
    above, on_it = (bits > threshold).sum(), (bits == threshold).sum()
    return Threshold(int(threshold), keep - int(above), int(on_it))


def _within(bits: Tensor, shift: int, prefix: int) -> Tensor:
    """The bits that begin with the prefix. On a CPU numpy picks them several times faster than torch."""
    if bits.device.type == "cpu":
        numbers = bits.numpy()
        return torch.from_numpy(numbers[numbers >> shift == prefix])
    return bits[bits >> shift == prefix]


def _lasts(blocks: Blocks, found: Sequence[Threshold], dtype: torch.dtype) -> list[int]:
    """The index of the last element that is kept of those exactly on each threshold; past all where all are."""
    lasts = [torch.iinfo(torch.int64).max] * len(found)
    rooms = {number: one.room for number, one in enumerate(found) if one.room < one.on_it}
    start = 0
    for block in blocks() if rooms else ():
        for number, room in list(rooms.items()):
            count, place = _place(block, dtype, found[number].bits, room)
            rooms[number] = room - count
            if count >= room:
                lasts[number] = start + place
                del rooms[number]
        if not rooms:
            break
        start += block.numel()
    return lasts


def _place(block: Block, dtype: torch.dtype, bits: int, number: int) -> tuple[int, int]:
    """How many magnitudes have exactly these bits, and the index of the one with this number, from 1, if there is."""
    if pair := _compiled(block, dtype):
        from fuse.kernels.magnitudes import place

        return place(*pair, bits, number)
    found = magnitude_bits(_numbers(block, dtype)) == bits
    count = int(found.sum())
    return count, int(found.nonzero()[number - 1]) if count >= number else -1


def _numbers(block: Block, dtype: torch.dtype) -> Tensor:
    return block if isinstance(block, Tensor) else difference(block.tensor, block.base, dtype)


def _compiled(block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor | None] | None:
    """The tensor and what is subtracted from it, where the kernels take them."""
    if isinstance(block, Tensor):
        return (block, None) if kernels.suit([block]) else None
    return (block.tensor, block.base) if dtype == torch.float32 and kernels.suit(block, halves=True) else None


def trim(block: Tensor, cut: Cut, offset: int) -> Tensor:
    """Set what the cut drops to zero, in place. offset: where in the whole tensor the block begins."""
    late = max(0, cut.last + 1 - offset)
    if cut.bits:
        _shrink(block[:late], cut.bits - 1)
        _shrink(block[late:], cut.bits)
    return block


def trimmed(tensor: Tensor, base: Tensor, dtype: torch.dtype, cut: Cut | None, offset: int) -> Tensor:
    """`trim` of ``tensor - base`` in dtype, in memory of its own; None cuts nothing."""
    if cut and dtype == torch.float32 and kernels.suit([tensor, base], halves=True):
        from fuse.kernels import deltas

        return deltas.between(tensor, base, edge(cut, offset, tensor), None)
    delta = difference(tensor, base, dtype)
    return trim(delta, cut, offset) if cut else delta


def edge(cut: Cut, offset: int, block: Tensor) -> tuple[int, int]:
    """The cut as kernels take it: its bits, and the first element of the block from which on they are too few."""
    return cut.bits, max(0, min(cut.last + 1 - offset, block.numel()))


def _shrink(block: Tensor, bits: int) -> None:
    """Zero the magnitudes up to the float with these bits, in place."""
    if block.numel():
        block.copy_(torch.hardshrink(block, float_of(bits, block.dtype)))


def float_of(bits: int, dtype: torch.dtype) -> float:
    """The float of dtype (float32 or float64) with these bits."""
    whole = torch.int64 if dtype == torch.float64 else torch.int32
    return torch.tensor(bits, dtype=whole).view(dtype).item()


def magnitude_bits(block: Tensor) -> Tensor:
    """The bits of ``|block|`` as int32 or int64, ordered like the magnitudes."""
    dtype = torch.int64 if block.dtype == torch.float64 else torch.int32
    return block.view(dtype) & torch.iinfo(dtype).max
