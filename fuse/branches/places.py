"""Where visual tokens lie on the image: a box for each, so that attention can be drawn for tiled encoders too.

A box is (left, top, right, bottom) in parts of the image's width and height; it may reach over the edges where an
encoder pads. A token that is no part of the picture (a line break) has the empty box (0, 0, 0, 0).
"""

import re
from collections.abc import Sequence
from math import isqrt, log

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]  # [n, 4]
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
Size = tuple[int, int]  # width, height


def grid_boxes(rows: int, columns: int, box: Box = WHOLE) -> Boxes:
    """The cells of a grid over a box, in raster order: [rows * columns, 4]."""
    left, top, right, bottom = box
    across, down = (right - left) / columns, (bottom - top) / rows
    row, column = np.divmod(np.arange(rows * columns), columns)
    low = np.stack([left + column * across, top + row * down], 1)
    return np.concatenate([low, low + np.array([across, down])], 1)


def broken_rows(tokens: int, size: Size) -> Boxes | None:
    """The boxes of a map of the whole image whose every row ends in a line break; None where it cannot be one.

    Its shape is the one, of all that give so many tokens, that is nearest to the image's.
    """
    fits = [(tokens // wide, wide - 1) for wide in range(2, tokens + 1) if tokens % wide == 0]
    if not fits:
        return None
    rows, columns = min(fits, key=lambda shape: abs(log(shape[1] / shape[0]) - log(size[0] / size[1])))
    cells = grid_boxes(rows, columns).reshape(rows, columns, 4)
    return np.concatenate([cells, np.zeros((rows, 1, 4))], 1).reshape(-1, 4)


def tile_boxes(tiles: int, tokens: int, size: Size, *, thumbnail: bool = True) -> Boxes | None:
    """The boxes of `tiles` square tiles of `tokens` each that cut the image up row by row, the whole image last.

    The tiles' grid is the one nearest to the image's shape. None where the tokens of a tile are no square.
    """
    side = isqrt(tokens)
    if side * side != tokens:
        return None
    views: list[Box] = []
    cut = tiles - 1 if thumbnail and tiles > 1 else tiles
    if cut > 1 or not thumbnail:
        fits = [(cut // columns, columns) for columns in range(1, cut + 1) if cut % columns == 0]
        rows, columns = min(fits, key=lambda shape: abs(log(shape[1] / shape[0]) - log(size[0] / size[1])))
        views = [tuple(box) for box in grid_boxes(rows, columns)]  # pyright: ignore[reportAssignmentType]
    elif tiles > 1:
        views = [WHOLE]
    if len(views) < tiles:
        views.append(WHOLE)
    return np.concatenate([grid_boxes(side, side, view) for view in views])


def marked_tiles(layout: Sequence[int | str], size: Size) -> Boxes | None:
    """The boxes of Idefics3's and SmolVLM's layouts, whose markers number the tiles (`<row_1_col_2>`)."""
    runs = [item for item in layout if isinstance(item, int)]
    marks = [re.fullmatch(r"<row_(\d+)_col_(\d+)>", item) for item in layout if isinstance(item, str)]
    found = [(int(mark[1]), int(mark[2])) for mark in marks if mark]
    if not found:
        return tile_boxes(1, runs[0], size) if len(runs) == 1 else None
    rows, columns = max(row for row, _ in found), max(column for _, column in found)
    side = isqrt(runs[0])
    if len(runs) != rows * columns + 1 or any(run != side * side for run in runs):
        return None
    views = [*grid_boxes(rows, columns), WHOLE]
    return np.concatenate([grid_boxes(side, side, tuple(view)) for view in views])  # pyright: ignore[reportArgumentType]


def cropped(size: Size, shortest: int, crop: Size) -> Box:
    """The part of an image that a centre crop sees, after its shorter side was scaled to `shortest`."""
    scale = shortest / min(size)
    wide, high = crop[0] / (size[0] * scale), crop[1] / (size[1] * scale)
    return (1 - wide) / 2, (1 - high) / 2, (1 + wide) / 2, (1 + high) / 2


def padded(size: Size) -> Box:
    """The square around an image that is padded on its shorter side."""
    wide, high = max(size) / size[0], max(size) / size[1]
    return (1 - wide) / 2, (1 - high) / 2, (1 + wide) / 2, (1 + high) / 2


def canvas(paid: NDArray[np.float64], boxes: Boxes, size: Size, longest: int = 112) -> NDArray[np.float64]:
    """Attention spread over the image: float64 [h, w] with the image's shape and `longest` cells on its longer side.

    paid: [n]; each token's part is shared out evenly over the cells whose centres lie in its box, or goes to the one
    nearest to its centre. What lies over the edges is lost. Tokens without a box are left out.
    """
    scale = longest / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    found = np.zeros((height, width))
    for value, (left, top, right, bottom) in zip(paid, boxes, strict=True):
        if right <= left or bottom <= top:
            continue
        columns, rows = _between(left, right, width), _between(top, bottom, height)
        inside = np.ix_(rows[(rows >= 0) & (rows < height)], columns[(columns >= 0) & (columns < width)])
        found[inside] += value / (len(rows) * len(columns))
    return found


def _between(low: float, high: float, cells: int) -> NDArray[np.int64]:
    first, last = int(np.ceil(low * cells - 0.5)), int(np.ceil(high * cells - 0.5)) - 1
    return np.arange(first, last + 1) if last >= first else np.array([int(np.floor((low + high) / 2 * cells))])
