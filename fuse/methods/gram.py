"""Gram matrices of whole tensors, of their rows or of their columns, and the sums whose factors follow from them.

A mean on a sphere stays in the span of its members. So it is a weighted sum, whose factors follow from the members'
products with each other: one pass over the tensors in float64, and then a few numbers.
"""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import combinations_with_replacement
from typing import Any, Literal

import torch
from torch import Tensor

from fuse import kernels
from fuse.methods.arithmetic import combination, fresh, task_vector, working_dtype
from fuse.methods.blocks import Flat
from fuse.methods.row_blocks import SUM as BLOCK
from fuse.methods.row_blocks import row_step, row_sums
from fuse.torch_threads import one_thread

Per = Literal["tensor", "row", "column"]
STRETCH = 1 << 17  # elements of whole tensors whose products are taken at once
PIECE = 1 << 11  # elements whose products are added up in float64; `fuse.kernels` has the same


def gram(tensors: Sequence[Flat], base: Flat | None = None, per: Per = "tensor") -> Tensor:
    """The products ``<x_i, x_j>`` of the tensors, or of their task vectors where a base is given.

    tensors: n flat ones, or n of ``(rows, width)``, as `measure` gets them.
    Returns float64 ``(n, n, vectors)`` on the CPU, with one vector a tensor, row or column. Sums go over fixed blocks
    in a fixed order, so that they do not depend on the number of threads; those of whole tensors not on the machine
    either. What overflows or is not finite becomes NaN or infinite.
    """
    if per == "tensor":
        return _whole_gram([*tensors, *([] if base is None else [base])], base is not None)
    length, *rest = tensors[0].shape
    pairs = list(combinations_with_replacement(range(len(tensors)), 2))
    found: list[list[Any]] = [[] for _ in pairs]
    step = row_step(math.prod(rest), BLOCK)
    with one_thread():
        for start in range(0, max(length, 1), step):
            parts = [tensor[start : start + step].to(torch.float64, copy=True) for tensor in tensors]
            if base is not None:
                ground = base[start : start + step].double()
                parts = [part.sub_(ground) for part in parts]
            for sums, (i, j) in zip(found, pairs, strict=True):
                sums.extend(_SUMS[per](parts[i], parts[j]))
    joined = [_JOINS[per](sums) for sums in found]
    result = torch.empty(len(tensors), len(tensors), joined[0].numel(), dtype=torch.float64)
    for numbers, (i, j) in zip(joined, pairs, strict=True):
        result[i, j] = result[j, i] = numbers
    return result


def _whole_gram(tensors: Sequence[Flat], has_base: bool) -> Tensor:
    """The Gram matrix of whole tensors; of their differences from the last where that is the base."""
    count = len(tensors) - has_base
    pairs = list(combinations_with_replacement(range(count), 2))
    found: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    length, *rest = tensors[0].shape
    step = row_step(math.prod(rest), STRETCH)
    with one_thread():
        for start in range(0, max(length, 1), step):
            parts = [tensor[start : start + step] for tensor in tensors]
            for pair, sums in _stretch_products(parts, has_base, pairs).items():
                found[pair].extend(sums)
    result = torch.empty(count, count, 1, dtype=torch.float64)
    for (i, j), sums in found.items():
        result[i, j] = result[j, i] = exact_sum(sums)
    return result


def _stretch_products(
    parts: Sequence[Tensor], has_base: bool, pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], list[float]]:
    """Each pair's product over one stretch, as numbers that add up to it: a tensor kept for each would leave no two
    freed blocks side by side."""
    if kernels.suit(parts, halves=True):
        from fuse.kernels.products import products

        base, found = parts[-1] if has_base else None, {}
        for i, j in [pair for pair in pairs if pair[0] < pair[1]] or pairs:
            found[i, i], found[i, j], found[j, j] = products(parts[i], parts[j], base)
        return found
    wide = [part.to(torch.float64, copy=True).reshape(-1) for part in parts]
    if has_base:
        ground = wide.pop()
        wide = [part.sub_(ground) for part in wide]
    rest = -len(wide[0]) % PIECE
    pieces = [torch.nn.functional.pad(part, (0, rest)).view(-1, PIECE) for part in wide]
    return {(i, j): halved(pieces[i] * pieces[j]).tolist() for i, j in pairs}


def halved(terms: Tensor) -> Tensor:
    """The sum of each row: the second half is added to the first until one number is left, so that every machine that
    adds two numbers right has the same bits.

    terms: ``(rows, a power of two)``, overwritten.
    """
    size = terms.shape[1] // 2
    while size:
        terms[:, :size].add_(terms[:, size : 2 * size])
        size //= 2
    return terms[:, 0]


_SUMS = {
    "row": lambda x, y: [row_sums(x * y)],
    "column": lambda x, y: [(x * y).sum(0)],
}
_JOINS = {
    "row": lambda sums: torch.cat(sums).cpu(),
    "column": lambda sums: reduce(Tensor.add_, sums).cpu(),
}


def exact_sum(numbers: Iterable[float]) -> float:
    """`math.fsum`, or NaN for what overflows or has no sum."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return math.nan


def cosines(products: Tensor) -> Tensor:
    """``<x_i, x_j> / (|x_i| |x_j|)`` of Gram matrices ``(n, n, vectors)``, within -1 to 1; 0 where a vector is zero."""
    norms = norms_of(products)
    lengths = norms[:, None] * norms[None]
    return (products / lengths).masked_fill_(lengths == 0, 0).clamp_(-1, 1)


def norms_of(products: Tensor) -> Tensor:
    """The lengths ``(n, vectors)`` of the vectors with these Gram matrices."""
    return products.diagonal(dim1=0, dim2=1).T.sqrt()


def combined(tensors: Sequence[Tensor], base: Tensor | None, factors: Tensor, offset: int, per: Per) -> Tensor:
    """The weighted sum of one block, or the base plus that of its task vectors.

    factors: float64 ``(n, vectors)`` of all the vectors, one a tensor, row or column, as in `gram`.
    offset: the index, in the whole tensor, of the block's first element.
    """
    if per == "tensor":
        return combination(tensors, base, factors[:, 0].tolist())
    dtype = working_dtype([*tensors, *([] if base is None else [base])])
    start = None if base is None else base.to(dtype)
    terms = (fresh(tensor, dtype) if start is None else task_vector(tensor, start) for tensor in tensors)
    if per == "row":
        rows, width = tensors[0].shape
        first = offset // max(width, 1)
        factors = factors[:, first : first + rows, None]
    shares = factors.to(tensors[0].device, dtype)
    total = reduce(Tensor.add_, (term.mul_(share) for term, share in zip(terms, shares, strict=True)))
    return total if start is None else total.add_(start)
