"""Select where members differ, calculate their weights, erase by sign (SCE, arXiv 2408.07990, section 3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from fuse.methods.arithmetic import check_lengths, fresh, task_vector, working_dtype
from fuse.methods.blocks import Flat, blocks, in_blocks
from fuse.methods.gram import BLOCK, exact_sum
from fuse.methods.ties import HISTOGRAM_BLOCK, agreed, signs
from fuse.methods.trim import Cut, find_cut, magnitude_bits, trim


@dataclass(frozen=True, slots=True)
class Facts:
    """The members' weights, and where their spread is cut; None where all elements stay."""

    weights: tuple[float, ...]
    cut: Cut | None


def sce(tensors: Sequence[Tensor], base: Tensor, *, select_topk: float = 1.0) -> Tensor:
    """The base plus what agrees with the elected sign, where members differ most, weighted by how much each changed.

    Select: below 1, the share select_topk (the paper's tau) of the elements whose task vectors ``d = x - base`` are not
    all equal stays, those with the largest variance; ``int(select_topk * count)``, as mergekit counts. Calculate:
    ``w = sum(d ** 2)`` over what stayed, divided by the members' sum of it. Erase: the sign of ``sum(d)`` is elected,
    and the result is ``base + sum(w * d) / sum(w)`` over the members that have it.
    tensors: one or more. tensors, base: one shape, any float dtypes.
    Returns that shape in float32 (float64 where an input is float64); weights are computed in float64.
    Among equal variances the lowest index stays (our choice; mergekit leaves it to its sort).

    Raises ValueError for unequal shapes, or select_topk outside 0 to 1.
    """
    check_lengths(tensors)
    if not 0 <= select_topk <= 1:
        raise ValueError(f"select_topk should be from 0 to 1, not {select_topk}")
    return in_blocks(measure, apply, tensors, base, select_topk=select_topk)


def measure(tensors: Sequence[Flat], base: Flat, *, select_topk: float = 1.0) -> Facts:
    """The weights, and where the spread is cut."""
    dtype = working_dtype([*tensors, base])
    cut = _cut(tensors, select_topk, dtype) if select_topk < 1 else None
    squares: list[list[float]] = []
    for start, (*parts, ground) in blocks([*tensors, base], BLOCK):
        deltas = _selected(parts, ground.to(dtype), cut, start)
        wide = [delta.double() for delta in deltas]
        squares.append(torch.stack([(one * one).sum() for one in wide]).tolist())
    sums = [exact_sum(column) for column in zip(*squares, strict=True)]
    total = exact_sum(sums)
    return Facts(tuple(one / total if total else 1 / len(sums) for one in sums), cut)


def apply(
    tensors: Sequence[Tensor], base: Tensor, facts: Facts, *, offset: int = 0, select_topk: float = 1.0
) -> Tensor:
    """`sce` of one block of flat tensors, given what `measure` found in the whole."""
    del select_topk
    start = base.to(working_dtype([*tensors, base]))
    deltas = _selected(tensors, start, facts.cut, offset)
    sign = signs(deltas)
    for delta, weight in zip(deltas, facts.weights, strict=True):
        delta.mul_(weight)
    return agreed(deltas, sign, facts.weights, normalize=True).add_(start)


def _selected(tensors: Sequence[Tensor], start: Tensor, cut: Cut | None, offset: int) -> list[Tensor]:
    """The task vectors of a block, zero where the members differ too little."""
    deltas = [task_vector(tensor, start) for tensor in tensors]
    if cut is None:
        return deltas
    stays = trim(_spread(tensors, start.dtype), cut, offset).sign_()
    return [delta.mul_(stays) for delta in deltas]


def _cut(tensors: Sequence[Flat], share: float, dtype: torch.dtype) -> Cut:
    def spreads() -> Iterator[Tensor]:
        for _, parts in blocks(tensors, HISTOGRAM_BLOCK):
            yield _spread(parts, dtype)

    keep = int(share * sum(int(spread.count_nonzero()) for spread in spreads()))
    infinity = int(magnitude_bits(torch.tensor([torch.inf], dtype=dtype)))
    return find_cut(spreads, keep, dtype) if keep else Cut(infinity, last=-1)


def _spread(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``sum((x_i - x_j) ** 2)`` over all pairs: the variance times a constant, and exactly zero where all are equal."""
    wide = [fresh(tensor, dtype) for tensor in tensors]
    spread = torch.zeros_like(wide[0])
    for one, other in combinations(wide, 2):
        spread.add_((one - other).square_())
    return spread
