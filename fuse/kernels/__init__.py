"""Inner loops of merge methods, compiled for the CPU by numba, that run without holding Python's lock.

Each does what the torch code beside its call does, element by element and to the bit; sums over a whole tensor, which
are in float64, agree within rounding. Torch alone does it on a GPU, in float64, for small tensors, and where numba is
not installed. Nothing here is imported before a large tensor is merged.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

LEAST = 1 << 14  # elements of a block; below, starting a kernel costs more than it saves
LARGE = (
    1 << 20
)  # elements of a tensor whose products are compiled wherever it is merged, so that its bytes are the same
WORTH = 1 << 26  # elements of a merge; below, compiling, some seconds once a machine, costs more than it saves
ON = False
_HERE = find_spec("numba") is not None


HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def used(elements: int) -> Iterator[None]:
    """Whether a merge of so many elements uses them."""
    global ON  # noqa: PLW0603 - a matter of speed alone
    before, ON = ON, elements >= WORTH
    try:
        yield
    finally:
        ON = before


def suit(tensors: Sequence[Tensor], *, halves: bool = False, large: bool = False) -> bool:
    """Whether the kernels are used for these tensors: contiguous, on the CPU, of one dtype, float32, and not small.

    halves: whether they may be bfloat16 or float16 too. large: use them, whatever `used` says.
    """
    dtype = tensors[0].dtype
    return (
        _HERE
        and (ON or large)
        and tensors[0].numel() >= LEAST
        and (dtype == torch.float32 or (halves and dtype in HALVES))
        and all(tensor.dtype == dtype for tensor in tensors)
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    )
