"""LLaMA-Adapter as a graft: prompts for the attention of the last blocks, and what version 2 adds to them.

Version 1 is arXiv 2303.16199 (section 3: prompts with zero-initialised gates), version 2 arXiv 2304.15010 (section 3:
biases, norms, visual prompts). config:

    hidden_size, depth, heads   of the language model it was trained in
    rows                        of `query`: prompts of all blocks that have any, the lowest block's first
    length                      prompts of one block, so that the last rows / length blocks have prompts
    gate                        how a gate is read: "tanh", "tanh_float16" (rounded to it, as the training file of
                                version 1 does) or "raw" (as its inference file does)
    new_gate                    whether every block has a second, common gate
    linears                     projection -> {"in", "out", "rank" (0: no LoRA), "bias"}, in every block
    norms                       which norms have weights of their own: "attention", "ffn", "final"; and norm_eps
    visual                      null, or {"features", "width", "depth", "heads", "inner"} of the blocks that turn an
                                image's features into `length` visual prompts

Tensors: `query` [rows, hidden_size], `gate` [depth, heads], `new_gate` [depth], `layers.{i}.{projection}.down`, `.up`
and `.bias`, `norms.{i}.attention` and `.ffn`, `norms.final`, and under `visual.` those of
`fuse.grafts.llama_adapter_visual`. torch is not imported.
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.projector_kinds import describe
from fuse.families import Basis
from fuse.grafts.lora_names import has, sizes, stacks

GATES = ("tanh", "tanh_float16", "raw")
OPTIONS: Mapping[str, tuple[Any, ...]] = {"gate": GATES, "length": ()}
SLOTS = ("attention_prefix",)  # and `linear` and `norm` of version 2
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = ("attention", "ffn", "final")
DEEPEST = 10_000  # blocks
_LAYER_NORMS = frozenset({"gpt2", "opt"})  # families whose norms have a bias and a mean


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of graft.safetensors. Raises KeyError or ValueError for a config that describes no adapter."""
    depth, width = _whole(config, "depth", most=DEEPEST), _whole(config, "hidden_size")
    found: dict[str, tuple[int, ...]] = {
        "query": (_whole(config, "rows"), width),
        "gate": (depth, _whole(config, "heads")),
    }
    prompted(config)
    if config["gate"] not in GATES:
        raise ValueError(f"gate is {config['gate']!r}, not one of {', '.join(GATES)}")
    if config["new_gate"]:
        found["new_gate"] = (depth,)
    for name, row in config["linears"].items():
        if name not in LINEARS:
            raise ValueError(f"{name!r} is no projection (known: {', '.join(LINEARS)})")
        inputs, outputs, rank = _whole(row, "in"), _whole(row, "out"), _whole(row, "rank", least=0)
        for layer in range(depth):
            if rank:
                found[f"layers.{layer}.{name}.down"] = (rank, inputs)
                found[f"layers.{layer}.{name}.up"] = (outputs, rank)
            if row["bias"]:
                found[f"layers.{layer}.{name}.bias"] = (outputs,)
    if unknown := set(config["norms"]) - set(NORMS):
        raise ValueError(f"{min(unknown)!r} is no norm (known: {', '.join(NORMS)})")
    if config["norms"] and not (type(config["norm_eps"]) is float and 0 <= config["norm_eps"] < 1):
        raise ValueError(f"norm_eps is {config['norm_eps']!r}, not a small number")
    inner = [name for name in ("attention", "ffn") if name in config["norms"]]
    found |= {f"norms.{layer}.{name}": (width,) for layer in range(depth) for name in inner}
    found |= {"norms.final": (width,)} if "final" in config["norms"] else {}
    return found | (visual_shapes(config["visual"], config) if config["visual"] else {})


