"""Trim, elect a sign, merge what agrees (TIES, arXiv 2306.01708, section 4)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fuse import kernels
from fuse.methods.arithmetic import check_lengths, working_dtype
from fuse.methods.blocks import Flat, blocks, in_blocks
from fuse.methods.trim import Cut, Delta, find_cut, kept_count, trimmed

# Large enough that adding up histograms costs little.
HISTOGRAM_BLOCK = 1 << 18


def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    lambda_: float = 1.0,
    normalize: bool = True,
) -> Tensor:
    """The base plus the merge of the trimmed task vectors that agree with the elected sign.

    ``d = w * trim(x - base)``; ``s = +1 where sum(d) >= 0 else -1``; and the result is
    ``base + lambda * sum(d where sign(d) == s)``. normalize divides the sum by the sum of the weights that
    agreed (by 1 where that is zero).
    tensors, base: one shape, any float dtypes. weights, density: one number a tensor.
    Returns that shape in float32 (float64 where an input is float64).
    Trimming keeps the ``max(1, int(density * size))`` largest magnitudes of the tensor, as mergekit; on the
    threshold the lowest index stays (our choice; mergekit leaves it to an unstable sort). The paper trims the
    whole model at once.

    Raises ValueError for unequal shapes or lengths, or a density outside 0 (exclusive) to 1.
    """
    check_lengths(tensors, weights=weights, density=density)
    return in_blocks(
        measure, apply, tensors, base, weights=weights, density=density, lambda_=lambda_, normalize=normalize
    )


def measure(tensors: Sequence[Flat], base: Flat, *, density: Sequence[float], **_: object) -> tuple[Cut | None, ...]:
    """Where each member's task vector is trimmed; None for one that stays whole."""
    dtype = working_dtype([*tensors, base])
    return tuple(_cut(tensor, base, one, dtype) for tensor, one in zip(tensors, density, strict=True))


def apply(
    tensors: Sequence[Tensor],
    base: Tensor,
    facts: Sequence[Cut | None],
    *,
    weights: Sequence[float],
    density: Sequence[float],
    offset: int = 0,
    lambda_: float = 1.0,
    normalize: bool = True,
) -> Tensor:
    """`ties` of one block of flat tensors, given what `measure` found in the whole."""
    del density
    dtype = working_dtype([*tensors, base])
    deltas = [trimmed(tensor, base, dtype, cut, offset) for tensor, cut in zip(tensors, facts, strict=True)]
    return elected(deltas, base, weights, lambda_, normalize)


def _cut(member: Flat, base: Flat, density: float, dtype: torch.dtype) -> Cut | None:
    if not 0 < density <= 1:
        raise ValueError(f"density should be greater than 0 and at most 1, not {density}")
    keep = kept_count(density, base.numel())
    if keep >= base.numel():
        return None

    def deltas() -> Iterator[Delta]:
        for _, (part, start) in blocks([member, base], HISTOGRAM_BLOCK):
            yield Delta(part, start)

    return find_cut(deltas, keep, dtype)


def elected(
    deltas: Sequence[Tensor], base: Tensor, weights: Sequence[float], lambda_: float, normalize: bool
) -> Tensor:  # fmt: skip
    """The base plus lambda times the sum of the weighted task vectors that have the elected sign, by element.

    deltas: in the working dtype; changed in place, or not. A zero has no sign and agrees with none; a sum of exactly
    zero elects plus, as mergekit. normalize divides by the sum of the weights that agreed, by 1 where it is zero. NaN
    is kept, so that a check of the output sees it.
    """
    if kernels.suit(deltas) and kernels.suit([base], halves=True):
        from fuse.kernels import agreement

        return agreement.elected(deltas, base, weights, lambda_, normalize)
    for delta, weight in zip(deltas, weights, strict=True):
        delta.mul_(weight)
    return agreed(deltas, signs(deltas), weights, normalize).mul_(lambda_).add_(base)


def signs(deltas: Sequence[Tensor]) -> Tensor:
    """1 where the sum is zero or more, else -1."""
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total.add_(delta)
    return torch.ge(total, 0, out=total).mul_(2).sub_(1)  # comparisons into bool are several times slower on a CPU


def agreed(deltas: Sequence[Tensor], sign: Tensor, weights: Sequence[float], normalize: bool) -> Tensor:
    """The sum of the weighted task vectors that have the sign, by element. Overwrites both."""
    merged, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        along = delta.mul_(sign).clamp_min_(0)
        merged.add_(along)
        if normalize:
            share.add_(along.sign_().mul_(weight))
    merged.mul_(sign)
    if normalize:
        merged.div_(share.add_(torch.eq(share, 0, out=sign)))
    return merged
