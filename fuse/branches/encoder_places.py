"""The part of an image that an encoder's own preprocessing keeps, as a box on it; exact to a pixel's rounding."""

from collections.abc import Callable, Mapping
from math import floor
from typing import Any, Literal

from fuse.branches.places import WHOLE, Box, Size

Scale = Literal["shortest", "longest", "squash"]
Part = Callable[[Size], Box | None]  # an image's (width, height) to the box that is seen; None where it is not known


def centred(size: Size, target: Size, seen: Size, scale: Scale) -> Box:
    """The box that `seen` pixels in the middle show, cut off or padded, once the image was scaled to `target`.

    All are (width, height). shortest: the target is filled; longest: the image fits into it; squash: it becomes it.
    """
    across, down = target[0] / size[0], target[1] / size[1]
    if scale != "squash":
        across = down = max(across, down) if scale == "shortest" else min(across, down)
    wide, high = seen[0] / (size[0] * across), seen[1] / (size[1] * down)
    return (1 - wide) / 2, (1 - high) / 2, (1 + wide) / 2, (1 + high) / 2


def open_clip_part(prepare: Mapping[str, Any]) -> Part:
    """prepare: the branch's `preprocess`, with size [h, w] and resize_mode."""
    target, mode = (prepare["size"][1], prepare["size"][0]), prepare.get("resize_mode", "shortest")
    return lambda size: centred(size, target, target, mode)


def timm_part(resolved: Mapping[str, Any]) -> Part:
    """resolved: timm's data config, with input_size [3, h, w], crop_pct and crop_mode."""
    seen = (resolved["input_size"][2], resolved["input_size"][1])
    target = (floor(seen[0] / resolved["crop_pct"]), floor(seen[1] / resolved["crop_pct"]))
    modes: dict[str, Scale] = {"squash": "squash", "border": "longest"}
    return lambda size: centred(size, target, seen, modes.get(resolved["crop_mode"], "shortest"))


def transformers_part(processor: Any) -> Part:
    """processor: an image processor of transformers; where one that pads puts the image is not known here."""
    stated, crop = getattr(processor, "size", None), getattr(processor, "crop_size", None)
    edge, wide, high = (_get(stated, key) for key in ("shortest_edge", "width", "height"))
    crops = getattr(processor, "do_center_crop", False)
    seen = (_get(crop, "width"), _get(crop, "height"))
    percent = getattr(processor, "crop_pct", None)
    if getattr(processor, "do_pad", False):
        return lambda size: None
    if percent and edge and edge < 384:  # ConvNextImageProcessor: larger ones are squashed and not cut
        short = int(edge / percent)
        return lambda size: centred(size, (short, short), (edge, edge), "shortest")
    if not crops or not seen[0] or not seen[1]:
        return lambda size: WHOLE
    if not getattr(processor, "do_resize", True):
        return lambda size: centred(size, size, seen, "squash")
    if edge:
        return lambda size: centred(size, (edge, edge), seen, "shortest")
    return lambda size: centred(size, (wide, high), seen, "squash") if wide and high else None


def _get(sizes: Any, key: str) -> Any:
    return sizes.get(key) if isinstance(sizes, Mapping) else getattr(sizes, key, None)
