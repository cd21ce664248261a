"""Take over the elements that matter most (Arcee Fusion; mergekit's guide and the announcement of its version 0.1)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fuse.methods.arithmetic import working_dtype
from fuse.methods.blocks import Flat
from fuse.methods.row_blocks import in_rows, row_step, row_sums
from fuse.methods.trim import float_of, thresholds

# Tukey's fence, as in mergekit.
FENCE = 1.5


@dataclass(frozen=True, slots=True)
class Facts:
    """The divergence of each row ``(rows,)`` in float64, and the importance from which on an element is taken."""

    divergences: Tensor
    threshold: float


def arcee_fusion(tensors: Sequence[Tensor], base: Tensor) -> Tensor:
    """The base with the elements of the other tensor whose change matters: outliers of ``|x - base| * KL``.

    KL: the Kullback-Leibler divergence of the element's row, softmax of x against softmax of the base. An element is
    taken where its importance is at least ``median + 1.5 * (third quartile - first quartile)`` of the whole tensor.
    tensors: exactly one, of base's shape, any float dtypes. A row is that of `row_blocks.row_width`.
    Returns that shape in float32 (float64 where an input is float64); divergences are computed in float64.
    A quartile is the element at its place among the sorted ones, or the one below, as in mergekit. They are exact;
    mergekit takes those of a random sample where a tensor has more than a million elements.

    Raises ValueError for other than one tensor or unequal shapes.
    """
    if len(tensors) != 1:
        raise ValueError(f"arcee_fusion takes 1 tensor beside the base, not {len(tensors)}")
    return in_rows(measure, apply, tensors, base)


def measure(tensors: Sequence[Flat], base: Flat) -> Facts:
    """The divergences, and the importance from which on an element is taken."""
    (tensor,) = tensors
    dtype = working_dtype([tensor, base])
    rows, width = base.shape
    if not base.numel():
        return Facts(torch.zeros(rows, dtype=torch.float64), 0.0)
    step = row_step(width)
    starts = range(0, rows, step)
    divergences = torch.cat([divergence(tensor[at : at + step], base[at : at + step]) for at in starts])

    def importances() -> Iterator[Tensor]:
        for at in starts:
            yield importance(tensor[at : at + step], base[at : at + step], divergences[at : at + step], dtype).view(-1)

    size = base.numel()
    not_below = [size - int(share * (size - 1)) for share in (0.25, 0.5, 0.75)]
    first, median, third = (float_of(one.bits, dtype) for one in thresholds(importances, not_below, dtype))
    return Facts(divergences, median + FENCE * (third - first))


def apply(tensors: Sequence[Tensor], base: Tensor, facts: Facts, *, offset: int = 0) -> Tensor:
    """`arcee_fusion` of some rows, given what `measure` found in the whole."""
    (tensor,) = tensors
    dtype = working_dtype([tensor, base])
    rows, width = base.shape
    first = offset // max(width, 1)
    taken = importance(tensor, base, facts.divergences[first : first + rows], dtype)
    torch.ge(taken, facts.threshold, out=taken)
    # products, not a choice, so that what is not finite stays visible
    return (tensor.to(dtype) * taken).add_(taken.sub_(1).neg_().mul_(base.to(dtype)))


def divergence(tensor: Tensor, base: Tensor) -> Tensor:
    """``sum(p * log(p / q))`` of each row, p and q softmaxes of the tensor and the base; float64 ``(rows,)``."""
    x, y = tensor.double(), base.double()
    x_most, y_most = x.amax(-1, keepdim=True), y.amax(-1, keepdim=True)
    p, q = (x - x_most).exp_(), (y - y_most).exp_()
    p_sum, q_sum = row_sums(p), row_sums(q)
    between = p_sum.log().add_(x_most[:, 0]).sub_(q_sum.log().add_(y_most[:, 0]))
    return row_sums(p.mul_(x - y)).div_(p_sum).sub_(between).clamp_min_(0)


def importance(tensor: Tensor, base: Tensor, divergences: Tensor, dtype: torch.dtype) -> Tensor:
    """``|x - base| * KL`` of some rows."""
    return (tensor.to(dtype) - base.to(dtype)).abs_().mul_(divergences[:, None].to(dtype))
