"""What differs between the native classes: one row each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Native:
    """What a native class needs beyond `pixel_values`, and what its visual tokens are.

    inputs: further arguments of `get_image_features`, named as its processor's outputs. square: the tokens of one tile
    are a square in raster order. grid: image_grid_thw counts the patches, of which squares of spatial_merge_size make
    one token. around: marker tokens that the class's chat template writes around an image. rows: the tokens are a grid
    of the size that image_sizes tells, each row a run of its own. bare: the class's processor writes the whole prompt,
    of which only the visual tokens belong to the image. patches: each token is one patch of the tower. written: the
    processor's attribute that holds what a prompt writes for an image.
    """

    inputs: tuple[str, ...] = ()
    square: bool = False
    grid: bool = False
    around: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    rows: bool = False
    bare: bool = False
    patches: bool = False
    written: str = "image_token"


_QWEN = Native(inputs=("image_grid_thw",), grid=True, around=(("<|vision_start|>",), ("<|vision_end|>",)))

NATIVE: dict[str, Native] = {
    "llava": Native(square=True, patches=True),
    "llava_next": Native(inputs=("image_sizes",)),
    "llava_onevision": Native(inputs=("image_sizes", "batch_num_images")),
    "vipllava": Native(square=True),
    "internvl": Native(square=True),
    "idefics2": Native(inputs=("pixel_attention_mask",)),
    "idefics3": Native(inputs=("pixel_attention_mask",)),
    "smolvlm": Native(inputs=("pixel_attention_mask",)),
    "paligemma": Native(square=True, bare=True),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "mistral3": Native(inputs=("image_sizes",), rows=True),
    "gemma3": Native(square=True, written="boi_token"),
    "aya_vision": Native(square=True),
}

MROPE_HOSTS = frozenset({"qwen2_vl", "qwen2_5_vl"})  # as hosts they take three position numbers a token
