"""The C library's heap, told to keep what is freed."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_BLOCK, KEPT = 32 << 20, 256 << 20  # bytes; glibc allows no larger blocks


def keep_freed_memory() -> None:
    """From now on, freed blocks stay with the process for the next ones, up to 256 MiB a thread.

    Glibc otherwise gives each block of a tensor back to the system, which then has to clear the next one's pages. Does
    nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None:
        change(MMAP_THRESHOLD, LARGEST_BLOCK)
        change(TRIM_THRESHOLD, KEPT)
