"""Which cells of an image's grid a visual token stands for, before and after a budget. Needs no torch.

A branch with a grid (h, w) has h * w tokens in raster order. A run of them that starts and ends with a row is a grid of
its own; any other run is a line. Pooling cuts a run into exactly as many cells as tokens are kept (our choice):

- a line of n tokens into k stretches, stretch i from floor(i n / k) to ceil((i + 1) n / k), as adaptive pooling does;
- a grid into bands of rows, cut the same way, and each band into columns, cut the same way. There are about
  sqrt(k h / w) bands, so that cells are nearly square, and k / bands columns in each, some bands having one more. Where
  k is a product of the same shape as the grid (24 x 24 to 144) this is adaptive average pooling in two dimensions.
"""

import math
from collections.abc import Sequence

Grid = tuple[int, int]  # rows, columns


def stretches(n: int, k: int) -> list[range]:
    """n places in k stretches that cover them all, neighbours overlapping by at most one; 1 <= k <= n."""
    return [range(i * n // k, -(-(i + 1) * n // k)) for i in range(k)]


def bands(keep: int, grid: Grid) -> list[tuple[range, list[range]]]:
    """The cells of a pooled grid: for each band its rows, and the columns of each of its cells; `keep` cells in all."""
    h, w = grid
    count = min(max(round(math.sqrt(keep * h / w)), -(-keep // w)), h, keep)
    columns = [(i + 1) * keep // count - i * keep // count for i in range(count)]
    return [(rows, stretches(w, k)) for rows, k in zip(stretches(h, count), columns, strict=True)]


def pooled_cells(n: int, keep: int, grid: Grid | None) -> list[tuple[int, ...]]:
    """For each of `keep` pooled tokens, the places in the run of n tokens that it is the mean of; ascending."""
    if keep >= n:
        return [(i,) for i in range(n)]
    if grid is None:
        return [tuple(stretch) for stretch in stretches(n, keep)]
    return [
        tuple(row * grid[1] + column for row in rows for column in columns)
        for rows, cells in bands(keep, grid)
        for columns in cells
    ]


def centre(stretch: range) -> int:
    """The middle place of a stretch, the earlier one of two."""
    return (stretch.start + stretch.stop - 1) // 2


def run_grids(runs: Sequence[int], grid: tuple[int, int, int] | None) -> list[Grid | None]:
    """The grid of each run of an image whose tokens are the cells of `grid` (t, h, w); None for a run that is a line.

    Only still images (t == 1) have grids here: a cell never reaches over two frames.
    """
    found: list[Grid | None] = []
    start = 0
    for length in runs:
        whole_rows = grid is not None and grid[0] == 1 and start % grid[2] == 0 and length % grid[2] == 0
        found.append((length // grid[2], grid[2]) if grid is not None and whole_rows and length else None)
        start += length
    return found


def kept_cells(
    prune: str, runs: Sequence[int], shares: Sequence[int], index: Sequence[int], grid: tuple[int, int, int] | None
) -> list[tuple[int, ...]]:
    """For each kept token, the places of the image's tokens that it speaks for.

    index: as `keep_tokens` gave it. A pooled token speaks for its cell, a selected one for itself.
    """
    if prune != "pool":
        return [(int(i),) for i in index]
    found: list[tuple[int, ...]] = []
    start = 0
    for length, keep, run in zip(runs, shares, run_grids(runs, grid), strict=True):
        found += [tuple(start + i for i in cell) for cell in pooled_cells(length, keep, run)]
        start += length
    return found[: len(index)]
