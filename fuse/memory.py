"""How much memory a row needs: blocks for elementwise methods, whole tensors for the others."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from fuse.methods.matrix_sides import sides
from fuse.methods.table import METHODS

if TYPE_CHECKING:
    from fuse.fused import Bridging
    from fuse.plan import Row

BLOCK = 1 << 19  # elements that a thread takes at a time: so many that threads seldom wait for the interpreter
ROOM = 1 << 30  # bytes for the rows that threads work on at once; a row that needs more runs alone
WORK = 4  # bytes of one element in float32
MOST_PAIRS = 8192  # of tokens that a bridge is fitted to, spread evenly over its texts


def host_memory(rows: "Sequence[Row]") -> int:
    """Bytes of a whole language model in float32."""
    return sum(WORK * prod(row.shape) for row in rows if row.part == "language")


def bridge_memory(bridge: "Bridging") -> int:
    """Bytes to fit a bridge, besides the new host: the donor's in float32, and paired states of both."""
    if not bridge.whole:  # the two embeddings' shared rows, at most those of the donor's host, twice each
        rows, width = bridge.host.language[bridge.host.text.embedding].shape
        return 4 * WORK * rows * (width + bridge.config["host_width"])
    own = sum(WORK * prod(entry.shape) for entry in bridge.host.language.values())
    maps = len(bridge.config["maps"])
    return own + WORK * MOST_PAIRS * maps * (bridge.config["width"] + bridge.config["host_width"])


def row_memory(row: "Row") -> int:
    """Bytes of float32 tensors alive at once while the row runs: its inputs, the result and two temporaries."""
    if row.fold is not None:  # whole tensors: those before, what the graft adds, the sum and a copy of it
        before = sum(prod(inner.shape) for inner in row.fold.host)
        return WORK * (before + 3 * prod(row.shape))
    inputs = len(row.sources) + (row.base is not None)
    elements = prod(row.shape)
    if row.action not in ("copy", "make") and (numbers := METHODS[row.method].numbers):
        rows, width = sides(row.shape)
        beside = elements - rows * width  # of a stack, or of a vector, which is no matrix
        return WORK * (numbers(rows, width, inputs) + (inputs + 3) * beside)
    if row.action in ("copy", "make") or METHODS[row.method].kind != "whole":
        elements = min(elements, BLOCK)
    tables = sum(prod(s.tensor.shape) for s in row.reads if s.update) if row.host else 0  # with an adapter's change
    return WORK * (elements * (inputs + 3) + tables)
