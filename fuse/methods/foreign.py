"""mergekit's kernels, run through its library (mergekit 0.1, LGPL-3.0; imported, not copied)."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fuse.errors import RecipeError
from fuse.methods.arithmetic import check_lengths, fresh, working_dtype
from fuse.methods.table_foreign import FOREIGN, PREFIX

# torch has one generator for all threads.
DRAWING = threading.Lock()


def kernel(name: str) -> Callable[..., Tensor]:
    """The function of a method called `mergekit/NAME`, to be called as ``(tensors, base, **arguments)``.

    Imports mergekit. The function takes tensors of one shape and any float dtypes, and gives that shape in float32
    (float64 where an input is float64), computed by mergekit in that dtype. Its arguments are those that the method's
    row describes. Memory is mergekit's, several times the inputs.
    Kernels that draw at random take `keys`, one a tensor, from which torch's generator is seeded for the time of the
    call, so that neither the order of tensors nor other draws matter.
    Where an input is not finite, the result is the sum of the inputs, because some kernels would hide it.

    The function raises ValueError for no tensors or unequal shapes, RecipeError where mergekit refuses the numbers.
    """
    from mergekit.merge_methods import merge_tensors

    by_member = {field for field, param in FOREIGN[name].params.items() if param.per_member}

    def merge(
        tensors: Sequence[Tensor], base: Tensor | None = None, *, keys: Sequence[int] = (), **given: Any
    ) -> Tensor:
        check_lengths(tensors)
        ids = [*([] if base is None else ["base"]), *range(len(tensors))]
        inputs = [*([] if base is None else [base]), *tensors]
        dtype = working_dtype(inputs)
        if not all(bool(tensor.isfinite().all()) for tensor in inputs):
            return torch.stack([tensor.to(dtype) for tensor in inputs]).sum(0)
        if not inputs[0].numel():
            return fresh(inputs[0], dtype)
        arguments = {field.removesuffix("_"): value for field, value in given.items()}
        for field in by_member:
            arguments[field] = dict(enumerate(arguments[field]))
        with _seeded(keys, inputs[0].device):
            try:
                merged = merge_tensors(
                    inputs, name.removeprefix(PREFIX), parameters=arguments, ids=ids,
                    base_index=None if base is None else 0, dtype=dtype,
                )  # fmt: skip
            except ValueError as error:
                raise RecipeError(f"{name} refuses this: {str(error).splitlines()[0]}") from None
        return fresh(merged, dtype)

    return merge


@contextmanager
def _seeded(keys: Sequence[int], device: torch.device) -> Iterator[None]:
    """torch's generators seeded from the keys, and as they were afterwards; nothing without keys."""
    if not keys:
        yield
        return
    digest = hashlib.blake2b(repr([int(key) for key in keys]).encode(), digest_size=8, person=b"fuse.foreign").digest()
    seed = int.from_bytes(digest, "little") >> 1
    cards = [device] if device.type == "cuda" else []
    with DRAWING, torch.random.fork_rng(cards):
        torch.default_generator.manual_seed(seed)
        for card in cards:
            with torch.cuda.device(card):
                torch.cuda.manual_seed(seed)
        yield
