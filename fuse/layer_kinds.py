"""What a text config says of each layer: which look through a window, which have no positions. As lists, and how the
lists of a stack of layers come from those of its members."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fuse import families
from fuse.anatomy import Member
from fuse.errors import CheckpointError
from fuse.families.rope import short
from fuse.layers import PATH, Stack
from fuse.recipe_yaml import LoadedRecipe
from fuse.sizes import counted

KINDS, ROTATED = "layer_types", "no_rope_layers"
FULL, SLIDING = "full_attention", "sliding_attention"
# what stands for a list where the config has none, and says nothing once the list is written
SHORT = ("sliding_window_pattern", "_sliding_window_pattern", "no_rope_layer_interval")
FIRST_SLIDING = "max_window_layers"
# settings under which a layer does something else at another place
BY_NUMBER = {
    "scale_attn_by_inverse_layer_idx": "divides the attention of each layer by its number",
    "num_kv_shared_layers": "has layers that read the keys and values of others",
}

Config = Mapping[str, Any]


def _window(config: Config, depth: int, most: int) -> list[str]:
    """Qwen: full attention up to `max_window_layers`, a window behind it where one is used."""
    used = config.get("use_sliding_window", False) and config.get("sliding_window", 4096) is not None
    first = config.get(FIRST_SLIDING, most) if used else depth
    return [SLIDING if n >= first else FULL for n in range(depth)]


def _every(config: Config, depth: int, every: int) -> list[str]:
    """Gemma and Cohere: full attention in every so many layers."""
    every = config.get("sliding_window_pattern", every)
    return [SLIDING if (n + 1) % every else FULL for n in range(depth)]


def _by_rotation(config: Config, depth: int) -> list[str]:
    """SmolLM3: a window, where one is used, in the layers without positions."""
    used = config.get("use_sliding_window", False) and config.get("sliding_window") is not None
    return [SLIDING if used and not rotated else FULL for rotated in _rotated(config, depth)]


def _rotated(config: Config, depth: int) -> list[int]:
    """SmolLM3: 1 for a layer with positions, 0 for one without, which is every fourth."""
    every = config.get("no_rope_layer_interval", 4)
    return config.get(ROTATED) or [int((n + 1) % every != 0) for n in range(depth)]


# text model_type -> what its class makes of a config without `layer_types`; one that is not here has no kinds
CLASSES: dict[str, Callable[[Config, int], list[str]]] = {
    "qwen2": partial(_window, most=28), "qwen3": partial(_window, most=28),
    "qwen2_vl": partial(_window, most=80), "qwen2_vl_text": partial(_window, most=80),
    "qwen2_5_vl": partial(_window, most=80), "qwen2_5_vl_text": partial(_window, most=80),
    "gemma2": partial(_every, every=2), "gemma3_text": partial(_every, every=6), "cohere2": partial(_every, every=4),
    "smollm3": _by_rotation,
}  # fmt: skip


def per_layer(member: Member) -> dict[str, list[Any]]:
    """Every list of the member's text config with one entry for each layer, as its class completes it.

    Raises CheckpointError for a list of another length, or one that is not known.
    """
    where = str(member.folder)
    config, depth = families.text_config(member.checkpoint.config, member.family, where), member.basis.layers
    kind = families.text_type_of(member.checkpoint.config, member.family, where)
    found: dict[str, list[Any]] = {}
    if kind in CLASSES:
        found[KINDS] = config.get(KINDS) or CLASSES[kind](config, depth)
    if kind == "smollm3":
        found[ROTATED] = _rotated(config, depth)
    for key, value in config.items():
        if isinstance(value, list) and "layer" in key and key not in found and not key.startswith(("mm_", "vision_")):
            told = f"{key} is {short(value)}, and what it says of each layer cannot be stacked"
            raise CheckpointError(f"config.json: {told}", where=where)
    for key, values in found.items():
        if len(values) != depth:
            raise CheckpointError(
                f"config.json: {key} tells of {counted(len(values), 'layer')}, and there are {depth}", where=where
            )
    return found


def stacked_config(loaded: LoadedRecipe, stack: Stack, host: Member, members: Mapping[str, Member]) -> dict[str, Any]:
    """What the output's text config says and the host's does not; None for a key that it no longer has.

    Raises RecipeError where members of one layer are of different kinds, CheckpointError as `per_layer` and for a
    setting under which layers cannot move.
    """
    if stack.is_in_place(host) and all(name == host.name for layer in stack.layers for name in layer):
        return {}
    lists = {name: per_layer(members[name]) for name in dict.fromkeys(n for layer in stack.layers for n in layer)}
    if not stack.is_in_place(host):
        for name in lists:
            _check_numbers(members[name])
    made: dict[str, Any] = {key: _stacked(loaded, stack, key, lists) for key in lists[next(iter(lists))]}
    config = families.text_config(host.checkpoint.config, host.family, str(host.folder))
    made |= {key: None for key in SHORT if key in config}
    if FIRST_SLIDING in config:
        made[FIRST_SLIDING] = _first_sliding(made[KINDS])
    return {host.text.keys.get("layers", "num_hidden_layers"): len(stack.layers), **made}


def _check_numbers(member: Member) -> None:
    where = str(member.folder)
    config = families.text_config(member.checkpoint.config, member.family, where)
    for key, told in BY_NUMBER.items():
        if config.get(key):
            raise CheckpointError(f"config.json: {key}: {member.name} {told}, so they stay in place", where=where)


def _stacked(loaded: LoadedRecipe, stack: Stack, key: str, lists: Mapping[str, Mapping[str, list[Any]]]) -> list[Any]:
    """One list of the output: each layer's entry, which all that it is made of share."""
    made = []
    for layer, entry in zip(stack.layers, stack.entries, strict=True):
        (first, number), *others = layer.items()
        value = lists[first][key][number]
        for name, other in others:
            if lists[name][key][other] != value:
                told = f"layer {number} of {first} has {key} {value}, and layer {other} of {name} has "
                raise loaded.error((*PATH, entry), f"{told}{lists[name][key][other]}", "merge layers of one kind")
        made.append(value)
    return made


def _first_sliding(kinds: list[str]) -> int | None:
    """Behind how many layers the windows begin, where they end the stack; None where `layer_types` alone can say."""
    count = kinds.index(SLIDING) if SLIDING in kinds else len(kinds)
    return count if all(kind == SLIDING for kind in kinds[count:]) else None
