"""adapter_config.json: which kinds of adapter are read, and what their config may say.

What a config says beyond what is read is refused, whatever it is: a change that is left out would be silent.
"""

import math
from collections.abc import Mapping
from typing import Any

from fuse.errors import CheckpointError
from fuse.grafts.lora_peft import CONFIG, MOST_ALPHA, matched

_COMMON = (
    "auto_mapping base_model_name_or_path ensure_weight_tying exclude_modules inference_mode layers_pattern "
    "layers_to_transform modules_to_save peft_type peft_version revision runtime_config target_modules task_type"
)
_LORA = (
    "alpha_pattern bias eva_config fan_in_fan_out init_lora_weights loftq_config lora_alpha lora_bias lora_dropout "
    "megatron_core qalora_group_size r rank_pattern trainable_token_indices use_dora use_rslora"
)
_LYCORIS = "alpha alpha_pattern init_weights module_dropout r rank_dropout rank_pattern use_effective_conv2d"
# peft_type -> keys that do not change what the adapter computes, or that are read
KNOWN: Mapping[str, frozenset[str]] = {
    kind: frozenset(f"{_COMMON} {own}".split())
    for kind, own in {
        "LORA": _LORA,
        "IA3": "fan_in_fan_out feedforward_modules init_ia3_weights",
        "LOHA": _LYCORIS,
        "LOKR": f"{_LYCORIS} decompose_both decompose_factor rank_dropout_scale",
        "LN_TUNING": "",
        "TRAINABLE_TOKENS": "init_weights token_indices",
    }.items()
}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base's weights at the start


def kind_of(told: Mapping[str, Any]) -> str:
    """The peft_type, after a look at every key. Raises CheckpointError for what fuse does not read, without a place."""
    kind = told.get("peft_type")
    if not isinstance(kind, str) or kind not in KNOWN:
        told_kind = "missing" if kind is None else repr(str(kind)[:40])
        raise CheckpointError(f"{CONFIG}: peft_type is {told_kind}, and fuse reads {', '.join(KNOWN)}")
    start = told.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        hint = "save the adapter converted to plain LoRA (PEFT's path_initial_model_for_weight_conversion)"
        raise CheckpointError(f"{CONFIG}: init_lora_weights is {start!r}, which changes the base's weights", hint=hint)
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(told.get(key) or {}, Mapping):
            raise CheckpointError(f"{CONFIG}: {key} is {told[key]!r}, not a table")
    for key, value in told.items():
        if key not in KNOWN[kind] and value not in (None, False, [], {}, "", "none"):
            hint = "merge it into its base with PEFT first"
            raise CheckpointError(f"{CONFIG}: {key} is {str(value)[:80]}, which fuse does not read", hint=hint)
    return kind


def rank_of(told: Mapping[str, Any], module: str) -> Any:
    """The rank that the config gives a module."""
    if "r" not in told:
        raise CheckpointError(f"{CONFIG}: r is missing")
    return matched(told.get("rank_pattern"), module, told["r"])


def scaling_of(told: Mapping[str, Any], module: str, key: str) -> float:
    """alpha / rank, or alpha / sqrt(rank) of rsLoRA (arXiv 2312.03732). key: what the config calls alpha."""
    if key not in told:
        raise CheckpointError(f"{CONFIG}: {key} is missing")
    alpha, rank = matched(told.get("alpha_pattern"), module, told[key]), rank_of(told, module)
    if type(alpha) not in (int, float) or not abs(alpha) < MOST_ALPHA:
        raise CheckpointError(f"{CONFIG}: the alpha of {module} is {alpha!r}, not a number below {MOST_ALPHA:,}")
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f"{CONFIG}: the rank of {module} is {rank!r}, not a positive whole number")
    return alpha / (math.sqrt(rank) if told.get("use_rslora") else rank)


def token_rows(told: Mapping[str, Any], module: str) -> tuple[int, ...]:
    """The rows of an embedding that the config says were trained."""
    given = told.get("token_indices") or told.get("trainable_token_indices")
    if isinstance(given, Mapping):
        given = next((rows for name, rows in given.items() if module == name or module.endswith(f".{name}")), None)
    if not isinstance(given, list) or not all(type(row) is int and row >= 0 for row in given):
        raise CheckpointError(f"{CONFIG}: the trained tokens of {module} are {str(given)[:60]}, not a list of rows")
    if len(set(given)) < len(given):
        raise CheckpointError(f"{CONFIG}: the trained tokens of {module} hold a row twice")
    return tuple(given)
