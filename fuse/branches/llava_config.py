"""What a config of the original LLaVA code says about its eyes, checked. Neither torch nor a file: `plan` reads it too.

Names and defaults are those of haotian-liu/LLaVA (llava/model/llava_arch.py, llava/mm_utils.py); `towers` is what a
fused folder adds to the config: the configs of the towers that the original code loads by id.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuse.branches.anyres import Size, best_resolution, map_tokens
from fuse.errors import CheckpointError

WHERE = "config.json"
CLASS_TOWER, PLAIN_TOWER = "clip_vision_model", "siglip_vision_model"
ASPECTS = ("square", "pad", "anyres")
MERGES = ("flat", "spatial", "spatial_unpad")
FEATURES = {"patch": False, "cls_patch": True}
MARKERS = ("<im_start>", "<im_end>")  # llava/constants.py


@dataclass(frozen=True)
class Sight:
    """One vision tower and how its features become tokens.

    tower: model_type of the tower. side: patches along one edge of a view. depth: the hidden state that is read; 0 is
    the embeddings, n the output of layer n. with_class: the class token is a token too. width, hidden_size: channels of
    the tower and of the language model. pinpoints: the resolutions of anyres, (width, height).
    """

    tower: str
    image_size: int
    side: int
    width: int
    depth: int
    with_class: bool
    hidden_size: int
    projector: str
    aspect: str
    merge: str
    pinpoints: tuple[Size, ...]
    marked: bool

    @property
    def view_tokens(self) -> int:
        return self.side**2 + self.with_class

    @property
    def has_newline(self) -> bool:
        return "unpad" in self.merge

    @property
    def has_class_attention(self) -> bool:
        """Whether each token is one patch that the tower's class token pays attention to."""
        return self.tower == CLASS_TOWER and self.depth > 0 and not self.with_class

    def written(self, tokens: int) -> tuple[int | str, ...]:
        """A run of tokens as the prompt holds it."""
        return (MARKERS[0], tokens, MARKERS[1]) if self.marked else (tokens,)


def sight_of(config: Mapping[str, Any]) -> Sight:
    """Read and check a config; CheckpointError names the key whose value this code does not know."""
    tower = tower_config(config, "vision_tower")
    size, patch, width = (
        whole(tower, key, "towers.vision_tower.") for key in ("image_size", "patch_size", "hidden_size")
    )
    layers = whole(tower, "num_hidden_layers", "towers.vision_tower.")
    kind = tower["model_type"]
    stated = config.get("mm_hidden_size")
    if stated is not None and stated != width:
        raise CheckpointError(f"mm_hidden_size is {stated!r}, but the vision tower is {width} wide", where=WHERE)
    if config.get("s2"):
        raise CheckpointError("s2 asks for a tower at several scales, which fuse does not have", where=WHERE)
    feature = one_of(config, "mm_vision_select_feature", tuple(FEATURES), "patch")
    aspect = one_of(config, "image_aspect_ratio", ASPECTS, "square")
    merge = one_of(config, "mm_patch_merge_type", MERGES, "flat")
    if FEATURES[feature] and (kind == PLAIN_TOWER or (aspect == "anyres" and merge != "flat")):
        raise CheckpointError(
            "mm_vision_select_feature is 'cls_patch', but this tower or mm_patch_merge_type has no class token to keep",
            where=WHERE,
        )
    return Sight(
        tower=kind, image_size=size, side=size // patch, width=width, depth=_depth(config, kind, layers),
        with_class=FEATURES[feature], hidden_size=whole(config, "hidden_size"),
        projector=str(config.get("mm_projector_type") or "linear"), aspect=aspect, merge=merge,
        pinpoints=_pinpoints(config.get("image_grid_pinpoints"), size) if aspect == "anyres" else (),
        marked=bool(config.get("mm_use_im_start_end")),
    )  # fmt: skip


def llava_tokens(sight: Sight, size: Size) -> int:
    """How many tokens an image of (width, height) becomes."""
    if sight.aspect != "anyres":
        return sight.view_tokens
    columns, rows = (edge // sight.image_size for edge in best_resolution(size, sight.pinpoints))
    if sight.merge == "flat":
        return (1 + rows * columns) * sight.view_tokens
    return sight.view_tokens + map_tokens(rows * sight.side, columns * sight.side, size, newline=sight.has_newline)


def tower_config(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The config of one tower, which a fused folder holds under `towers`."""
    towers = config.get("towers")
    tower = towers.get(name) if isinstance(towers, Mapping) else None
    if not isinstance(tower, Mapping):
        raise CheckpointError(f"towers.{name} is missing", where=WHERE)
    if name == "vision_tower" and tower.get("model_type") not in (CLASS_TOWER, PLAIN_TOWER):
        raise CheckpointError(
            f"towers.{name}: model_type {tower.get('model_type')!r} is neither {CLASS_TOWER} nor {PLAIN_TOWER}",
            where=WHERE,
        )
    return tower


def whole(config: Mapping[str, Any], key: str, before: str = "") -> int:
    """A positive whole number that the config must state."""
    value = config.get(key)
    if type(value) is not int or not 0 < value < 1 << 24:
        raise CheckpointError(f"{before}{key} is {value!r}, not a positive whole number", where=WHERE)
    return value


def one_of(config: Mapping[str, Any], key: str, known: tuple[str, ...], default: str) -> str:
    """One of the known words; the default where the config leaves it out or says null."""
    value = config.get(key)
    if value is None:
        return default
    if value not in known:
        raise CheckpointError(f"{key} is {value!r}; fuse knows {', '.join(known)}", where=WHERE)
    return value


def _depth(config: Mapping[str, Any], kind: str, layers: int) -> int:
    """Which hidden state is read. SigLIP towers lose their last layer and give what is then the last (LLaVA-NeXT)."""
    if kind == PLAIN_TOWER:
        return layers - 1
    layer = config.get("mm_vision_select_layer", -2)
    if type(layer) is not int or not -layers - 1 <= layer <= layers:
        raise CheckpointError(
            f"mm_vision_select_layer is {layer!r}, but the vision tower has {layers} layers", where=WHERE
        )
    return layer if layer >= 0 else layers + 1 + layer


def _pinpoints(value: Any, size: int) -> tuple[Size, ...]:
    """A list of [width, height], or the text of one, as the original code stores either."""
    points = value
    if isinstance(value, str) and re.fullmatch(r"[\[\](),\s\d]{1,4096}", value):
        try:
            points = ast.literal_eval(value)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            points = None
    if not isinstance(points, list | tuple) or not points or not all(_is_point(p, size) for p in points):
        raise CheckpointError(
            f"image_grid_pinpoints is {str(value)[:80]!r}, not a list of [width, height] in steps of {size}",
            where=WHERE,
        )
    return tuple((p[0], p[1]) for p in points)


def _is_point(point: Any, size: int) -> bool:
    return (
        isinstance(point, list | tuple)
        and len(point) == 2
        and all(type(edge) is int and 0 < edge <= 64 * size and edge % size == 0 for edge in point)
    )
