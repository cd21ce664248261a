"""Positions of a fused prompt, by host.

Most hosts count the tokens that are attended to. PaliGemma counts from one. The M-RoPE hosts (Qwen2-VL section 2.1,
Multimodal Rotary Position Embedding) have three numbers a token: a visual token of a grid stands at its time, row and
column, and the text behind an image goes on after the larger side of its grid. What a fused prompt adds is our choice:
visual tokens without a grid, and markers, have three equal numbers, as text has; a token that survived pruning keeps
the coordinates of its cell.

A branch with `positions: shared` (our choice too) takes no positions of its own. Token i of the n of its block stands
at start + floor((2 i + 1) m / (2 n)), where the first branch's block of that image has the m positions from `start` on:
n equal stretches of the span, each token at the middle of its own, rounded down. With n == m that is start + i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fuse.branches.native_table import MROPE_HOSTS

ONE_INDEXED_HOSTS = frozenset({"paligemma"})


@dataclass(frozen=True)
class Patch:
    """One branch's tokens of one image inside one row of a batch.

    columns: [n] where its tokens stand in the row, on the CPU. grid: (t, h, w), or None. cells: [n] their raster index
    in the grid.
    """

    row: int
    columns: torch.Tensor
    grid: tuple[int, int, int] | None
    cells: torch.Tensor


@dataclass(frozen=True)
class Shared:
    """A block whose tokens stand at the positions of another: both as (begin, end) columns of one row of a batch."""

    row: int
    first: tuple[int, int]
    own: tuple[int, int]


def positions(
    host_type: str, attention_mask: torch.Tensor, patches: Sequence[Patch], shared: Sequence[Shared] = ()
) -> torch.Tensor:
    """Position ids of a prompt: [B, L], or for an M-RoPE host [4, B, L] (text position, then time, row, column).

    attention_mask: [B, L], 1 for tokens that count. Those that do not have position 0. shared: blocks that take no
    positions of their own; M-RoPE hosts have none.
    """
    counted = _counted(attention_mask, shared)
    if host_type in ONE_INDEXED_HOSTS:
        return counted + 1
    if host_type not in MROPE_HOSTS:
        return counted
    spatial = counted.cpu().expand(3, -1, -1).clone()
    real = attention_mask.cpu() != 0
    for patch in sorted(patches, key=lambda p: (p.row, int(p.columns[0]) if len(p.columns) else 0)):
        if patch.grid is not None and len(patch.columns):
            _place(spatial[:, patch.row], real[patch.row], patch)
    return torch.cat([counted[None], spatial.to(counted.device)])


def _counted(attention_mask: torch.Tensor, shared: Sequence[Shared]) -> torch.Tensor:
    """[B, L]: each token that counts stands one further than the one before it, but for shared blocks."""
    if not shared:
        return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)
    real = attention_mask.cpu() != 0
    steps = real.long()
    for block in shared:
        steps[block.row, slice(*block.own)] = 0
    found = steps.cumsum(-1) - 1
    for block in shared:
        span, own = slice(*block.first), slice(*block.own)
        here = real[block.row, own]
        start, m, n = steps[block.row, : span.start].sum(), steps[block.row, span].sum(), int(here.sum())
        found[block.row, own][here] = start + (2 * torch.arange(n) + 1) * m // max(1, 2 * n)
    return found.masked_fill(~real, 0).to(attention_mask.device)


def largest(position_ids: torch.Tensor) -> torch.Tensor:
    """The largest position of each row: [B, 1] of [B, L]; of an M-RoPE host's [4, B, L] over time, row and column."""
    return (position_ids[-3:].amax(0) if position_ids.ndim == 3 else position_ids).amax(-1, keepdim=True)


def _place(row: torch.Tensor, real: torch.Tensor, patch: Patch) -> None:
    """Put a grid's tokens at their cells, and everything behind them after the grid. row: [3, L], changed in place."""
    assert patch.grid is not None
    _, height, width = patch.grid
    start = int(row[0, patch.columns[0]])
    cells = patch.cells.cpu()
    places = torch.stack([cells // (height * width), cells % (height * width) // width, cells % width])
    behind = torch.arange(row.shape[1]) > patch.columns[-1]
    shift = max(height, width) - len(patch.columns)
    row += shift * (behind & real)
    row[:, patch.columns] = places + start
