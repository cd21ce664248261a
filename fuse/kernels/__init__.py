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


def suit(tensors: Sequence[Tensor], *, bfloat16: bool = False) -> bool:
    """Whether the kernels take these tensors: large, contiguous, on the CPU, float32, or all bfloat16 where allowed."""
    first = tensors[0]
    dtypes = {tensor.dtype for tensor in tensors}
    return (
        _HERE
        and first.numel() >= LEAST
        and (dtypes == {torch.float32} or (bfloat16 and dtypes == {torch.bfloat16}))
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    )
