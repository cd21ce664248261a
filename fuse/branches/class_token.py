"""Whether a branch of a member has a class token whose attention ranks its visual tokens (`prune: cls`).

Neither torch nor a file: `plan` asks before anything is built, and the branches themselves ask the same functions.
Encoder branches, whose files tell it, have `fuse.branches.encoder_files.EncoderFiles.has_class`.
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.llava_config import CLASS_TOWER, Sight, sight_of
from fuse.branches.native_table import NATIVE

LAYER = "vision_feature_layer"
TOWER_LAYERS, LAYERS = 24, 12  # of a LLaVA without a vision_config, of a CLIP whose config leaves them out


def without_class_token(who: str) -> tuple[str, str]:
    """What to say of `prune: cls` on such a branch, and the hint."""
    return f"cls needs a class token that looks at every visual token, and {who} has none", "`prune: norm` works"


def has_class_token(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether each visual token is a patch that a class token pays attention to.

    kind: native, llava_original, mgm or slime. config: the branch's, with `towers` where the kind has them. Raises
    CheckpointError as `sight_of` does.
    """
    if kind == "native":
        row = NATIVE.get(str(config.get("model_type")))
        return row is not None and row.patches and reads_class_tower(config)
    return kind != "slime" and sight_has_class_token(sight_of(config))


def reads_class_tower(config: Mapping[str, Any]) -> bool:
    """Whether a class of transformers reads the patches of one layer of a CLIP, without the class token itself."""
    given = config.get("vision_config")
    vision = given if isinstance(given, Mapping) else {}
    layers, layer = vision.get("num_hidden_layers", LAYERS if vision else TOWER_LAYERS), config.get(LAYER, -2)
    return (
        vision.get("model_type", CLASS_TOWER) == CLASS_TOWER
        and config.get("vision_feature_select_strategy", "default") == "default"
        and type(layers) is type(layer) is int
        and 0 < (layer if layer >= 0 else layers + 1 + layer) <= layers
    )


def sight_has_class_token(sight: Sight) -> bool:
    """The same of the original LLaVA code: with `unpad`, line ends and cut margins make tokens other than patches."""
    return sight.has_class_attention and not (sight.aspect == "anyres" and sight.has_newline)
