"""Whether the config of a CLIP or SigLIP tower is that of its file: layers by their names, sizes by tensors' shapes.

From headers, without torch: a config that is not the file's would have another layer read than the one that is meant.
"""

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from fuse.branches.llava_config import PLAIN_TOWER
from fuse.errors import CheckpointError

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def check_tower(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Compare a tower's config with the tensors of its own file.

    shapes: by name inside the tower, as `encoder.layers.0.mlp.fc1.weight`; what the file lacks is not looked at. Raises
    CheckpointError that says what the config says, what the file holds, and what to write.
    """
    said = {key: config.get(key) for key in ("num_hidden_layers", "hidden_size", "image_size", "patch_size")}
    for key, value in {**said, "intermediate_size": config.get("intermediate_size")}.items():
        if type(value) is not int or value <= 0:
            raise CheckpointError(f"{key} is {value!r}, not a positive whole number", where=folder / "config.json")
    plain = config.get("model_type") == PLAIN_TOWER
    layers = {int(found[1]) for name in shapes if (found := _LAYER.match(name))}
    if layers and max(layers) >= config["num_hidden_layers"]:
        raise _differs("num_hidden_layers", config, f"the tower's file holds {max(layers) + 1} layers",
                       max(layers) + 1, folder)  # fmt: skip
    patch = shapes.get("embeddings.patch_embedding.weight", ())
    if len(patch) == 4:
        told = f"the tower's file has a patch embedding of shape {list(patch)}"
        for key, size in (("hidden_size", patch[0]), ("num_channels", patch[1]), ("patch_size", patch[3])):
            if config.get(key, 3) != size:
                raise _differs(key, config, told, size, folder)
    table = shapes.get("embeddings.position_embedding.weight", ())
    if len(table) == 2:
        told = f"the tower's file has {table[0]} positions of {table[1]} numbers"
        if config["hidden_size"] != table[1]:
            raise _differs("hidden_size", config, told, table[1], folder)
        side = config["image_size"] // config["patch_size"]
        if side * side + (not plain) != table[0]:
            told += f" for patches of {config['patch_size']}"
            raise _differs("image_size", config, told, isqrt(table[0] - (not plain)) * config["patch_size"], folder)
    inner = shapes.get("encoder.layers.0.mlp.fc1.weight", ())
    if inner and inner[0] != config["intermediate_size"]:
        told = f"the tower's file has a first MLP layer of shape {list(inner)}"
        raise _differs("intermediate_size", config, told, inner[0], folder)


def _differs(key: str, config: Mapping[str, Any], told: str, right: int, folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{key} is {config.get(key)!r}, but {told}", where=folder / "config.json",
        hint=f"{key} {right} fits this file; better, copy the config from the tower's own repository",
    )  # fmt: skip
