"""LaVIN's adapters, as headers and JSON tell them: which tensors there are, and which hosts can take them.

Luo et al., "Cheap and Quick: Efficient Vision-Language Instruction Tuning for Large Language Models", arXiv 2305.15023:
its Mixture-of-Modality Adapter is a RepAdapter (arXiv 2302.08106: two linear layers, the upper one in groups, no
activation) with two upper layers, and a router that weighs them by the prompt's modality. `config` of a donor, under
the names of the authors' options where they have one:

    hidden_size, layers           of the language model
    adapter_dim, groups           hidden channels of an adapter, and into how many groups its upper layers are cut
    adapter_type                  `attn`: adapters in front of attention; `block`: in front of the MLP, too
    adapter_scale, temperature    what adapters are multiplied by, and what their router's scores are divided by
    rounding                      `float16`: route weights are rounded to it, as in the authors' code; `none`
    modality                      whose route a prompt takes: `auto` (has it an image?), `image`, `text`
    parts                         `all`, or only those of the `language` model or of the `tower`
    tower                         null, or {width, layers, adapter_dim, groups, visual_adapter_type, route}

visual_adapter_type: `normal` (one path, no residual), `router`, `router_block`. route: `per_image`: every token of an
image chooses by itself; `official`: by the token in its place in the first image of the batch, which is what the
authors' code does for a batch, since CLIP holds tokens first and images second; for one image both are the same.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from fuse.families import Basis

MODALITIES = ("auto", "image", "text")
ROUNDINGS = ("float16", "none")
ROUTES = ("per_image", "official")
PARTS = ("all", "language", "tower")
PLACES: Mapping[str, tuple[str, ...]] = {"attn": ("adapter_attn",), "block": ("adapter_attn", "adapter_mlp")}
TOWER_PLACES: Mapping[str, tuple[str, ...]] = {
    "normal": ("adapter_attn",), "router": ("adapter_attn",), "router_block": ("adapter_attn", "adapter_mlp"),
}  # fmt: skip
NORMS: Mapping[str, Literal["attention", "ffn"]] = {
    "adapter_attn": "attention",
    "adapter_mlp": "ffn",
}  # adapter -> the norm that it stands behind

OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "parts": PARTS, "modality": MODALITIES, "rounding": ROUNDINGS, "route": ROUTES, "temperature": (),
    "adapter_scale": (),
}  # fmt: skip
SLOTS = ("attention_input", "ffn_input")
COLDEST = 1e-6  # below it a score divided by the temperature may be no number in float32; our choice
DEFAULTS: Mapping[str, Any] = {
    "adapter_scale": 1.0, "temperature": 10.0, "rounding": "float16", "modality": "auto", "parts": "all",
}  # fmt: skip
_ENCODER_DECODERS = frozenset({"t5"})


def has_language(config: Mapping[str, Any]) -> bool:
    """Whether the graft has adapters for the language model."""
    return config.get("parts", "all") != "tower"


def tower_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the config says of adapters for a vision tower (width, layers ...); None where there are none here.

    Where there are some, a recipe must name the branch.
    """
    return config.get("tower") if config.get("parts", "all") != "language" else None


