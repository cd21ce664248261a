"""Positions of a fused prompt, by host.

Most hosts count the tokens that are attended to. PaliGemma counts from one. The M-RoPE hosts (Qwen2-VL section 2.1,
Multimodal Rotary Position Embedding) have three numbers a token: a visual token of a grid stands at its time, row and
column, and the text behind an image goes on after the larger side of its grid. What a fused prompt adds is our choice:
visual tokens without a grid, and markers, have three equal numbers, as text has; a token that survived pruning keeps
the coordinates of its cell.
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


def positions(host_type: str, attention_mask: torch.Tensor, patches: Sequence[Patch]) -> torch.Tensor:
    """Position ids of a prompt: [B, L], or for an M-RoPE host [4, B, L] (text position, then time, row, column).

    attention_mask: [B, L], 1 for tokens that count. Those that do not have position 0.
    """
    counted = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)
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
