"""Inner loops of merge methods, compiled for the CPU by numba, that run without holding Python's lock.

Each does what the torch code beside its call does, element by element and to the bit; sums over a whole tensor, which
are in float64, agree within rounding. Torch alone does it on a GPU, in float64, for small tensors, and where numba is
not installed. Nothing here is imported before a large tensor is merged.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

LEAST = 1 << 14  # elements; below, starting a kernel costs more than it saves
_HERE = find_spec("numba") is not None


HALVES = (torch.bfloat16, torch.float16)


def suit(tensors: Sequence[Tensor], *, halves: bool = False) -> bool:
    """Whether the kernels take these tensors: large, contiguous, on the CPU, of one dtype, float32.

    halves: whether they may be bfloat16 or float16 too.
    """
    dtype = tensors[0].dtype
    return (
        _HERE
        and tensors[0].numel() >= LEAST
        and (dtype == torch.float32 or (halves and dtype in HALVES))
        and all(tensor.dtype == dtype for tensor in tensors)
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    )