def is_routed(tower: Mapping[str, Any]) -> bool:
    """Whether a tower's adapters have two paths and a router."""
    return tower["visual_adapter_type"] != "normal"


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of graft.safetensors with its shape. Raises KeyError or ValueError for a config that says none."""
    found: dict[str, tuple[int, ...]] = {}
    if has_language(config):
        found["adapter_modality_embedding.weight"] = (2, _whole(config, "hidden_size"))
        places = _one_of(config, "adapter_type", PLACES)
        found.update(_stack("layers", config, _whole(config, "hidden_size"), places, routed=True))
    if tower := tower_of(config):
        places = _one_of(tower, "visual_adapter_type", TOWER_PLACES)
        found.update(_stack("tower", tower, _whole(tower, "width"), places, is_routed(tower)))
    if not found:
        raise ValueError("parts is 'tower', and there are no adapters of a tower")
    return found


def _stack(
    name: str, config: Mapping[str, Any], width: int, places: tuple[str, ...], routed: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim, groups = _whole(config, "adapter_dim"), _whole(config, "groups")
    if dim % groups or width % groups:
        raise ValueError(f"{groups} groups do not divide {dim} channels and a width of {width}")
    for layer in range(_whole(config, "layers", most=10_000)):
        for place in places:
            at = f"{name}.{layer}.{place}"
            yield f"{at}.conv_A.weight", (dim, width, 1)
            yield f"{at}.conv_A.bias", (dim,)
            for path in ("conv_B", "conv_D") if routed else ("conv_B",):
                yield f"{at}.{path}.weight", (width, dim // groups, 1)
                yield f"{at}.{path}.bias", (width,)
            if routed:
                yield f"{at}.expert_weights.weight", (2, width)
                yield f"{at}.expert_weights.bias", (2,)


def why_not(config: Mapping[str, Any], host: Basis) -> str:
    """One sentence why a language model cannot take the adapters, or ""."""
    if not has_language(config):
        return ""
    if host.family in _ENCODER_DECODERS:
        return "is an encoder and a decoder, and LaVIN's adapters belong to one stack of blocks"
    if host.hidden_size != config["hidden_size"]:
        return f"has hidden size {host.hidden_size}, and the adapters were made for {config['hidden_size']}"
    if host.layers != config["layers"]:
        return f"has {host.layers} layers, and there are adapters for {config['layers']}"
    return ""


def why_not_tower(config: Mapping[str, Any], width: int, layers: int) -> str:
    """One sentence why a vision tower of that width and depth cannot take the tower's adapters, or ""."""
    tower = tower_of(config)
    if not tower:
        return "gets none: the graft has no adapters for a vision tower"
    if width != tower["width"]:
        return f"has width {width}, and the tower's adapters were made for {tower['width']}"
    if layers != tower["layers"]:
        return f"has {layers} layers, and there are adapters for {tower['layers']}"
    return ""


def configured(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The donor's config with a recipe's options: what config.json of the output holds.

    options: keys of OPTIONS. Raises ValueError with a sentence for options that do not go together or that are out of
    range.
    """
    made = {**DEFAULTS, **config, **{key: value for key, value in options.items() if key in DEFAULTS}}
    if made["parts"] == "tower" and not config.get("tower"):
        raise ValueError("parts is 'tower', and the donor has no adapters for a vision tower")
    if "route" in options:
        if not tower_of(made) or not is_routed(made["tower"]):
            raise ValueError("`route` is how a tower's router chooses, and no tower has a router here")
        made["tower"] = {**made["tower"], "route": options["route"]}
    if "modality" in options and not has_language(made):
        raise ValueError("`modality` is about the language model's adapters, and parts is 'tower'")
    return checked(made)


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every key that a graft reads. Raises KeyError or ValueError for what cannot be."""
    made = {**DEFAULTS, **config}
    for key in ("temperature", "adapter_scale"):
        if type(made[key]) not in (int, float) or not math.isfinite(made[key]):
            raise ValueError(f"{key} is {made[key]!r}, not a number")
    if made["temperature"] <= 0:
        raise ValueError(f"temperature is {made['temperature']}, and scores are divided by it: it is above 0")
    if made["temperature"] < COLDEST:
        raise ValueError(f"temperature is {made['temperature']:g}, and scores are divided by at least {COLDEST:g}")
    given = {**made, "route": (made.get("tower") or {}).get("route", ROUTES[0])}
    for key, known in OPTIONS.items():
        if known and given[key] not in known:
            raise ValueError(f"{key} is {given[key]!r}, not one of {', '.join(known)}")
    shapes(made)
    return made


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """No placeholders: the modality token stands in no prompt (`fuse.grafts.lavin`)."""
    del config
    return {}


def _whole(config: Mapping[str, Any], key: str, most: int = (1 << 24) - 1) -> int:
    value = config[key]
    if type(value) is not int or value <= 0:
        raise ValueError(f"{key} is {value!r}, not a whole number above 0")
    if value > most:
        raise ValueError(f"{key} is {str(value)[:60]}, and more than {most:,} cannot be")
    return value


def _one_of(config: Mapping[str, Any], key: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    value = config[key]
    if value not in known:
        raise ValueError(f"{key} is {value!r}, not one of {', '.join(known)}")
    return known[value]
