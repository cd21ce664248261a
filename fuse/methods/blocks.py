"""Tensors seen block by block, so that memory does not grow with their size."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fuse.methods.arithmetic import working_dtype

# Float32 copies of a few blocks stay in a core's cache.
BLOCK = 1 << 16


class Flat(Protocol):
    """What `measure` may use of a tensor: a flat torch tensor has it, and so has a view over files."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> torch.Size: ...

    def numel(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Tensor: ...


def blocks(tensors: Sequence[Flat], size: int | None = None) -> Iterator[tuple[int, list[Tensor]]]:
    """The index of a block's first element and that block of each tensor, in order; at least one block.

    tensors: flat and of one size. size: elements, BLOCK where left out.
    """
    size = size or BLOCK
    for start in range(0, max(tensors[0].numel(), 1), size):
        yield start, [tensor[start : start + size] for tensor in tensors]


def in_blocks(
    measure: Callable[..., Any], apply: Callable[..., Tensor], tensors: Sequence[Tensor], base: Tensor | None = None,
    **arguments: Any,
) -> Tensor:  # fmt: skip
    """A measured method over whole tensors: measure, then apply block by block.

    Returns their shape in the working dtype. Raises what `measure` and `apply` raise.
    """
    everything = [*tensors, *([] if base is None else [base])]
    dtype = working_dtype(everything)
    flat = [tensor.reshape(-1) for tensor in everything]

    def split(parts: list[Tensor]) -> list[Any]:
        return [parts] if base is None else [parts[:-1], parts[-1]]

    facts = measure(*split(flat), **arguments)
    merged = torch.empty(tensors[0].shape, dtype=dtype, device=tensors[0].device)
    out = merged.view(-1)
    for start, parts in blocks(flat):
        out[start : start + parts[0].numel()] = apply(*split(parts), facts, offset=start, **arguments)
    return merged
