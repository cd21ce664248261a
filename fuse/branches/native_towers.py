"""The towers that open_clip defines itself, ViT and ModifiedResNet: tensors and sizes, from the architecture alone."""

from collections.abc import Mapping
from typing import Any

from fuse.errors import CheckpointError
from fuse.safetensors_header import TensorEntry

Placed = tuple[TensorEntry, str | None, str]
_POOLING = ("proj", "attn_pool", "attn_pool_contrastive", "attnpool")


def has_last_norm(vision: Mapping[str, Any]) -> bool:
    """Whether patch tokens pass `ln_post`, as in open_clip's VisionTransformer._pool; else it follows the pooling."""
    return not vision.get("attentional_pool") and not vision.get("final_ln_after_pool")


def rows(inner: list[Placed], vision: Mapping[str, Any], head: bool = False) -> list[Placed]:
    """The tensors that patch tokens need keep their names; what works on pooled tokens loses it, unless with `head`."""
    if head:
        return inner
    unused = _POOLING if has_last_norm(vision) else (*_POOLING, "ln_post")
    return [
        (entry, None, "works on pooled tokens") if name and name.split(".")[0] in unused else (entry, name, why)
        for entry, name, why in inner
    ]


def measure(vision: Mapping[str, Any]) -> tuple[int, int]:
    """(size of one token, pixels that one token is wide)."""
    if isinstance(vision["layers"], list):
        return vision.get("width", 64) * 32, 32
    return vision["width"], vision["patch_size"]


def has_head(vision: Mapping[str, Any]) -> bool:
    """Whether it pools as CLIP does: the class token or a mean, or a ResNet's attention; CoCa has pooling queries."""
    return not vision.get("attentional_pool")


def check(
    shapes: Mapping[str, tuple[int, ...]], vision: Mapping[str, Any], name: str, where: object, head: int = 0
) -> None:
    """Raises CheckpointError for a tensor that is missing, unknown or of another shape than the architecture's.

    head: the numbers of the feature that its head gives; 0 where the head is left out.
    """
    wanted = _resnet(vision, head) if isinstance(vision["layers"], list) else _vit(vision, head)
    if missing := [key for key in wanted if key not in shapes]:
        raise CheckpointError(
            f"has no tensor 'visual.{missing[0]}' of {name} ({len(missing)} of {len(wanted)} are missing)", where=where
        )
    if unknown := [key for key in shapes if key not in wanted]:
        raise CheckpointError(f"tensor 'visual.{unknown[0]}' is not one of {name}'s", where=where)
    for key, shape in wanted.items():
        if shapes[key] != shape:
            raise CheckpointError(
                f"tensor 'visual.{key}' has shape {list(shapes[key])}, but {name} needs {list(shape)}", where=where
            )


def _vit(vision: Mapping[str, Any], head: int) -> dict[str, tuple[int, ...]]:
    """open_clip.transformer.VisionTransformer up to its patch tokens, or with the projection of what it pools."""
    width, patch = vision["width"], vision["patch_size"]
    size = vision["image_size"]
    height, breadth = (size, size) if isinstance(size, int) else size
    middle = int(width * vision.get("mlp_ratio", 4.0))
    norm = {"weight": (width,), "bias": (width,)}
    made: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": ((height // patch) * (breadth // patch) + 1, width),
        "conv1.weight": (width, 3, patch, patch),
    }
    if not vision.get("no_ln_pre"):
        made |= {f"ln_pre.{key}": shape for key, shape in norm.items()}
    block = {f"{part}.{key}": shape for part in ("ln_1", "ln_2") for key, shape in norm.items()} | {
        "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (middle, width), "mlp.c_fc.bias": (middle,),
        "mlp.c_proj.weight": (width, middle), "mlp.c_proj.bias": (width,),
    }  # fmt: skip
    if vision.get("ls_init_value") is not None:
        block |= {"ls_1.gamma": (width,), "ls_2.gamma": (width,)}
    for i in range(vision["layers"]):
        made |= {f"transformer.resblocks.{i}.{key}": shape for key, shape in block.items()}
    if has_last_norm(vision) or head:
        made |= {f"ln_post.{key}": shape for key, shape in norm.items()}
    return made | ({"proj": (width, head)} if head else {})


def _resnet(vision: Mapping[str, Any], head: int) -> dict[str, tuple[int, ...]]:
    """open_clip.modified_resnet.ModifiedResNet up to its last feature map, or with its attention pooling."""
    width = vision.get("width", 64)
    made: dict[str, tuple[int, ...]] = {}

    def conv(name: str, norm: str, out: int, into: int, kernel: int) -> None:
        made[f"{name}.weight"] = (out, into, kernel, kernel)
        made.update({f"{norm}.{key}": (out,) for key in ("weight", "bias", "running_mean", "running_var")})
        made[f"{norm}.num_batches_tracked"] = ()

    for i, (out, into) in enumerate(((width // 2, 3), (width // 2, width // 2), (width, width // 2)), 1):
        conv(f"conv{i}", f"bn{i}", out, into, 3)
    into = width
    for stage, blocks in enumerate(vision["layers"]):
        planes = width * 2**stage
        for i in range(blocks):
            at = f"layer{stage + 1}.{i}"
            conv(f"{at}.conv1", f"{at}.bn1", planes, into, 1)
            conv(f"{at}.conv2", f"{at}.bn2", planes, planes, 3)
            conv(f"{at}.conv3", f"{at}.bn3", 4 * planes, planes, 1)
            if i == 0:
                conv(f"{at}.downsample.0", f"{at}.downsample.1", 4 * planes, into, 1)
            into = 4 * planes
    return made | (_attention_pool(vision, into, head) if head else {})


def _attention_pool(vision: Mapping[str, Any], width: int, head: int) -> dict[str, tuple[int, ...]]:
    size = vision["image_size"]
    side = (size if isinstance(size, int) else size[0]) // 32
    made: dict[str, tuple[int, ...]] = {"attnpool.positional_embedding": (side * side + 1, width)}
    for name, out in (("k", width), ("q", width), ("v", width), ("c", head)):
        made |= {f"attnpool.{name}_proj.weight": (out, width), f"attnpool.{name}_proj.bias": (out,)}
    return made
