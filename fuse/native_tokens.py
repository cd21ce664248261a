"""How many visual tokens an image of a given size becomes in a native branch: the rules of transformers' processors.

From configs alone: neither torch nor transformers. An image that the class itself refuses is a RecipeError, in the
words of `fuse.branches.native_eyes`.
"""

import math
from collections.abc import Callable

from fuse.branches.anyres import Size, best_resolution
from fuse.errors import CheckpointError, RecipeError
from fuse.image_files import Sizes, Written, side_of

LIMIT = 4096  # Idefics3 shrinks longer edges to this


def _refusal(sizes: Sizes, size: Size, why: str) -> RecipeError:
    kind = sizes.config.get("model_type")
    return RecipeError(f"{kind} takes no image of {size[0]}x{size[1]} pixels: {why}", hint="crop it or pad it")


def _square(sizes: Sizes, size: Size) -> Written:
    """LLaVA: the patches of one view; its processor drops the class token."""
    if sizes.processor.get("processor_class") == "PixtralProcessor":
        return _pixtral(sizes, size)
    sizes.check_edge()
    side = sizes.edge() // sizes.patch()
    return Written((side * side + _class_token(sizes),))


def _class_token(sizes: Sizes) -> int:
    """What the class token adds: one with strategy `full`, none with `default`, where the tower has one."""
    if "num_additional_image_tokens" not in sizes.processor:
        full = sizes.config.get("vision_feature_select_strategy") == "full"
        return int(full and "siglip" not in str(sizes.vision.get("model_type")))
    more = int(sizes.processor["num_additional_image_tokens"])
    return more - (sizes.processor.get("vision_feature_select_strategy") == "default")


def _anyres(sizes: Sizes, size: Size) -> Written:
    """LLaVA-NeXT: the whole in one view, the cuts without their padding, a newline behind each row."""
    edge, side = sizes.edge(), sizes.edge() // sizes.patch()
    high, wide, rows = _unpadded(sizes, size, edge, side)
    return Written((high * wide + rows + side * side + _class_token(sizes),))


