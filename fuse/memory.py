"""How much memory a row needs: blocks for elementwise methods, whole tensors for the others."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from fuse.methods.table import METHODS

if TYPE_CHECKING:
    from fuse.plan import Row

BLOCK = 1 << 20  # elements that elementwise methods take at a time
WORK = 4  # bytes of one element in float32


def host_memory(rows: "Sequence[Row]") -> int:
    """Bytes of a whole language model in float32."""
    return sum(WORK * prod(row.shape) for row in rows if row.part == "language")


def row_memory(row: "Row") -> int:
    """Bytes of float32 tensors alive at once while the row runs: its inputs, the result and two temporaries."""
    if row.fold is not None:  # whole tensors: those before, what the graft adds, the sum and a copy of it
        before = sum(prod(inner.shape) for inner in row.fold.host)
        return WORK * (before + 3 * prod(row.shape))
    inputs = len(row.sources) + (row.base is not None)
    elements = prod(row.shape)
    if row.action in ("copy", "make") or METHODS[row.method].elementwise:
        elements = min(elements, BLOCK)
    return elements * WORK * (inputs + 3)
