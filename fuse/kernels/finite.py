"""Is every number finite?"""

import numpy as np
import torch
from torch import Tensor

from fuse.kernels.compiler import kernel


def finite(tensor: Tensor) -> bool:
    """Whether no number is infinite or NaN; as `fuse.kernels.suit` with halves has it."""
    flat = tensor.detach().view(-1)
    if flat.dtype == torch.float32:
        return not _beyond(flat.view(torch.uint32).numpy(), np.uint32(0x7F800000))
    exponent = np.uint16(0x7F80 if flat.dtype == torch.bfloat16 else 0x7C00)
    return not _beyond(flat.view(torch.uint16).numpy(), exponent)


@kernel
def _beyond(bits, exponent):
    """How many numbers have all bits of the exponent set."""
    count = 0
    for i in range(bits.size):
        count += (bits[i] & exponent) == exponent
    return count