def _onevision(sizes: Sizes, size: Size) -> Written:
    """LLaVA-OneVision: the same, and maps of more than `anyres_max_N` views are shrunk to as many."""
    side = side_of(sizes.vision.get("image_size", 384)) // side_of(sizes.vision.get("patch_size", 14))
    count = sizes.number((sizes.processor, "num_image_tokens"), default=side * side)
    side = math.isqrt(count)
    high, wide, rows = _unpadded(sizes, size, _shortest(sizes), side)
    aspect = str(sizes.processor.get("vision_aspect_ratio") or sizes.config.get("vision_aspect_ratio", "anyres_max_9"))
    ratio = math.sqrt(high * wide / (int(aspect.removeprefix("anyres_max_")) * side**2))
    if ratio > 1.1:
        high, wide = int(high // ratio), int(wide // ratio)
        rows = high
    less = sizes.processor.get("vision_feature_select_strategy") == "default"
    return Written((high * wide + rows + count - less,))


def _shortest(sizes: Sizes) -> int:
    given = sizes.image.get("size") or {}
    return int(given.get("shortest_edge") or given.get("height") or side_of(sizes.vision.get("image_size", 384)))


def _unpadded(sizes: Sizes, size: Size, edge: int, side: int) -> tuple[int, int, int]:
    """Rows and columns of the map of cuts without padding, and its rows again, which newlines end."""
    points = sizes.image.get("image_grid_pinpoints") or sizes.config.get("image_grid_pinpoints") or []
    if not points:
        raise CheckpointError("image_grid_pinpoints is missing, so its visual tokens cannot be counted")
    wide, high = best_resolution(size, [(point[1], point[0]) for point in points])
    rows, columns = side * (high // edge), side * (wide // edge)
    width, height = size
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    return rows, columns, rows


def _tiles(sizes: Sizes, size: Size) -> int:
    """InternVL's and Aya Vision's views: as many squares as come nearest to the image's shape, and the whole.

    Their processors always crop, whatever the image processor's file says.
    """
    least, most = (int(sizes.image.get(key, n)) for key, n in (("min_patches", 1), ("max_patches", 12)))
    width, height = size
    edge = _shortest(sizes)
    grids = [(w, h) for w in range(1, most + 1) for h in range(1, most + 1) if least <= w * h <= most]
    best, nearest = (1, 1), math.inf
    for wide, high in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - wide / high)
        if distance < nearest:
            best, nearest = (wide, high), distance
        elif distance == nearest and width * height > 0.5 * edge * edge * wide * high:
            best = (wide, high)
    count = best[0] * best[1]
    return count + 1 if count > 1 else 1


def _internvl(sizes: Sizes, size: Size) -> Written:
    side = side_of(sizes.vision.get("image_size", 448)) // side_of(sizes.vision.get("patch_size", 14))
    default = int(side * side * float(sizes.config.get("downsample_ratio", 0.5)) ** 2)
    each = sizes.number((sizes.processor, "image_seq_length"), (sizes.config, "image_seq_length"), default=default)
    return Written((each * _tiles(sizes, size),), 2)


def _aya(sizes: Sizes, size: Size) -> Written:
    patch = sizes.number((sizes.processor, "patch_size"), default=28)
    factor = sizes.number((sizes.processor, "downsample_factor"), default=1)
    edge = sizes.number((sizes.processor, "img_size"), default=side_of(sizes.vision.get("image_size", 364)))
    tiles = _tiles(sizes, size)
    return Written(((edge // (patch * factor)) ** 2,) * tiles, tiles + 2)


def _idefics3(sizes: Sizes, size: Size) -> Written:
    """Tiles by rows, each behind two markers; a newline behind each row, an empty line behind the last; the whole."""
    side = side_of(sizes.vision.get("image_size", 224)) // side_of(sizes.vision.get("patch_size", 32))
    each = sizes.number(
        (sizes.processor, "image_seq_len"), default=side * side // int(sizes.config.get("scale_factor", 2)) ** 2
    )
    tile = int((sizes.image.get("max_image_size") or {}).get("longest_edge", 364))
    rows = columns = 0
    if sizes.image.get("do_image_splitting", True):
        rows, columns = _split(sizes, size, tile)
    return Written((each,) * (rows * columns + 1), 3 + rows * (2 * columns + 1))


def _split(sizes: Sizes, size: Size, tile: int) -> tuple[int, int]:
    width, height = size
    longest = int((sizes.image.get("size") or {}).get("longest_edge", 4 * 364))
    if sizes.image.get("do_resize", True):
        ratio = width / height
        if width >= height:
            width, height = longest, max(_even(int(longest / ratio)), 1)
        else:
            width, height = max(_even(int(longest * ratio)), 1), longest
        ratio = width / height
        if width >= height and width > LIMIT:
            width, height = LIMIT, max(int(LIMIT / ratio), 1)
        elif height > width and height > LIMIT:
            width, height = max(int(LIMIT * ratio), 1), LIMIT
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / ratio) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * ratio) / tile) * tile
    return (height // tile, width // tile) if height > tile or width > tile else (0, 0)


def _even(number: int) -> int:
    return number + number % 2


def _idefics2(sizes: Sizes, size: Size) -> Written:
    latents = (sizes.config.get("perceiver_config") or {}).get("resampler_n_latents", 64)
    each = sizes.number((sizes.processor, "image_seq_len"), default=int(latents))
    views = 5 if sizes.image.get("do_image_splitting", True) else 1
    return Written((each,) * views, views + 1)


def _paligemma(sizes: Sizes, size: Size) -> Written:
    side = side_of(sizes.vision.get("image_size", 224)) // side_of(sizes.vision.get("patch_size", 14))
    return Written((sizes.number((sizes.image, "image_seq_length"), default=side * side),))


def _gemma3(sizes: Sizes, size: Size) -> Written:
    """Its processor scans and crops only where the caller asks, which a branch never does."""
    each = sizes.number((sizes.processor, "image_seq_length"), (sizes.config, "mm_tokens_per_image"), default=256)
    return Written((each,), 4)


def _qwen(sizes: Sizes, size: Size) -> Written:
    """Qwen2-VL: the image in multiples of merged patches, between a least and a most number of pixels."""
    given = sizes.image.get("size") or {}
    least = sizes.number((sizes.image, "min_pixels"), (given, "shortest_edge"), (given, "min_pixels"), default=56 * 56)
    most = sizes.number(
        (sizes.image, "max_pixels"), (given, "longest_edge"), (given, "max_pixels"), default=28 * 28 * 1280
    )
    patch = int(sizes.image.get("patch_size") or sizes.vision.get("patch_size", 14))
    merge = int(sizes.image.get("merge_size") or sizes.vision.get("spatial_merge_size", 2))
    factor, (width, height) = patch * merge, size
    if max(size) > 200 * min(size):
        raise _refusal(sizes, size, "it is longer than 200 to 1")
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        high, wide = (max(factor, math.floor(n / shrink / factor) * factor) for n in (height, width))
    elif high * wide < least:
        grow = math.sqrt(least / (height * width))
        high, wide = (math.ceil(n * grow / factor) * factor for n in (height, width))
    return Written(((high // factor) * (wide // factor),), 2)


def _pixtral(sizes: Sizes, size: Size) -> Written:
    """Pixtral: rows of patches, each ended by a marker; a long image may shrink to no patch at all."""
    merge = sizes.number((sizes.processor, "spatial_merge_size"), (sizes.config, "spatial_merge_size"), default=1)
    patch = sizes.patch() * merge
    longest = int((sizes.image.get("size") or {}).get("longest_edge", 1024))
    width, height = size
    ratio = max(height / longest, width / longest)
    if ratio > 1:
        width, height = math.floor(width / ratio), math.floor(height / ratio)
    if min(width, height) == 0:
        raise _refusal(sizes, size, "it is too narrow for a visual token")
    rows, columns = ((n - 1) // patch + 1 for n in (height, width))
    return Written((columns,) * rows, rows)


def _mistral3(sizes: Sizes, size: Size) -> Written:
    found = _pixtral(sizes, size)
    if found.tokens == 1:
        raise _refusal(sizes, size, "its class takes two visual tokens or more")
    return found


NATIVE: dict[str, Callable[[Sizes, Size], Written]] = {
    "llava": _square, "vipllava": _square, "llava_next": _anyres, "llava_onevision": _onevision,
    "internvl": _internvl, "idefics2": _idefics2, "idefics3": _idefics3, "smolvlm": _idefics3,
    "paligemma": _paligemma, "qwen2_vl": _qwen, "qwen2_5_vl": _qwen, "mistral3": _mistral3, "gemma3": _gemma3,
    "aya_vision": _aya,
}  # fmt: skip
