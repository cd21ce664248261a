"""What a multimodal config says of its encoder, compared with the tensors that are stored.

Classes of transformers read these numbers as they stand: one that is absurd takes hours or all memory to build.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from fuse.errors import CheckpointError
from fuse.families.registry import model_type_of
from fuse.families.rope import short

MAX_SIZE = 1 << 16
LAYERS = ("num_hidden_layers", "depth")
SIZES = (
    "hidden_size", "intermediate_size", "embed_dim", "num_attention_heads", "num_heads", "num_channels", "in_channels",
    "patch_size", "image_size", "spatial_merge_size", "temporal_patch_size",
)  # fmt: skip
FEATURES = ("vision_feature_layer", "vision_feature_layers")
STRATEGIES = ("default", "full")
_LAYER = re.compile(r"\.(?:layers?|blocks)\.(\d+)\.")


def check_encoder(config: Mapping[str, Any], key: str, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare the vision config, which stands under `key`, with the encoder's tensors (canonical name to shape).

    Raises CheckpointError where there is no vision config, for a number that is none or too large, for another number
    of layers than are stored, and for a `vision_feature_layer` that the encoder does not have.
    """
    vision = config.get(key)
    if not isinstance(vision, Mapping):
        raise CheckpointError(f"config.json: {key} is missing", where=where)
    if vision.get("model_type") is not None:
        model_type_of(vision, where)
    stored = 1 + max((int(n) for name in shapes for n in _LAYER.findall(name)), default=-1)
    for name in SIZES:
        _check_size(f"{key}.{name}", vision.get(name), where)
    width, heads = vision.get("hidden_size"), vision.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and width % heads:
        told = f"config.json: {key}.hidden_size {width} does not divide by {heads} heads"
        raise CheckpointError(told, where=where)
    for name in LAYERS:
        found = vision.get(name)
        if found is not None and (type(found) is not int or (stored and found != stored)):
            told = f"config.json: {key}.{name} is {short(found)}, and the encoder's tensors have {stored} layers"
            raise CheckpointError(told, where=where)
    _check_grid(vision, key, shapes, where)
    _check_features(config, vision.get(LAYERS[0]), where)


def _check_size(name: str, value: Any, where: str) -> None:
    """A whole number, or a list of such, where the config states it."""
    for one in value if isinstance(value, list) else (value,):
        if value is not None and (type(one) is not int or not 0 < one < MAX_SIZE):
            told = f"config.json: {name} is {short(value)}, not a whole number from 1 to {MAX_SIZE - 1:,}"
            raise CheckpointError(told, where=where)


def _check_grid(
    vision: Mapping[str, Any], key: str, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:  # fmt: skip
    """The table of positions is no larger than all that is stored."""
    image, patch, width = vision.get("image_size"), vision.get("patch_size"), vision.get("hidden_size")
    if not (isinstance(image, int) and isinstance(patch, int) and isinstance(width, int)):
        return
    positions, numbers = (image // patch) ** 2, sum(math.prod(shape) for shape in shapes.values())
    if positions * width > numbers:
        told = f"config.json: {key} makes {positions:,} patches of an image (image_size {image}, patch_size {patch})"
        raise CheckpointError(f"{told}, more than the {numbers:,} numbers of the encoder have places for", where=where)


def _check_features(config: Mapping[str, Any], layers: Any, where: str) -> None:
    for key in FEATURES:
        value = config.get(key)
        for one in value if isinstance(value, list) else (value,):
            if value is None:
                continue
            if type(one) is not int or (type(layers) is int and not -layers - 1 <= one <= layers):
                told = f"config.json: {key} is {short(value)}"
                raise CheckpointError(f"{told}, and the encoder has {layers} layers" if layers else told, where=where)
    strategy = config.get("vision_feature_select_strategy")
    if strategy is not None and strategy not in STRATEGIES:
        told = f"config.json: vision_feature_select_strategy is {short(strategy)}, not {' or '.join(STRATEGIES)}"
        raise CheckpointError(told, where=where)
