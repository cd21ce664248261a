"""Inner loops of merge methods, compiled for the CPU by numba, that run without holding Python's lock.

Each gives the bytes of the torch code beside its call. That runs instead on a GPU, in float64, for small tensors, where
numba is not installed. Nothing of it is imported before a large merge.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from threading import local

import torch
from torch import Tensor

from fuse import process

LEAST = 1 << 14  # elements of a block; below, starting a kernel costs more than it saves
WORTH = 1 << 26  # elements of a merge; below, compiling, some seconds once a machine, costs more than it saves
HALVES = (torch.bfloat16, torch.float16)


class _State:
    """ready: whether the kernels are loaded."""

    def __init__(self) -> None:
        self.ready, self.wanted = False, local()


STATE = _State()


def load_for(elements: int) -> None:
    """Load them if that is worth it for a merge of so many elements: from then on they are used, in all threads."""
    if elements >= WORTH and not STATE.ready and find_spec("numba"):
        load()


def load() -> None:
    """Import numba and start it up, by way of the smallest kernel. Where that fails, nothing is used."""
    try:
        with _no_scipy() if process.OURS else nullcontext():
            from fuse.kernels.finite import finite

            finite(torch.zeros(1))
    except Exception:  # of another library, of any kind: torch does the same
        return
    STATE.ready = True


@contextmanager
def _no_scipy() -> Iterator[None]:
    """numba does without scipy's linear algebra, which no kernel needs and which takes half as long as numba."""
    name = "scipy.linalg"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment] - what cannot be imported
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def rounding(dtype: torch.dtype) -> Iterator[None]:
    """In this thread, kernels that make a method's result may give it in bfloat16 at once, if that is `dtype`."""
    STATE.wanted.dtype = dtype
    try:
        yield
    finally:
        STATE.wanted.dtype = torch.float32


def rounded_result(shape: torch.Size, fill: Callable[[Tensor], int]) -> Tensor:
    """What `fill` writes: in bfloat16 where `rounding` allows that and all is finite then, else in float32.

    fill: writes a tensor and returns how many of its numbers, in bfloat16, are not finite.
    """
    if getattr(STATE.wanted, "dtype", None) == torch.bfloat16:
        out = torch.empty(shape, dtype=torch.bfloat16)
        if not fill(out):
            return out
    out = torch.empty(shape, dtype=torch.float32)
    fill(out)
    return out


def suit(tensors: Sequence[Tensor], *, halves: bool = False) -> bool:
    """Whether the kernels are used for these tensors: contiguous, on the CPU, of one dtype, float32, and not small.

    halves: whether they may be bfloat16 or float16 too.
    """
    dtype = tensors[0].dtype
    return (
        STATE.ready
        and tensors[0].numel() >= LEAST
        and (dtype == torch.float32 or (halves and dtype in HALVES))
        and all(tensor.dtype == dtype for tensor in tensors)
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    )
