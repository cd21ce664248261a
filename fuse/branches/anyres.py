"""Anyres: how an image of any size is cut into square views, and which of their patches hold the image.

Geometry only, in whole numbers: sizes are (width, height) and maps are rows by columns. The truncations are those of
haotian-liu/LLaVA (llava/mm_utils.py, llava/model/llava_arch.py), which decide edge cases.
"""

import math
from collections.abc import Iterable

Size = tuple[int, int]  # width, height


def best_resolution(size: Size, candidates: Iterable[Size]) -> Size:
    """The candidate that keeps most pixels of the image, and of those the one that wastes least; the first wins ties.

    >>> best_resolution((640, 480), [(336, 672), (672, 336), (672, 672)])
    (672, 672)
    """
    width, height = size
    best, most, least = (0, 0), 0, math.inf
    for wide, high in candidates:
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = wide * high - kept
        if kept > most or (kept == most and waste < least):
            best, most, least = (wide, high), kept, waste
    return best


def sliced_resolution(size: Size, side: int) -> Size:
    """SliME's choice of a resolution: about as many views as the image has areas of one view, 2 to 7 of them.

    Its code reads image_grid_pinpoints and then goes by this rule (yfzhang114/SliME, select_best_resolution_uhd).
    """
    views = min(max(math.ceil(size[0] * size[1] / side**2), 2), 6)
    counts = (views, views + 1) if views == 2 else (views - 1, views, views + 1)
    grids = [(columns, count // columns) for count in counts for columns in range(1, count + 1) if count % columns == 0]
    return best_resolution(size, [(columns * side, rows * side) for columns, rows in grids])


def fitted(size: Size, target: Size) -> Size:
    """The image's size once it is scaled into the target without changing its shape; rounded up."""
    (width, height), (wide, high) = size, target
    across, down = wide / width, high / height
    if across < down:
        return wide, min(math.ceil(height * across), high)
    return min(math.ceil(width * down), wide), high


def unpadded(rows: int, columns: int, size: Size) -> tuple[slice, slice]:
    """The rows and columns of a map of views that hold the image and not its padding.

    An odd remainder leaves one row or column of padding.
    """
    width, height = size
    if width / height > columns / rows:
        padding = (rows - int(height * (columns / width))) // 2
        return slice(padding, rows - padding), slice(0, columns)
    padding = (columns - int(width * (rows / height))) // 2
    return slice(0, rows), slice(padding, columns - padding)


def map_tokens(rows: int, columns: int, size: Size, *, newline: bool) -> int:
    """How many tokens a map of patches becomes; with `newline` it is unpadded first, and each row ends in one more."""
    if not newline:
        return rows * columns
    kept = unpadded(rows, columns, size)
    high, wide = (len(range(*part.indices(n))) for part, n in zip(kept, (rows, columns), strict=True))
    return high * (wide + 1)
