"""Is every number finite?"""

import numpy as np
import torch
from torch import Tensor

from fuse.kernels.compiler import kernel


def finite(tensor: Tensor) -> bool:
    """Whether no number is infinite or NaN; float32 or bfloat16 that `fuse.kernels.suit` takes."""
    flat = tensor.detach().view(-1)
    if flat.dtype == torch.bfloat16:
        return not _beyond(flat.view(torch.uint16).numpy(), np.uint16(0x7F80))
    return not _beyond(flat.view(torch.uint32).numpy(), np.uint32(0x7F800000))


@kernel
def _beyond(bits, exponent):
    """How many numbers have all bits of the exponent set."""
    count = 0
    for i in range(bits.size):
        count += (bits[i] & exponent) == exponent
    return count
