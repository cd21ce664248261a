"""Exact order statistics of a tensor that is seen block by block."""

from collections.abc import Sequence

import torch

from fuse.methods.trim import BINS, DIGIT, Blocks, magnitude_bits


def order_statistics(blocks: Blocks, ranks: Sequence[int], dtype: torch.dtype) -> list[float]:
    """The numbers that stand at these places, counted from 0, when all are sorted; for numbers that are not negative.

    blocks: called once per pass; yields the flat parts, in dtype (float32 or float64). NaN counts as the largest.
    The bits of floats that are not negative are ordered like the floats. So the numbers are found digit by digit, 16
    bits at a time, from histograms of those that share the digits found so far.
    """
    # rank: the prefix of its number, and its place among those that share it
    found = {rank: (0, rank) for rank in ranks}
    bits_in_all = torch.finfo(dtype).bits
    for shift in range(bits_in_all - DIGIT, -1, -DIGIT):
        prefixes = sorted({prefix for prefix, _ in found.values()})
        counts = {prefix: torch.zeros(BINS, dtype=torch.int64) for prefix in prefixes}
        for block in blocks():
            bits = magnitude_bits(block)
            above = bits >> (shift + DIGIT) if shift + DIGIT < bits_in_all else None
            digits = (bits >> shift) & (BINS - 1)
            for prefix, count in counts.items():
                same = digits if above is None else digits[above == prefix]
                count.add_(same.bincount(minlength=BINS).cpu())
        below = {prefix: count.cumsum(0) for prefix, count in counts.items()}
        for rank, (prefix, place) in found.items():
            digit = int(torch.searchsorted(below[prefix], place, right=True))
            less = int(below[prefix][digit - 1]) if digit else 0
            found[rank] = (prefix << DIGIT | digit, place - less)
    whole = torch.int64 if dtype == torch.float64 else torch.int32
    return [_float(found[rank][0], whole, dtype) for rank in ranks]


def _float(bits: int, whole: torch.dtype, dtype: torch.dtype) -> float:
    return torch.tensor(bits, dtype=whole).view(dtype).item()
