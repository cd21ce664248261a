"""The image encoders of transformers that can be a branch: which config and tensors are the tower, how tokens lie.

One row per model_type of config.json. Tensors keep the names that the checkpoint stores, without the wrapper's prefix;
transformers renames old ones itself when it loads them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuse.errors import CheckpointError
from fuse.suggest import did_you_mean


@dataclass(frozen=True)
class TowerType:
    """How one kind of encoder is stored, and what it gives.

    composite: the config has a text part too, and the tower's is `vision_config`. wrapper: prefix of the tower's names
    in the checkpoint. prefix: class and other tokens before the patches; registers: config key with how many more.
    has_class: the first token is a class token that attends to the patches. unused: tensors that patch tokens need not.
    class_norm: the module that the class token passes behind the last block; "" where `last_hidden_state` has passed it
    already, None where there is no such token or norm. model: the class, where AutoModel does not know the tower alone.
    """

    composite: bool = False
    wrapper: str = ""
    prefix: int = 0
    registers: str = ""
    has_class: bool = False
    unused: tuple[str, ...] = ()
    class_norm: str | None = None
    model: str = ""


HEAD = "visual_projection"  # CLIP's map of pooled image features into the space that it shares with texts
_POOL = ("head", "pooler", "classifier", "cls_classifier", "distillation_classifier", HEAD)
_VISION = "vision_model."
_CLIP = {"wrapper": _VISION, "prefix": 1, "has_class": True, "unused": (), "class_norm": "post_layernorm"}
_BLIP_2 = {"wrapper": _VISION, "prefix": 1, "has_class": True, "class_norm": ""}

TOWER_TYPES: dict[str, TowerType] = {
    "clip": TowerType(True, **_CLIP),
    "clip_vision_model": TowerType(False, **_CLIP),
    "chinese_clip": TowerType(True, **_CLIP),
    "chinese_clip_vision_model": TowerType(False, **_CLIP),
    "mlcd": TowerType(False, **_CLIP),
    "mlcd_vision_model": TowerType(False, **_CLIP),
    "siglip": TowerType(True, _VISION),
    "siglip_vision_model": TowerType(False, _VISION),
    "aimv2": TowerType(True, _VISION),
    "aimv2_vision_model": TowerType(False, _VISION),
    "blip-2": TowerType(True, **_BLIP_2, model="Blip2VisionModel"),
    "blip_2_vision_model": TowerType(False, **_BLIP_2, model="Blip2VisionModel"),
    "instructblip": TowerType(True, **_BLIP_2, model="InstructBlipVisionModel"),
    "instructblip_vision_model": TowerType(False, **_BLIP_2, model="InstructBlipVisionModel"),
    "dinov2": TowerType(False, "dinov2.", 1, has_class=True, unused=("embeddings.mask_token",), class_norm=""),
    "dinov2_with_registers": TowerType(
        False, "dinov2_with_registers.", 1, "num_register_tokens", True, ("embeddings.mask_token",), ""
    ),
    "dinov3_vit": TowerType(False, "dinov3_vit.", 1, "num_register_tokens", True, class_norm=""),
    "dinov3_convnext": TowerType(False, "dinov3_convnext.", 1),  # its pooled token comes first
    "vit": TowerType(False, "vit.", 1, has_class=True, unused=("embeddings.mask_token",), class_norm=""),
    "deit": TowerType(False, "deit.", 2, has_class=True, unused=("embeddings.mask_token",), class_norm=""),
    "beit": TowerType(False, "beit.", 1, has_class=True, unused=("embeddings.mask_token",)),
    "ijepa": TowerType(False, "ijepa.", unused=("embeddings.mask_token",)),
    "convnext": TowerType(False, "convnext."),
    "convnextv2": TowerType(False, "convnextv2."),
    "swin": TowerType(False, "swin."),
    "swinv2": TowerType(False, "swinv2."),
    "resnet": TowerType(False, "resnet."),
}

FORGET = (
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "id2label",
    "label2id", "problem_type", "attn_implementation", "_attn_implementation",
)  # fmt: skip


def tower_config(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The tower's own config, with model_type and without what only the checkpoint's heads or its author need.

    Raises CheckpointError for a kind of model that cannot be a branch.
    """
    kind = config.get("model_type")
    if kind not in TOWER_TYPES:
        raise CheckpointError(
            f"model_type {kind!r} is no image encoder that can be a branch", where=where,
            hint=did_you_mean(kind, TOWER_TYPES),
        )  # fmt: skip
    tower: Any = config
    if TOWER_TYPES[kind].composite:
        tower = config.get("vision_config")
        if not isinstance(tower, Mapping):
            raise CheckpointError(f"model_type {kind!r} has no vision_config", where=where)
        tower = {**tower, "model_type": f"{kind.replace('blip-2', 'blip_2')}_vision_model"}
    return {key: value for key, value in tower.items() if key not in FORGET}


