"""Where blocks are computed: in memory, or on a GPU with copies through pinned memory."""

import re
from typing import TypeAlias

import torch
from torch import Tensor

from fuse.devices import gpus
from fuse.errors import RecipeError
from fuse.memory import BLOCK

GPU_BLOCK = 1 << 24
GPU_THREADS = 4  # for each GPU: while one computes, the others read, copy and write


class Memory:
    """Blocks are where they were read."""

    block = BLOCK
    holds_rows = False

    def load(self, tensor: Tensor) -> Tensor:
        return tensor

    def store(self, tensor: Tensor) -> Tensor:
        return tensor


class Gpu:
    """Blocks are copied to one GPU and back, in a stream of the thread that makes this.

    The host's allocator keeps pinned buffers and gives one out again once the copies from it are done.
    """

    block = GPU_BLOCK
    holds_rows = True  # methods that look at a tensor several times find it there

    def __init__(self, name: str) -> None:
        self._device = torch.device(name)
        torch.cuda.set_device(self._device)
        torch.cuda.set_stream(torch.cuda.Stream(self._device))

    def load(self, tensor: Tensor) -> Tensor:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
        return pinned.to(self._device, non_blocking=True)

    def store(self, tensor: Tensor) -> Tensor:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        pinned.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return pinned


Stage: TypeAlias = Memory | Gpu


def devices(name: str) -> list[str]:
    """The devices that "cpu", "cuda" (every GPU) or "cuda:1" means.

    Raises RecipeError for another name, MachineError for a device that is not there.
    """
    if name == "cpu":
        return [name]
    if not re.fullmatch(r"cuda(:\d{1,3})?", name):
        raise RecipeError(f"device {name!r}: a merge runs on cpu, cuda (every GPU) or cuda:N")
    return [f"cuda:{number}" for number in gpus(name)]
