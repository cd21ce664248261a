"""LION's mixture of adapters, as headers and JSON tell it: tensors, hosts, options, and the text of its soft prompt.

Chen et al., "LION: Empowering Multimodal Large Language Model with Dual-Level Visual Knowledge", CVPR 2024 (arXiv
2311.11860), section 3.2 and its code: every feed-forward layer has two bottleneck adapters beside it, which read the
residual stream before the layer's norm, and a task chooses what each is heard with, channel by channel. `config`:

    stacks           layers by stack: {"encoder": 24, "decoder": 24} of a T5, {"language": 32} of a decoder
    width, bottleneck
    adapters         2, with a router of tasks; or 1, without
    adapter_norm     `none`; `in`, `out`: a LayerNorm before an adapter, or behind it
    adapter_scale    `learned`: a number in each adapter; or the number
    hint             whether there is a `soft_prompt_hint`, the vector that announces tags
    task             `image` or `region`, which rows of the router are heard unless a question asks for the other
    stack            null, or the side of an encoder-decoder's adapters that a decoder takes (our choice)
    activation       null, or what the host's feed-forward layers compute with instead of their own activation
    onto             null, or by stack the block that each adapter is heard at, where they are no longer one a block
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from fuse.families import Basis

TASKS = ("region", "image")  # in the order of the router's rows
STACKS = (("language",), ("encoder", "decoder"))
SIDES = ("encoder", "decoder")
NORMS = ("none", "in", "out")
ACTIVATIONS = ("host", "gelu")
OPTIONS: Mapping[str, tuple[Any, ...]] = {"task": TASKS, "stack": SIDES, "activation": ACTIVATIONS}
SLOTS = ("ffn_residual",)
DEFAULTS: Mapping[str, Any] = {
    "adapters": 2, "adapter_norm": "none", "adapter_scale": "learned", "hint": False, "task": "image", "stack": None,
    "activation": None, "onto": None,
}  # fmt: skip
HINT = "soft_prompt_hint"
ENCODER_DECODERS = frozenset({"t5"})
_LIMITS = {"width": 1 << 20, "bottleneck": 1 << 20, "layers": 10_000}


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every key that a graft reads. Raises KeyError or ValueError for what is no config of LION."""
    made = {**DEFAULTS, **config}
    stacks = made["stacks"]
    names = next((names for names in STACKS if isinstance(stacks, Mapping) and set(stacks) == set(names)), None)
    if names is None:
        raise ValueError('stacks is neither {"language": LAYERS} nor {"encoder": LAYERS, "decoder": LAYERS}')
    made["stacks"] = stacks = {name: stacks[name] for name in names}  # JSON may come sorted
    for key in ("width", "bottleneck"):
        _whole(key, made[key], _LIMITS[key])
    for name, layers in stacks.items():
        _whole(f"layers of {name}", layers, _LIMITS["layers"])
    if type(made["adapters"]) is not int or made["adapters"] not in (1, 2):
        raise ValueError(f"adapters is {made['adapters']!r}, and there are 1 or 2")
    scale = made["adapter_scale"]
    if scale != "learned" and (type(scale) not in (int, float) or not isfinite(scale)):
        raise ValueError(f"adapter_scale is {scale!r}, neither 'learned' nor a number")
    known = {"adapter_norm": NORMS, "task": TASKS, "stack": (None, *SIDES), "activation": (None, "gelu"),
             "hint": (False, True)}  # fmt: skip
    for key, values in known.items():
        if made[key] not in values:
            raise ValueError(f"{key} is {made[key]!r}, not one of {', '.join(map(str, values))}")
    if made["stack"] and made["stack"] not in stacks:
        raise ValueError(f"stack is {made['stack']!r}, and there are adapters of {', '.join(stacks)}")
    if made["onto"] is not None:
        _check_onto(made["onto"], {side: stacks[side] for side in sides(made)})
    return made


def _check_onto(onto: Any, stacks: Mapping[str, int]) -> None:
    for side, layers in stacks.items():
        blocks = onto.get(side) if isinstance(onto, Mapping) else None
        if not isinstance(blocks, list) or len(blocks) != layers:
            raise ValueError(f"onto has no block for each of the {layers} adapters of {side}")
        if not all(type(block) is int and 0 <= block < _LIMITS["layers"] for block in blocks):
            raise ValueError(f"onto: {side} is {str(blocks)[:60]}, not numbers of blocks")


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of graft.safetensors with its shape. Raises KeyError or ValueError for a config that says none."""
    made = checked(config)
    width, inner = made["width"], made["bottleneck"]
    one = {"down_proj.weight": (inner, width), "down_proj.bias": (inner,),
           "up_proj.weight": (width, inner), "up_proj.bias": (width,)}  # fmt: skip
    if made["adapter_scale"] == "learned":
        one["scale"] = (1,)
    if made["adapter_norm"] != "none":
        one |= {f"adapter_layer_norm_before.{name}": (width,) for name in ("weight", "bias")}
    layer = {f"adapters.{k}.{name}": shape for k in range(made["adapters"]) for name, shape in one.items()}
    if made["adapters"] == 2:
        layer |= {"router_ratio1": (2, width), "router_ratio2": (2, width)}
    found = {
        f"{stack}.{i}.{name}": shape
        for stack in sides(made) for i in range(made["stacks"][stack]) for name, shape in layer.items()
    }  # fmt: skip
    return found | ({HINT: (width,)} if made["hint"] else {})


def sides(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The stacks whose adapters are taken: all of them, or the one that `stack` names."""
    return (config["stack"],) if config.get("stack") else tuple(config["stacks"])


