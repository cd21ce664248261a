"""How much memory a row needs: blocks for elementwise methods, whole tensors for the others."""

from math import prod
from typing import TYPE_CHECKING

from fuse.methods.table import METHODS

if TYPE_CHECKING:
    from fuse.plan import Row

BLOCK = 1 << 20  # elements that elementwise methods take at a time
WORK = 4  # bytes of one element in float32


def row_memory(row: "Row") -> int:
    """Bytes of float32 tensors alive at once while the row runs: its inputs, the result and two temporaries."""
    inputs = len(row.sources) + (row.base is not None)
    elements = prod(row.shape)
    if row.action in ("copy", "make") or METHODS[row.method].elementwise:
        elements = min(elements, BLOCK)
    return elements * WORK * (inputs + 3)
