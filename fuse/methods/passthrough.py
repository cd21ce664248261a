"""One member's tensor as it is, or times a number: what stacks of layers are made of (`language.layers`)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.arithmetic import check_lengths, fresh, working_dtype


def passthrough(tensors: Sequence[Tensor], *, scale: float = 1.0) -> Tensor:
    """``scale * x`` of the one tensor given.

    tensors: exactly one, of any shape and float dtype. Returns that shape in float32 (float64 where the input is).
    With scale 0 on what a layer adds to the residual (`*o_proj*`, `*down_proj*`), the layer gives what it was given:
    a duplicate that starts as an identity (LLaMA Pro, arXiv 2401.02415, section 3.2).

    Raises ValueError for other than one tensor.
    """
    check_lengths(tensors)
    if len(tensors) != 1:
        raise ValueError(f"passthrough takes 1 tensor, not {len(tensors)}")
    return fresh(tensors[0], working_dtype(tensors)).mul_(scale)
