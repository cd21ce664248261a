"""How kernels are compiled, and how they read their inputs."""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import config, njit, types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

PIECE = 1 << 11  # elements; a few pieces in float32 fit into a core's first cache


def kernel(function: Callable[..., Any]) -> Any:
    """The function, compiled when it is first called. Operations are rounded one by one: neither reordered nor fused.

    What was compiled is kept in `folder()`; where that cannot be written, each process compiles anew.
    """
    kept = folder()
    before = getattr(config, "CACHE_DIR")  # noqa: B009 - made when numba is imported, so no checker knows it
    setattr(config, "CACHE_DIR", str(kept or before))  # noqa: B010
    try:
        return njit(nogil=True, error_model="numpy", cache=kept is not None)(function)
    finally:
        setattr(config, "CACHE_DIR", before)  # noqa: B010


@cache
def folder() -> Path | None:
    """``$XDG_CACHE_HOME/fuse/kernels-HASH``, or under ``~/.cache``; None where others may write it, or we may not.

    The hash is that of all kernels' sources: numba itself looks at one file only, and kernels call each other.
    """
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    try:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        found = parent / "fuse" / f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}"
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = found.stat()
        alone = not hasattr(os, "getuid") or (told.st_uid == os.getuid() and not told.st_mode & 0o022)
        ours = alone and os.access(found, os.W_OK)
    except (OSError, RuntimeError):  # no home
        return None
    return found if ours else None


def array(tensor: Tensor) -> NDArray[Any]:
    """The flat numbers of a contiguous CPU tensor, shared: float32 as it is, the bits of bfloat16 as uint16, those of
    float16 as int16."""
    flat = tensor.detach().view(-1)
    bits = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}.get(flat.dtype, flat.dtype)
    return flat.view(bits).numpy()


def widen(x: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Inside kernels: `out[i] = x[i]` as float32, where x is as `array` makes it."""
    raise NotImplementedError("only kernels call this")


@overload(widen, jit_options={"error_model": "numpy"})
def _widen(x: Any, out: Any) -> Any:
    if x.dtype == types.uint16:

        def from_bits(x: Any, out: Any) -> None:
            bits = out.view(np.uint32)
            for i in range(x.size):
                bits[i] = np.uint32(x[i]) << np.uint32(16)

        return from_bits

    if x.dtype == types.int16:

        def from_half(x: Any, out: Any) -> None:
            bits = out.view(np.uint32)
            scale = np.float32(2.0**112)  # the exponents' biases are 15 and 127; it makes denormal numbers normal too
            for i in range(x.size):
                bits[i] = np.uint32(x[i] & np.int16(0x7FFF)) << np.uint32(13)
                large = np.uint32(x[i] & np.int16(0x7C00)) == np.uint32(0x7C00)
                out[i] *= scale
                sign = np.uint32(x[i] < 0) << np.uint32(31)
                bits[i] |= sign | (np.uint32(0x7F800000) if large else np.uint32(0))

        return from_half

    def copy(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = x[i]

    return copy


def narrow(x: NDArray[np.float32], out: NDArray[Any]) -> int:
    """Inside kernels: `out[i] = x[i]`, rounded to the nearest where out is the bits of bfloat16, and to even between
    two; how many of them are then not finite."""
    raise NotImplementedError("only kernels call this")


@overload(narrow, jit_options={"error_model": "numpy"})
def _narrow(x: Any, out: Any) -> Any:
    if out.dtype == types.uint16:

        def to_bits(x: Any, out: Any) -> int:
            bits, count = x.view(np.uint32), 0
            for i in range(out.size):
                even = (bits[i] >> np.uint32(16)) & np.uint32(1)
                rounded = np.uint32(bits[i] + np.uint32(0x7FFF) + even) >> np.uint32(16)
                count += (rounded & np.uint32(0x7F80)) == np.uint32(0x7F80)
                out[i] = np.uint16(rounded)
            return count

        return to_bits

    def copy(x: Any, out: Any) -> int:
        for i in range(out.size):
            out[i] = x[i]
        return 0

    return copy
