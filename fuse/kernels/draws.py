"""The random numbers of `fuse.methods.random`, drawn where they are used."""

import numpy as np

from fuse.kernels.compiler import kernel


@kernel
def draw(index, half):
    """24 bits as float32 in [0, 1). index, half: uint32."""
    # numba widens sums and products of uint32 to 64 bits
    x = index ^ (index >> np.uint32(17))
    x = np.uint32(np.uint32(x * np.uint32(0xED5AD4BB)) + half)
    x = np.uint32((x ^ (x >> np.uint32(11))) * np.uint32(0xAC4C1B51))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x31848BAB))
    x = x ^ (x >> np.uint32(14))
    return np.float32(np.int32(x >> np.uint32(8))) * np.float32(2.0**-24)
