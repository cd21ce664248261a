"""Keep the middle magnitudes of a task vector (Model Breadcrumbs, arXiv 2312.06795)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fuse import kernels
from fuse.methods.arithmetic import Combine, check_lengths, working_dtype
from fuse.methods.blocks import Flat, blocks, in_blocks
from fuse.methods.checks import crumbs_problem
from fuse.methods.ties import HISTOGRAM_BLOCK
from fuse.methods.trim import Cut, Delta, edge, find_cuts, kept_count, trim, trimmed

# Where the smallest and where the largest are cut; None where nothing is.
Cuts: TypeAlias = tuple[Cut | None, Cut | None]


def crumbled(
    apply: Callable[..., Tensor], tensors: Sequence[Tensor], base: Tensor, weights: Sequence[float],
    density: Sequence[float], gamma: Sequence[float], **more: Any,
) -> Tensor:  # fmt: skip
    """`measure`, then `apply` block by block, over whole tensors.

    Raises ValueError for unequal shapes or lengths, and for density and gamma that do not fit into the whole.
    """
    check_lengths(tensors, weights=weights, density=density, gamma=gamma)
    if problem := crumbs_problem(density, gamma):
        raise ValueError(problem)
    return in_blocks(measure, apply, tensors, base, weights=weights, density=density, gamma=gamma, **more)


def measure(
    tensors: Sequence[Flat], base: Flat, *, density: Sequence[float], gamma: Sequence[float], **_: object
) -> tuple[Cuts, ...]:
    """Where each member's task vector is cut."""
    return cuts_of(tensors, base, density, gamma)


def over_middles(merge: Combine) -> Callable[..., Tensor]:
    """The `apply` of a method that merges what is left of the task vectors, given what `measure` found."""

    def apply(
        tensors: Sequence[Tensor], base: Tensor, facts: Sequence[Cuts], *, weights: Sequence[float], offset: int = 0,
        lambda_: float = 1.0, normalize: bool = False, **_: object,
    ) -> Tensor:  # fmt: skip
        return merge(middles(tensors, base, facts, offset), base, weights, lambda_, normalize)

    return apply


def cuts_of(tensors: Sequence[Flat], base: Flat, density: Sequence[float], gamma: Sequence[float]) -> tuple[Cuts, ...]:
    """The cuts of each member's task vector.

    ``int(gamma * size)`` largest magnitudes are dropped and ``max(1, int(density * size))`` of the others are kept, as
    mergekit counts; among equals the first in order counts as larger (our choice; mergekit leaves it to its sort).
    """
    dtype, size = working_dtype([*tensors, base]), base.numel()

    def cuts(member: Flat, keeps: tuple[int, int]) -> Cuts:
        def deltas() -> Iterator[Delta]:
            for _, (part, start) in blocks([member, base], HISTOGRAM_BLOCK):
                yield Delta(part, start)

        wanted = [keep for keep in keeps if 0 < keep < size]
        found = dict(zip(wanted, find_cuts(deltas, wanted, dtype), strict=True)) if wanted else {}
        return found.get(keeps[0]), found.get(keeps[1])

    counts = []
    for share, top in zip(density, gamma, strict=True):
        kept = kept_count(share, size)
        dropped = min(int(top * size), size - kept)
        counts.append((kept + dropped, dropped))
    return tuple(cuts(member, keeps) for member, keeps in zip(tensors, counts, strict=True))


def middle(tensor: Tensor, base: Tensor, dtype: torch.dtype, cuts: Cuts, offset: int) -> Tensor:
    """``tensor - base`` in dtype, with zero for what the cuts drop. offset: where in the whole tensor the block begins.

    What is not finite among the largest becomes NaN, so that a check of the output sees it.
    """
    smallest, largest = cuts
    if largest and dtype == torch.float32 and kernels.suit([tensor, base], halves=True):
        from fuse.kernels import deltas

        low = edge(smallest, offset, tensor) if smallest else (0, 0)
        return deltas.between(tensor, base, low, edge(largest, offset, tensor))
    delta = trimmed(tensor, base, dtype, smallest, offset)
    if largest is not None:
        delta.sub_(trim(delta.clone(), largest, offset))
    return delta


def middles(tensors: Sequence[Tensor], base: Tensor, cuts: Sequence[Cuts], offset: int) -> list[Tensor]:
    """The kept parts of a block's task vectors."""
    dtype = working_dtype([*tensors, base])
    return [middle(tensor, base, dtype, one, offset) for tensor, one in zip(tensors, cuts, strict=True)]
