"""Which layer of an encoder branch is read: `layer: -2` in a recipe, as LLaVA's `vision_feature_layer`. Needs no torch.

-1 is the encoder's own end, with its last norm where it has one. -2 is what the last but one block of a vision
transformer gives, or the last but one stage of a ConvNeXt, without that norm: `hidden_states[-2]` of transformers,
`forward_intermediates(indices=[-2])` of open_clip and timm. The tensors behind it stay in the branch, as in
transformers' own LLaVA. ResNets, Swin and others are refused: their libraries count layers in different ways.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuse.errors import RecipeError

LAST = -1
Shapes = Mapping[str, tuple[int, ...]]
_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.attn\.")
_TIMM_NORM = re.compile(r"blocks\.\d+\.norm1\.weight")
_TIMM_STAGE = re.compile(r"stages\.(\d+)\.blocks\.0\.conv_dw\.weight")
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_CONVNEXTS = {"convnext", "convnextv2", "dinov3_convnext"}
_OTHER_STAGES = {"swin", "swinv2", "resnet"}


@dataclass(frozen=True)
class Stack:
    """The layers of a tower. widths: channels of each stage; empty for blocks, which all give the same."""

    count: int
    widths: tuple[int, ...] = ()


def open_clip_stack(vision: Mapping[str, Any]) -> Stack | None:
    """vision: the `vision_cfg` of a tower that open_clip defines itself."""
    return Stack(vision["layers"]) if type(vision["layers"]) is int else None


def timm_stack(name: str, shapes: Shapes) -> Stack | None:
    """name: timm's architecture. shapes: of the tower's tensors, by name."""
    if blocks := {int(found[1]) for key in shapes if (found := _TIMM_BLOCK.match(key))}:
        return None if widths_differ(shapes) else Stack(len(blocks))
    stages = {int(found[1]): shape[0] for key, shape in shapes.items() if (found := _TIMM_STAGE.fullmatch(key))}
    return Stack(len(stages), tuple(stages[i] for i in sorted(stages))) if stages and "convnext" in name else None


def widths_differ(shapes: Shapes) -> bool:
    """Whether timm's `blocks` are stages in truth, each wider than the one before it, as in Hiera."""
    norms = {shape for key, shape in shapes.items() if _TIMM_NORM.fullmatch(key)}
    return len(norms) > 1


def transformers_stack(tower: Mapping[str, Any], shapes: Shapes) -> Stack | None:
    """tower: its config, with model_type. shapes: of the checkpoint's tensors, by name."""
    kind = tower["model_type"]
    if kind in _CONVNEXTS:
        widths = tuple(tower.get("hidden_sizes") or (96, 192, 384, 768))  # the default of the three config classes
        return Stack(len(widths), widths)
    if kind in _OTHER_STAGES:
        return None
    return Stack(len({int(found[1]) for key in shapes if (found := _LAYER.search(key))}))


def at_layer(
    layer: int, stack: Stack | None, size: tuple[int | None, int | None], *, name: str, where: str
) -> tuple[int | None, int | None]:
    """(size of one token, pixels that one token is wide) at `layer`. size: the same at the tower's end.

    Raises RecipeError for a tower without layers that can be counted, and for a layer that it does not have.
    """
    if layer == LAST:
        return size
    if stack is None:
        raise RecipeError(
            f"{name} has no layers to choose from: `layer` counts the blocks of a vision transformer or the stages of "
            "a ConvNeXt", where=f"{where}.layer", hint="leave `layer` out: the encoder is read at its end",
        )  # fmt: skip
    if not -stack.count <= layer < 0:
        what = "stages" if stack.widths else "blocks"
        raise RecipeError(
            f"{name} has {stack.count} {what}, and no layer {layer}", where=f"{where}.layer",
            hint=f"-1 is its end, -2 the last but one, -{stack.count} the first",
        )  # fmt: skip
    if not stack.widths:
        return size
    return stack.widths[layer], size[1] // 2 ** (LAST - layer) if size[1] else None
