"""Between the base and the mean of the members, as far as their angles say (Model Stock, arXiv 2403.19522)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fuse.methods.arithmetic import check_lengths
from fuse.methods.blocks import Flat
from fuse.methods.gram import Per, combined, cosines, gram
from fuse.methods.row_blocks import in_rows

# ``1 + (n - 1) * c`` of directions that sum to zero, up to rounding.
CANCELLED = 1e-12


def model_stock(tensors: Sequence[Tensor], base: Tensor, *, filter_wise: bool = False) -> Tensor:
    """``t * mean(x) + (1 - t) * base`` with ``t = n * c / (1 + (n - 1) * c)``, the merging ratio of the paper.

    c: the mean cosine between the task vectors ``x - base`` of the n members, two at a time.
    tensors: two or more. tensors, base: one shape, any float dtypes. filter_wise: each row
    (`row_blocks.row_width`) has a ratio of its own; otherwise the tensor has one.
    Returns that shape in float32 (float64 where an input is float64); cosines are computed in float64.
    A zero task vector has cosine 0, and t is below 0 where the members point apart, both as in mergekit. Where the
    directions cancel altogether, t would be infinite and is 0: our choice.

    Raises ValueError for fewer than two tensors or unequal shapes.
    """
    check_lengths(tensors)
    if len(tensors) < 2:
        raise ValueError(f"model_stock takes 2 or more tensors, not {len(tensors)}")
    return in_rows(measure, apply, tensors, base, filter_wise=filter_wise)


def measure(tensors: Sequence[Flat], base: Flat, *, filter_wise: bool = False) -> Tensor:
    """The factors ``(n, vectors)`` of the task vectors: all t / n."""
    count = len(tensors)
    between = cosines(gram(tensors, base, "row" if filter_wise else "tensor"))
    first, second = torch.triu_indices(count, count, 1)
    cosine = between[first, second].mean(0)
    spread = 1 + (count - 1) * cosine
    ratio = torch.where(spread > CANCELLED, count * cosine / spread, 0.0)
    return (ratio / count).expand(count, -1)


def apply(
    tensors: Sequence[Tensor], base: Tensor, facts: Tensor, *, offset: int = 0, filter_wise: bool = False
) -> Tensor:
    """`model_stock` of some rows, given the factors."""
    per: Per = "row" if filter_wise else "tensor"
    return combined(tensors, base, facts, offset, per)