def visual_shapes(visual: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of `fuse.grafts.llama_adapter_visual.VisualPrompts` under `visual.`."""
    features, width, inner = (_whole(visual, key) for key in ("features", "width", "inner"))
    if width % _whole(visual, "heads"):
        raise ValueError(f"{visual['heads']} heads do not divide a width of {width}")
    layers = {"proj_in": (width, features), "proj_out": (config["hidden_size"], width)}
    norms = {"norm_in": width, "norm_out": config["hidden_size"]}
    for i in range(_whole(visual, "depth", most=DEEPEST)):
        at = f"blocks.{i}"
        layers |= {f"{at}.qkv": (3 * width, width), f"{at}.proj": (width, width)}
        layers |= {f"{at}.fc1": (inner, width), f"{at}.fc2": (width, inner)}
        norms |= {f"{at}.norm1": width, f"{at}.norm2": width}
    found: dict[str, tuple[int, ...]] = {"visual.query": (_whole(config, "length"), width)}
    for name, shape in layers.items():
        found |= {f"visual.{name}.weight": shape, f"visual.{name}.bias": shape[:1]}
    for name, size in norms.items():
        found |= {f"visual.{name}.weight": (size,), f"visual.{name}.bias": (size,)}
    return found


def prompted(config: Mapping[str, Any]) -> range:
    """The blocks that have prompts: the last rows / length ones. Raises ValueError where those are no such number."""
    rows, length, depth = (_whole(config, key) for key in ("rows", "length", "depth"))
    if rows % length or rows // length > depth:
        raise ValueError(f"{rows} prompts of {length} each are those of {rows / length:g} blocks, not of 1 to {depth}")
    return range(depth - rows // length, depth)


def why_not(config: Mapping[str, Any], host: Basis) -> str:
    """Why the host cannot take it, or ""."""
    held = stacks(host)
    if "language" not in held:
        return "has no stack of blocks whose attention takes prompts"
    for told, here, there in (
        ("hidden size {}", host.hidden_size, config["hidden_size"]),
        ("{} layers", host.layers, config["depth"]),
        ("{} heads", host.heads, config["heads"]),
    ):
        if here != there:
            return f"has {told.format(here)}, and the adapter was trained for {there}"
    for name, row in config["linears"].items():
        if not has(held["language"], name):
            return f"has no projection {name!r}, which the adapter changes"
        if (row["in"], row["out"]) != (made := sizes(host, name)):
            return f"makes {made[1]} numbers of {made[0]} in {name}, and the adapter {row['out']} of {row['in']}"
    if config["norms"] and host.family in _LAYER_NORMS:
        return "has layer norms, and the adapter's are root-mean-square norms"
    return ""


def configured(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The graft's JSON in config.json. Raises ValueError for a length that the prompts cannot have."""
    made = {**config, **{key: value for key, value in options.items() if key in OPTIONS}}
    if config["visual"] and made["length"] != config["length"]:
        raise ValueError(f"length is {made['length']!r}, and an image gives {config['length']} visual prompts")
    shapes(made)
    return made


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """No placeholders: prompts are read by attention alone and stand at no position."""
    del config
    return {}


def looks(config: Mapping[str, Any]) -> bool:
    """Only version 2 looks at images; the prompts of version 1 are always the same."""
    return config["visual"] is not None


def why_no_image(config: Mapping[str, Any], branch: Mapping[str, Any]) -> str:
    """Why version 2 cannot look through a branch; "" where it can. branch: its JSON, as `EncoderBranch` takes it."""
    projector: Any = branch.get("projector")
    told = isinstance(projector, Mapping) and "kind" in projector and "config" in projector
    described = describe(projector["kind"], projector["config"], "") if told else None
    if described is None or described.reads.what != "projected":
        return "it does not show CLIP's projected tokens, as the projector of `fuse import llama_adapter` does"
    wide, wanted = described.width, config["visual"]["features"]
    return "" if wide == wanted else f"its tokens have {wide} numbers, and the adapter takes {wanted}"


def _whole(config: Mapping[str, Any], key: str, least: int = 1, most: int = (1 << 31) - 1) -> int:
    value = config[key]
    if type(value) is not int or value < least:
        raise ValueError(f"{key} is {value!r}, not a whole number of at least {least}")
    if value > most:
        raise ValueError(f"{key} is {str(value)[:60]}, and more than {most:,} cannot be")
    return value
