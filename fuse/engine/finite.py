"""Is every number finite? Looked at where numbers are read and where they are rounded; one sentence if one is not."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fuse import kernels
from fuse.engine.views import View
from fuse.errors import CheckpointError
from fuse.methods.blocks import blocks
from fuse.plan import Row, Source


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite; always so for integers.

    A finite sum says so at a fraction of the cost, because an infinity or NaN never leaves a sum; an infinite sum may
    also come from large numbers.
    """
    if not tensor.is_floating_point():
        return True
    if kernels.suit([tensor], halves=True):
        from fuse.kernels.finite import finite

        return finite(tensor)
    total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32).item()
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())


def checked(tensor: Tensor, source: Source, start: int = 0) -> Tensor:
    """The tensor, after a check of every value. start: where in the stored tensor it begins.

    Raises CheckpointError, naming tensor, member, value and element.
    """
    if not is_finite(tensor):
        at = _first(tensor)
        _complain(source, start + at, tensor.reshape(-1)[at].item())
    return tensor


def check_views(views: Iterable[View]) -> None:
    """CheckpointError for the first value of these tensors that is not finite."""
    for view in views:
        for start, (part,) in blocks([view]):
            if not is_finite(part):
                at = _first(part)
                _complain(view.source, view.element(start + at), part[at].item())


def rounded(block: Tensor, dtype: torch.dtype, row: Row, start: int, views: Sequence[View] = ()) -> Tensor:
    """The block in the output dtype, rounded once.

    row, start: whose block it is and where it begins. views: what it was computed from.
    Raises CheckpointError where it is not finite: for the value among the views that was not, else for the overflow.
    """
    out = block.to(dtype)
    if not is_finite(out):
        check_views(views)
        at = _first(out)
        raise CheckpointError(
            f"output tensor {row.name!r} is {out[at].item()} in {row.dtype} at element {start + at:,} "
            f"(computed as {block[at].item():g})",
            hint="smaller weights" if dtype == torch.float32 else "choose a wider output.dtype, or smaller weights",
        )
    return out


def _first(tensor: Tensor) -> int:
    return int(torch.nonzero(~torch.isfinite(tensor.reshape(-1))).flatten()[0])


def _complain(source: Source, element: int, value: float) -> None:
    if source.update and math.isfinite(_stored(source, element)):
        parts = source.parts
        names = " and ".join(repr(part.tensor.name) for part in parts)
        raise CheckpointError(
            f"{names} of {source.update.adapter} make {value} of tensor {source.tensor.name!r} at element {element:,}",
            where=parts[0].tensor.file,
            hint="the adapter's numbers or its alpha are too large",
        )
    raise CheckpointError(
        f"tensor {source.tensor.name!r} of {source.member} holds {value} at element {element:,}",
        where=source.tensor.file,
        hint="the checkpoint is damaged; fuse writes nothing from it",
    )


def _stored(source: Source, element: int) -> float:
    """A number as it stands in the file, without an adapter's change."""
    from fuse.engine.read import Reader

    with Reader() as reader:
        return reader.tensor(Source(source.member, source.tensor)).reshape(-1)[element].item()
