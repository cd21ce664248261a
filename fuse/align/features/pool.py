"""Tokens of a batch of images brought to one grid, also where they are tiles or lines of the picture."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fuse.align.features.blocks import Grid, Map
from fuse.align.features.grids import pooled
from fuse.branches.places import Boxes, grid_boxes

FINEST = 1024  # cells along an edge that boxes are taken to tell


def grid_of(one: Map) -> Grid | None:
    """The grid of an image's tokens; of tokens that only have places, the one with cells as small as the smallest."""
    if one.grid is not None or one.places is None:
        return one.grid
    sides = one.places[:, 2:] - one.places[:, :2]
    sides = sides[(sides > 0).all(1)]
    if not len(sides):
        return None
    wide, high = np.clip(np.round(1 / sides.min(0)), 1, FINEST).astype(int)
    return int(high), int(wide)


def pool(images: Sequence[Map], to: Grid | None) -> torch.Tensor:
    """The tokens of each image averaged over the cells of a grid: [images, cells, D] float32; one cell where `to` is
    None, the mean of all tokens.

    Tokens in a grid are averaged by `fuse.align.features.grids.pooled`. Tokens with places are by the area of their
    boxes in a cell, and a cell that none reaches takes the nearest token (our choice). Tokens without either are
    averaged, and every cell gets the mean.
    """
    if to is None:
        return torch.stack([one.tokens.float().mean(0, keepdim=True) for one in images])
    found: list[torch.Tensor] = [torch.empty(0)] * len(images)
    groups: dict[Grid, list[int]] = {}
    for i, one in enumerate(images):
        if one.grid is not None:
            groups.setdefault(one.grid, []).append(i)
        elif one.places is not None:
            found[i] = torch.from_numpy(box_weights(one.places, to)).float() @ one.tokens.float()
        else:
            found[i] = one.tokens.float().mean(0, keepdim=True).expand(to[0] * to[1], -1)
    for grid, members in groups.items():
        cells = pooled(torch.stack([images[i].tokens for i in members]), grid, to).float()
        for i, one in zip(members, cells, strict=True):
            found[i] = one
    return torch.stack(found)


def box_weights(boxes: Boxes, to: Grid) -> NDArray[np.float64]:
    """[cells, n]: the share that each token has in each cell of a grid over the image; rows sum to 1."""
    cells = grid_boxes(*to)
    low = np.maximum(cells[:, None, :2], boxes[None, :, :2])
    high = np.minimum(cells[:, None, 2:], boxes[None, :, 2:])
    areas = np.clip(high - low, 0, None).prod(-1)
    areas[areas < 1e-12] = 0  # edges that touch
    bare = areas.sum(1) == 0
    if bare.any():
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        middles, centres = (boxes[:, :2] + boxes[:, 2:]) / 2, (cells[bare, :2] + cells[bare, 2:]) / 2
        away = ((centres[:, None] - middles[None]) ** 2).sum(-1) + np.where(real, 0, np.inf)
        areas[bare, away.argmin(1)] = 1
    return areas / areas.sum(1, keepdims=True)
