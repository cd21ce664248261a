"""What all methods share: the precision they compute in, task vectors and weighted sums.

Methods compute in float32 (float64 where an input is float64) by separately rounded operations in a fixed
order, with no fused multiply-add, so that an element's bytes do not depend on the size of the block it is
computed in. Scalars are combined in Python floats first. In-place operations touch only copies made here,
never an input.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from fuse import kernels
from fuse.methods.table import sums_to_zero

# What becomes of thinned task vectors, the base, the weights, lambda and normalize: `summed`, or `ties.elected`.
Combine: TypeAlias = "Callable[[list[Tensor], Tensor, Sequence[float], float, bool], Tensor]"


class Unmergeable(ValueError):
    """Values for which a method means nothing. The text has {0}, {1} ... where members are to be named."""


class Shaped(Protocol):
    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...


def working_dtype(tensors: Sequence[Shaped]) -> torch.dtype:
    """float64 where any tensor is float64, else float32.

    Raises ValueError for unequal shapes, TypeError for a tensor that is not floating point.
    """
    for tensor in tensors:
        if tensor.shape != tensors[0].shape:
            raise ValueError(f"shapes differ: {tuple(tensors[0].shape)} and {tuple(tensor.shape)}")
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"a merge needs floating-point tensors, not {tensor.dtype}")
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def check_lengths(tensors: Sequence[object], **values: Sequence[float]) -> None:
    """Raise ValueError for no tensors, or where a per-member parameter does not have one value a tensor."""
    if not tensors:
        raise ValueError("a merge needs at least one tensor")
    for name, numbers in values.items():
        if len(numbers) != len(tensors):
            raise ValueError(f"{name} has {len(numbers)} values for {len(tensors)} tensors")


def fresh(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy that the caller may change."""
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def task_vector(tensor: Tensor, base: Tensor) -> Tensor:
    """``tensor - base`` in the dtype of base (already the working dtype), in memory of its own."""
    return fresh(tensor, base.dtype).sub_(base)


def difference(tensor: Tensor, base: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor - base`` in dtype, in memory of its own."""
    if dtype == torch.float32 and kernels.suit([tensor, base], halves=True):
        from fuse.kernels.deltas import difference as compiled

        return compiled(tensor, base)
    return task_vector(tensor, base.to(dtype))


def coefficients(weights: Sequence[float], normalize: bool, lambda_: float = 1.0) -> list[float]:
    """``lambda * w / sum(w)`` with normalize, else ``lambda * w``; weights that sum to 0 are not divided."""
    total = math.fsum(weights) if normalize and not sums_to_zero(weights) else 1.0
    return [lambda_ * (weight / total) for weight in weights]


def weighted_sum(terms: Iterable[Tensor], factors: Sequence[float]) -> Tensor:
    """``((f0 * t0) + f1 * t1) + ...``, from left to right; the terms are changed in place."""
    return reduce(Tensor.add_, (term.mul_(factor) for term, factor in zip(terms, factors, strict=True)))


def combination(tensors: Sequence[Tensor], base: Tensor | None, factors: Sequence[float]) -> Tensor:
    """`weighted_sum` of the tensors; with a base, of their task vectors, and the base added last."""
    given = [*tensors, *([] if base is None else [base])]
    dtype = working_dtype(given)
    if kernels.suit(given, halves=True):
        from fuse.kernels.sums import weighted

        return weighted(tensors, base, factors)
    if base is None:
        return weighted_sum((fresh(tensor, dtype) for tensor in tensors), factors)
    start = base.to(dtype)
    return weighted_sum((task_vector(tensor, start) for tensor in tensors), factors).add_(start)


def moved(base: Tensor, deltas: Iterable[Tensor], factors: Sequence[float]) -> Tensor:
    """`weighted_sum` of task vectors in the working dtype, changed in place or not, and the base added last."""
    given = list(deltas)
    if kernels.suit(given) and kernels.suit([base], halves=True):
        from fuse.kernels.sums import moved as compiled

        return compiled(given, base, factors)
    return weighted_sum(given, factors).add_(base)


def summed(
    deltas: Iterable[Tensor], base: Tensor, weights: Sequence[float], lambda_: float, normalize: bool
) -> Tensor:  # fmt: skip
    """The base plus lambda times the weighted sum of task vectors; `fuse.methods.ties.elected` with all that agree."""
    return moved(base, deltas, coefficients(weights, normalize, lambda_))