def place(name: str, kind: str, wrapped: bool, head: bool = False) -> tuple[str | None, str]:
    """Where a checkpoint's tensor lies in the tower: (name, ""), or (None, why it is not used).

    wrapped: whether any tensor of the checkpoint has the wrapper's prefix. head: whether the tower keeps HEAD.
    """
    row = TOWER_TYPES[kind]
    if head and name == f"{HEAD}.weight":
        return name, ""
    if wrapped and not name.startswith(row.wrapper):
        return None, "outside the vision tower"
    inner = name.removeprefix(row.wrapper) if wrapped else name
    if inner.split(".")[0] in _POOL:
        return None, "a head after the patch tokens"
    if inner in row.unused:
        return None, "only used to train the encoder"
    if inner.endswith(("position_ids", "relative_position_index", "relative_coords_table", "inv_freq")):
        return None, "computed from the config"
    return inner, ""


def prefix_tokens(tower: Mapping[str, Any]) -> int:
    """Class, distillation and register tokens before the patches. tower: from `tower_config`."""
    row = TOWER_TYPES[tower["model_type"]]
    return row.prefix + (int(tower.get(row.registers, _REGISTERS.get(tower["model_type"], 0))) if row.registers else 0)


_REGISTERS = {"dinov2_with_registers": 4, "dinov3_vit": 0}  # defaults of their config classes


_PATCHES = tuple(
    f"embeddings.{name}.weight"
    for name in ("patch_embedding", "patch_embeddings.projection", "patch_embeddings", "patch_embed")
)
_STAGED = {"convnext", "convnextv2", "dinov3_convnext", "swin", "swinv2", "resnet"}


def measure(tower: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, int | None]:
    """(size of one token, pixels that one token is wide), from stored shapes or else the config; None where unknown.

    shapes: of the tower's tensors, by name.
    """
    if tower["model_type"] in _STAGED:
        widths, depths = tower.get("hidden_sizes"), tower.get("depths")
        stages = len(depths or widths or ()) or 4
        base = tower.get("embed_dim")
        width = base * 2 ** (stages - 1) if isinstance(base, int) else widths[-1] if isinstance(widths, list) else None
        return width, 32 if tower["model_type"] == "resnet" else int(tower.get("patch_size", 4)) * 2 ** (stages - 1)
    for name in _PATCHES:
        if len(shapes.get(name, ())) == 4:
            return shapes[name][0], shapes[name][-1]
    return tower.get("hidden_size"), tower.get("patch_size")


def check(tower: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raises CheckpointError when the checkpoint has not the number of layers that its config says."""
    depth = tower.get("num_hidden_layers")
    if type(depth) is not int or tower["model_type"] in _STAGED:
        return
    layers = {int(found[1]) for key in shapes if (found := _LAYER.search(key))}
    if layers != set(range(depth)):
        missing = sorted(set(range(depth)) - layers)
        told = f"layer {missing[0]} is missing" if missing else f"there are {len(layers)}"
        raise CheckpointError(f"num_hidden_layers is {depth} but {told}", where=where)


def check_size(
    tower: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], grid: tuple[int, int], where: object
) -> None:
    """Raises CheckpointError when images are prepared larger or smaller than the encoder's table of positions."""
    for name in _POSITIONS:
        if name in shapes and shapes[name][0] != prefix_tokens(tower) + grid[0] * grid[1]:
            raise CheckpointError(
                f"prepares images of {grid[0]}x{grid[1]} patches, but the encoder has {shapes[name][0]} positions",
                where=where, hint="copy it from the encoder's own repository",
            )  # fmt: skip


_POSITIONS = ("embeddings.position_embedding.weight",)  # other towers interpolate theirs
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


def image_size(prepare: Mapping[str, Any], where: object) -> tuple[int, int]:
    """(height, width) of what an image processor gives, from its preprocessor_config.json."""
    key = "crop_size" if prepare.get("do_center_crop", True) and "crop_size" in prepare else "size"
    size = prepare.get(key)
    if isinstance(size, Mapping):
        size = [size["height"], size["width"]] if {"height", "width"} <= size.keys() else size.get("shortest_edge")
    pair = [size, size] if type(size) is int else size
    if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)):
        raise CheckpointError(f"{key} is {prepare.get(key)!r}, not a height and a width", where=where)
    return pair[0], pair[1]
