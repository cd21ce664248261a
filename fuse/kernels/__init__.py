"""Inner loops of merge methods, compiled for the CPU by numba, that run without holding Python's lock.

Each gives the bytes of the torch code beside its call. That runs instead on a GPU, in float64, for small tensors, where
numba is not installed, and while it is being loaded. Nothing of it is imported before a large merge.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Event, Thread

import torch
from torch import Tensor

LEAST = 1 << 14  # elements of a block; below, starting a kernel costs more than it saves
WORTH = 1 << 26  # elements of a merge; below, compiling, some seconds once a machine, costs more than it saves
HALVES = (torch.bfloat16, torch.float16)
QUICK = 1e-4  # seconds after which a thread that loads gives way to those that merge
_ready = Event()


@contextmanager
def used(elements: int) -> Iterator[None]:
    """Load them beside a merge of so many elements, if that is worth it: from then on they are used, in all threads."""
    if elements < WORTH or _ready.is_set() or not find_spec("numba"):
        yield
        return
    before, thread = sys.getswitchinterval(), Thread(target=load, daemon=True)
    sys.setswitchinterval(QUICK)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        sys.setswitchinterval(before)


def load() -> None:
    """Import numba and start it up, by way of the smallest kernel. Where that fails, nothing is used."""
    try:
        from fuse.kernels.finite import finite

        finite(torch.zeros(1))
    except Exception:  # of another library, of any kind: torch does the same
        return
    _ready.set()


def suit(tensors: Sequence[Tensor], *, halves: bool = False) -> bool:
    """Whether the kernels are used for these tensors: contiguous, on the CPU, of one dtype, float32, and not small.

    halves: whether they may be bfloat16 or float16 too.
    """
    dtype = tensors[0].dtype
    return (
        _ready.is_set()
        and tensors[0].numel() >= LEAST
        and (dtype == torch.float32 or (halves and dtype in HALVES))
        and all(tensor.dtype == dtype for tensor in tensors)
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    )