def why_not(config: Mapping[str, Any], host: Basis) -> str:
    """One sentence why the host cannot take the adapters (its name goes in front), or ""."""
    made = checked(config)
    if host.hidden_size != made["width"]:
        return f"has hidden size {host.hidden_size}, and LION's adapters were made for {made['width']}"
    two = host.family in ENCODER_DECODERS
    held = {"encoder": host.layers, "decoder": host.sizes["m"]} if two else {"language": host.layers}
    if two and tuple(made["stacks"]) != SIDES:
        return "is an encoder and a decoder, and LION's adapters were made for a decoder alone"
    if two and made["stack"]:
        return f"is an encoder and a decoder, and `stack: {made['stack']}` takes the adapters of one of them"
    if not two and tuple(made["stacks"]) == SIDES and not made["stack"]:
        return (
            "is a decoder alone, and LION's adapters were made for an encoder and a decoder: `stack: encoder` or "
            "`stack: decoder` takes those of one"
        )
    for name, side in zip(held, sides(made), strict=True):
        onto = made["onto"][side] if made["onto"] else range(made["stacks"][side])
        if max(onto) >= held[name] or (not made["onto"] and len(onto) != held[name]):
            where = f" in its {name}" if two else ""
            return f"has {held[name]} layers{where}, and LION's adapters are for {max(onto) + 1}"
    return ""


def configured(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The donor's config with a recipe's options: what config.json of the output holds.

    Raises ValueError with a sentence for options that do not go together.
    """
    given = {key: value for key, value in options.items() if key in OPTIONS and value is not None}
    if "task" in given and checked(config)["adapters"] == 1:
        raise ValueError("`task` chooses between two adapters, and this donor has one in each layer")
    if "stack" in given and "language" in config["stacks"]:
        raise ValueError("`stack` chooses a side of an encoder-decoder, and this donor was cut from a decoder alone")
    if "activation" in given:
        given["activation"] = None if given["activation"] == "host" else given["activation"]
    return checked({**config, **given})


def host_settings(config: Mapping[str, Any], host: Basis) -> dict[str, Any]:
    """What changes in the text config of the output while the graft is heard: the activation of a T5's layers.

    LION's code computes the layers of its FLAN-T5 with the exact GELU, where FLAN-T5's own config says the tanh form.
    """
    return {"dense_act_fn": config["activation"]} if config.get("activation") and host.family == "t5" else {}


def why_no_option(options: Mapping[str, Any], host: Basis) -> str:
    """Why an option that the recipe states does nothing on this host, or ""."""
    if options.get("activation") == "gelu" and host.family != "t5":
        return "`activation: gelu` is for the feed-forward layers of a T5, and the host is none"
    return ""


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """`hint`, which stands only where a question with tags is written."""
    return {"hint": 0} if config.get("hint") else {}


def folded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the graft whose two adapters of a layer are one, for the task of `config` (`lion_fold`).

    Raises ValueError with a sentence for adapters that do not fold.
    """
    made = checked(config)
    if made["adapters"] == 1:
        raise ValueError("LION's donor has one adapter in each layer, and there is nothing to fold")
    if made["adapter_norm"] == "out":
        raise ValueError("two adapters with a norm behind each do not fold into one")
    return {**made, "adapters": 1, "bottleneck": 2 * made["bottleneck"], "adapter_scale": 1.0}


def fold_sources(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The donor's tensors that a tensor of the folded graft is made of. config: the donor's with the recipe's task."""
    if name == HINT:
        return (HINT,)
    layer, _, inner = name.partition(".adapters.0.")
    wanted = {"down_proj.weight": ("down_proj.weight",), "down_proj.bias": ("down_proj.bias",),
              "up_proj.weight": ("up_proj.weight",), "up_proj.bias": ("up_proj.bias",)}.get(inner, ())  # fmt: skip
    if config.get("adapter_norm") == "in":
        norm = ("adapter_layer_norm_before.weight", "adapter_layer_norm_before.bias")
        wanted += {"down_proj.weight": norm[:1], "down_proj.bias": ("down_proj.weight", norm[1])}.get(inner, ())
        wanted = wanted or (inner,)
    heard = inner.startswith("up_proj")
    scale = ("scale",) if heard and config.get("adapter_scale", "learned") == "learned" else ()
    found = [f"{layer}.adapters.{k}.{one}" for k in range(2) for one in (*wanted, *scale)]
    return (*found, *(f"{layer}.router_ratio{k}" for k in (1, 2) if heard))


def phrase(question: str, tags: str | Sequence[str], token: str = "") -> str:
    """The question behind LION's sentence about tags (section 3.3).

    tags: of the image, a text or one by one; without any, the question alone. token: the placeholder of the hint; a
    donor that has no hint gets the sentence without its first words (our choice).
    """
    words = tags if isinstance(tags, str) else ", ".join(tags)
    if not words.strip():
        return question
    begin = f"According to {token}, you are" if token else "You are"
    return f"{begin} allowed to use or partially use the following tags: [{words}]. {question}"


def _whole(name: str, value: Any, limit: int) -> None:
    if type(value) is not int or not 0 < value <= limit:
        raise ValueError(f"{name} is {value!r}, not a whole number from 1 to {limit:,}")
