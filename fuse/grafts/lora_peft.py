"""A LoRA folder as PEFT writes it (adapter_config.json beside adapter_model.safetensors) as a donor of kind `lora`.

Only names, shapes and the JSON are looked at. What PEFT's config says beyond plain LoRA is refused, whatever it is:
a change that is left out would be silent.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from fuse.errors import CheckpointError
from fuse.grafts.lora_names import place

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_ALPHA = 10**9
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>[\w.]+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")

# Keys that do not change what the adapter computes, or that are read below.
_KNOWN = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "loftq_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
_HINTS = {
    "use_dora": "DoRA rescales whole rows of the base's weights; merge it into its base with PEFT first",
    "modules_to_save": "those modules are whole weights; name the member that holds them in the recipe",
    "trainable_token_indices": "those are rows of the embedding; name the member that holds them in the recipe",
    "bias": "train LoRA with bias: none, or merge it into its base with PEFT first",
}
_ELSE = "merge it into its base with PEFT first"
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base's weights at the start


def read_peft(tensors: Mapping[str, tuple[int, ...]], told: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The graft's config, and for every stored tensor its name in the graft.

    tensors: shapes by stored name. told: adapter_config.json. Raises CheckpointError (problem and hint, no place) for
    what is not plain LoRA of a language model's projections.
    """
    _check(told)
    names: dict[str, str] = {}
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    modules: dict[str, str] = {}
    for key, shape in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(f"tensor {key!r} is no LoRA factor", hint=_ELSE)
        found = place(match["module"])
        if found is None:
            raise CheckpointError(
                f"tensor {key!r} changes {match['module']}, which is no projection of a language model's blocks",
                hint=_ELSE,
            )
        name = ".".join(map(str, found))
        side = {"A": "down", "B": "up"}[match["side"]]
        if side in sides.setdefault(name, {}):
            raise CheckpointError(f"tensor {key!r} is there twice")
        if len(shape) != 2 or 0 in shape:
            raise CheckpointError(f"tensor {key!r} has shape {list(shape)}, not two sizes")
        sides[name][side], names[key], modules[name] = shape, f"{name}.{side}", match["module"]
    if not sides:
        raise CheckpointError("holds no LoRA factors")
    rows = {name: _row(modules[name], pair, told) for name, pair in sides.items()}
    return {"modules": rows}, names


def _row(module: str, pair: Mapping[str, tuple[int, ...]], told: Mapping[str, Any]) -> dict[str, Any]:
    if pair.keys() != {"down", "up"}:
        raise CheckpointError(f"{module} has lora_{'A' if 'down' in pair else 'B'} and not the other factor")
    rank, inputs = pair["down"]
    outputs, inner = pair["up"]
    stated = matched(told.get("rank_pattern"), module, told["r"])
    if not rank == inner == stated:
        raise CheckpointError(f"{module} has rank {rank} and {inner}, and {CONFIG} says {stated!r}")
    alpha = matched(told.get("alpha_pattern"), module, told["lora_alpha"])
    if type(alpha) not in (int, float) or not abs(alpha) < MOST_ALPHA:
        raise CheckpointError(f"{CONFIG}: the alpha of {module} is {alpha!r}, not a number below {MOST_ALPHA:,}")
    scaling = alpha / (math.sqrt(rank) if told.get("use_rslora") else rank)  # rsLoRA: arXiv 2312.03732
    return {"rank": rank, "in": inputs, "out": outputs, "scaling": scaling}


def matched(pattern: Any, module: str, otherwise: Any) -> Any:
    """The pattern's value of the first key that ends the module's name, as PEFT looks it up."""
    for key, value in (pattern or {}).items():
        if not re.fullmatch(r"\^?[\w.]+", key):
            raise CheckpointError(f"{CONFIG}: {key!r} of a pattern is not the name of a module", hint=_ELSE)
        whole = key.removeprefix("^")
        if module == whole or (whole == key and module.endswith(f".{key}")):
            return value
    return otherwise


def _check(told: Mapping[str, Any]) -> None:
    if told.get("peft_type") != "LORA":
        raise CheckpointError(f"{CONFIG}: peft_type is {told.get('peft_type')!r}, and fuse reads LORA")
    for key in ("r", "lora_alpha"):
        if key not in told:
            raise CheckpointError(f"{CONFIG}: {key} is missing")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(told.get(key) or {}, Mapping):
            raise CheckpointError(f"{CONFIG}: {key} is {told[key]!r}, not a table")
    start = told.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        hint = "save the adapter converted to plain LoRA (PEFT's path_initial_model_for_weight_conversion)"
        raise CheckpointError(f"{CONFIG}: init_lora_weights is {start!r}, which changes the base's weights", hint=hint)
    for key, value in told.items():
        if key not in _KNOWN and value not in (None, False, [], {}, "", "none"):
            told_value = str(value)[:80]
            raise CheckpointError(
                f"{CONFIG}: {key} is {told_value}, which is more than LoRA", hint=_HINTS.get(key, _ELSE)
            )
