"""Where the visual tokens of a native branch lie on the image, by family."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fuse.branches.places import (
    WHOLE,
    Box,
    Boxes,
    Size,
    broken_rows,
    cropped,
    grid_boxes,
    marked_tiles,
    padded,
    tile_boxes,
)

_ROWS_WITH_BREAKS = {"llava_next", "llava_onevision"}
_TILES = {"internvl", "aya_vision"}
_MARKED = {"idefics3", "smolvlm"}


def native_places(
    config: Mapping[str, Any], image_processor: Any, layout: Sequence[int | str], grid: tuple[int, int, int] | None,
    tiles: int, size: Size,
) -> Boxes | None:  # fmt: skip
    """A box [n, 4] for every visual token of a layout; None where the family's order of tokens is not known here.

    config: the member's. grid: of a single picture. tiles: the pictures that the processor made of the image.
    """
    kind, runs = config["model_type"], [item for item in layout if isinstance(item, int)]
    if kind in _MARKED:
        return marked_tiles(layout, size)
    if kind in _TILES:
        return tile_boxes(tiles, sum(runs) // tiles, size)
    if kind == "mistral3" and len(set(runs)) == 1:
        return grid_boxes(len(runs), runs[0])
    if kind in _ROWS_WITH_BREAKS:
        side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
        rows = broken_rows(sum(runs) - side * side, size)
        return None if rows is None else np.concatenate([grid_boxes(side, side), rows])
    if grid is not None and grid[0] == 1:
        return grid_boxes(grid[1], grid[2], _seen_part(image_processor, size))
    return None


def _seen_part(image_processor: Any, size: Size) -> Box:
    """The part of the image that a processor keeps: a centre crop, the padded square, or all of it."""
    scaled, crop = getattr(image_processor, "size", None) or {}, getattr(image_processor, "crop_size", None) or {}
    if getattr(image_processor, "do_pad", False):
        return padded(size)
    shortest, wide, high = (_get(scaled, "shortest_edge"), _get(crop, "width"), _get(crop, "height"))
    if getattr(image_processor, "do_center_crop", False) and shortest and wide and high:
        return cropped(size, shortest, (wide, high))
    return WHOLE


def _get(sizes: Any, key: str) -> int | None:
    return sizes.get(key) if hasattr(sizes, "get") else getattr(sizes, key, None)
