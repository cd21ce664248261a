"""Token grids of different sizes brought to one, so that row i of two encoders is the same place of an image."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fuse.sizes import counted

Grid = tuple[int, int]


class Common(NamedTuple):
    """grid: (height, width), or None for the mean over tokens. sentence: what was chosen and why."""

    grid: Grid | None
    sentence: str


def common_grid(grids: Mapping[str, Grid | None], *, cells: int | None = None) -> Common:
    """The grid that all encoders' tokens are pooled to: the least height and the least width among theirs.

    So no encoder's tokens are made up from fewer. Where one has no grid (queries, a class token) an image is the mean
    of its tokens. (Our choice.)
    grids: each encoder's (height, width), or None. cells: the most cells wanted; a larger grid shrinks in proportion.

    >>> common_grid({"a": (16, 16), "b": (24, 24)}).sentence
    'tokens are averaged over the cells of a 16 x 16 grid, the smallest of a (16 x 16) and b (24 x 24)'
    """
    if not grids or any(grid is not None and min(grid) < 1 for grid in grids.values()):
        raise ValueError("each encoder should have a grid of at least one token, or none")
    if cells is not None and cells < 1:
        raise ValueError(f"cells should be at least 1, not {cells}")
    if without := [name for name, grid in grids.items() if grid is None]:
        verb = "has" if len(without) == 1 else "have"
        return Common(None, f"each image is the mean of its tokens, as {_listed(without)} {verb} no grid of tokens")
    known = {name: grid for name, grid in grids.items() if grid is not None}
    grid = (min(h for h, _ in known.values()), min(w for _, w in known.values()))
    smallest = _within(grid, cells)
    if set(known.values()) == {smallest}:
        return Common(smallest, f"tokens are compared one by one, on the {_size(grid)} grid that all encoders have")
    sizes = _listed([f"{name} ({_size(size)})" for name, size in known.items()])
    why = f"the smallest of {sizes}" if smallest == grid else f"of at most {counted(cells or 0, 'cell')}, from {sizes}"
    return Common(
        smallest, f"tokens are averaged over the cells of {_article(smallest[0])} {_size(smallest)} grid, {why}"
    )


def pooled(tokens: Tensor, grid: Grid | None, to: Grid | None) -> Tensor:
    """The tokens of each image averaged over the cells of another grid, by the area that a token covers of a cell.

    Both grids cover the whole image. A cell's value is the exact integral of the piecewise constant tokens over it, so
    that the mean over the image is kept: no interpolation, and no token is left out.
    tokens: ``(images, height * width, p)``, rows of the grid after each other; or any number of tokens without a grid.
    grid: (height, width), or None. to: the cells wanted, or None for the mean over tokens.
    Returns ``(images, cells, p)``, with one cell for the mean; float32, or float64 for float64 tokens.

    Raises ValueError where the tokens do not fill the grid, or have none and more than their mean is wanted.
    """
    images, count, p = tokens.shape
    tokens = tokens.detach().to(torch.promote_types(tokens.dtype, torch.float32))
    if grid is not None and count != math.prod(grid):
        raise ValueError(f"{count} tokens do not fill a grid of {_size(grid)}")
    if to is None:
        return tokens.mean(1, keepdim=True)
    if grid is None:
        raise ValueError("tokens without a grid have no cells, only a mean")
    if grid == to:
        return tokens
    high, wide = (_overlaps(*sizes).to(tokens) for sizes in zip(grid, to, strict=True))
    rows = high @ tokens.view(images, grid[0], grid[1] * p)
    return (wide @ rows.view(images * to[0], grid[1], p)).view(images, -1, p)


def _overlaps(tokens: int, cells: int) -> Tensor:
    """``(cells, tokens)``: the share of each cell that each token covers on a line; rows add up to 1."""
    edges = torch.arange(tokens + 1, dtype=torch.float64) / tokens
    ends = torch.arange(cells + 1, dtype=torch.float64) / cells
    lengths = torch.minimum(ends[1:, None], edges[None, 1:]) - torch.maximum(ends[:-1, None], edges[None, :-1])
    return lengths.clamp_(min=0) * cells


def _within(grid: Grid, cells: int | None) -> Grid:
    if cells is None or math.prod(grid) <= cells:
        return grid
    height = max(1, min(cells, math.floor(math.sqrt(cells * grid[0] / grid[1]))))
    return height, max(1, min(grid[1], cells // height))


def _article(number: int) -> str:
    return "an" if number in (11, 18) or str(number).startswith("8") else "a"


def _size(grid: Grid) -> str:
    return f"{grid[0]} x {grid[1]}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
