"""The modular visual memory, as headers and JSON tell it: which tensors there are, which hosts and recipes can take it.

MKS2 (arXiv 2311.15759) puts a feed-forward network beside the MLP of every block and a soft mixture over the two. Its
authors published neither code nor weights, so this format is ours. `config` of a donor:

    hidden_size, inner_size     d and h of the memory's matrices
    layers                      the blocks that have one, in order; an encoder's blocks come before its decoder's
    activation, gated, bias     down(act(gate x) * up x) where gated, else down(act(up x)); bias: on all of them
    norm, norm_eps              `host`: it reads what the MLP reads; `rms`, `layer`: the residual, behind its own norm
    place                       where it stood when it was trained: `beside` the MLP (their sum) or `instead` of it
    router                      how the two are mixed where a recipe does not say; only a trained `softmax` has tensors
    temperature                 what the scores of `prompts` and `arrow` are divided by (1 where left out)
    lora                        null, or {memory, mlp, alpha, mlp_size, mlp_gated}: ranks of what was trained with the
                                router, on the memory and on the host's MLP of `mlp_size`; alpha as in PEFT

    layers.{l}.up.weight [h, d]  .gate.weight [h, d]  .down.weight [d, h]  .norm.weight [d]  .router.weight [2, d]
    layers.{l}.rows.weight [2, d]  (made at merge time)
    layers.{l}.memory_lora.{up,gate,down}.{down,up}  layers.{l}.mlp_lora.{up,gate,down}.{down,up}

and biases. The first row of a router is the memory's, the second the MLP's.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fuse.families import Basis
from fuse.grafts.lora_names import depth, stacks

ROUTERS = ("softmax", "additive", "token_type", "prompts", "arrow", "none")
PLACES = ("beside", "instead")
NORMS = ("host", "rms", "layer")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu")
MADE = ("prompts", "arrow")  # routers whose rows are made at merge time
FIXED = {"softmax": "instead", "additive": "beside", "none": "instead"}  # routers that say where the memory stands
OPTIONS: Mapping[str, tuple[Any, ...]] = {"router": ROUTERS, "place": PLACES, "temperature": (), "prompts": ()}
SLOTS = ("ffn", "ffn_residual", "linear")
COLDEST = 1e-6  # below it a score divided by the temperature may be no number in float32; our choice
_KEYS = {"hidden_size", "inner_size", "layers", "activation", "gated", "bias", "norm", "place", "router"}
_MORE = {"norm_eps", "lora", "temperature"}
_MOST = 1 << 24


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with `norm_eps`, `lora` and `temperature`. Raises ValueError for one that describes no memory."""
    if lacking := sorted(_KEYS - config.keys()):
        raise ValueError(f"{lacking[0]} is missing")
    if extra := sorted(config.keys() - _KEYS - _MORE):
        raise ValueError(f"{extra[0]!r} is nothing that a memory has")
    for key in ("hidden_size", "inner_size"):
        _whole(key, config[key])
    for key, known in (("activation", ACTIVATIONS), ("norm", NORMS), ("place", PLACES), ("router", ROUTERS)):
        if config[key] not in known:
            raise ValueError(f"{key} is {config[key]!r}, not one of {', '.join(known)}")
    for key in ("gated", "bias"):
        if type(config[key]) is not bool:
            raise ValueError(f"{key} is {config[key]!r}, not true or false")
    layers = config["layers"]
    whole = isinstance(layers, list) and all(type(n) is int and 0 <= n < 10_000 for n in layers)
    if not (whole and layers and layers == sorted(set(layers))):
        raise ValueError(f"layers is {str(layers)[:60]}, not numbers of blocks in rising order")
    made = {"norm_eps": 1e-6, "lora": None, "temperature": 1.0, **config}
    for key in ("norm_eps", "temperature"):
        _positive(key, made[key])
    if made["temperature"] < COLDEST:
        raise ValueError(f"temperature is {made['temperature']:g}, and scores are divided by at least {COLDEST:g}")
    if made["lora"] is not None:
        _check_lora(made["lora"])
    return made


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of graft.safetensors, or of the output's `grafts.<name>.`. Raises what `checked` raises."""
    config = checked(config)
    one = dict(_of_block(config))
    return {f"layers.{number}.{name}": shape for number in config["layers"] for name, shape in one.items()}


def _of_block(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, h, lora = config["hidden_size"], config["inner_size"], config["lora"]
    for name, (inputs, outputs) in matrices(d, h, config["gated"]).items():
        yield f"{name}.weight", (outputs, inputs)
        if config["bias"]:
            yield f"{name}.bias", (outputs,)
    if config["norm"] != "host":
        yield "norm.weight", (d,)
    if config["norm"] == "layer":
        yield "norm.bias", (d,)
    if scores := scores_of(config):
        yield f"{scores}.weight", (2, d)
    if scores and config["router"] != "arrow":
        yield f"{scores}.bias", (2,)
    if config["router"] == "softmax" and lora:
        sizes = {"memory": (h, config["gated"]), "mlp": (lora["mlp_size"], lora["mlp_gated"])}
        for expert, (inner, gated) in sizes.items():
            for name, (inputs, outputs) in matrices(d, inner, gated).items() if lora[expert] else ():
                yield f"{expert}_lora.{name}.down", (lora[expert], inputs)
                yield f"{expert}_lora.{name}.up", (outputs, lora[expert])


def matrices(d: int, h: int, gated: bool) -> dict[str, tuple[int, int]]:
    """The matrices of a feed-forward network with how many numbers they take and give."""
    return {"up": (d, h), **({"gate": (d, h)} if gated else {}), "down": (h, d)}


def scores_of(config: Mapping[str, Any]) -> str:
    """The tensors that a token's shares are computed with: `router` (trained), `rows` (made at merge time) or ""."""
    return "router" if config["router"] == "softmax" else "rows" * (config["router"] in MADE)


def configured(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The donor's config with a recipe's options: what config.json of the output holds.

    A router that the recipe exchanges takes the low-rank changes with it, which were trained for it. Raises ValueError
    with a sentence for options that do not go together.
    """
    made = checked(config)
    asked = {key: value for key, value in options.items() if key in OPTIONS and value is not None}
    router = asked.get("router", made["router"])
    if router not in ROUTERS:
        raise ValueError(f"router is {router!r}, not one of {', '.join(ROUTERS)}")
    if made["router"] in MADE:
        raise ValueError(f"router {made['router']} is a recipe's and not a donor's: its rows are made of a host")
    if router == "softmax" and made["router"] != "softmax":
        raise ValueError("router softmax needs the trained w_s and b_s of its donor, and this donor has none")
    if "place" in asked and router in FIXED:
        where = {"beside": "beside", "instead": "instead of"}[FIXED[router]]
        raise ValueError(f"router {router} puts the memory {where} the MLP, so `place` does not go with it")
    if "temperature" in asked and router not in MADE:
        raise ValueError(f"`temperature` divides the scores of prompts and arrow, and the router is {router}")
    if router == "prompts":
        check_prompts(asked.get("prompts"))
    elif "prompts" in asked:
        raise ValueError(f"`prompts` is for router prompts, and the router is {router}")
    place = FIXED.get(router) or asked.get("place", made["place"])
    lora = made["lora"] if router == "softmax" else None
    return checked({**made, "router": router, "place": place, "lora": lora, **_only(asked, "temperature")})


def made(config: Mapping[str, Any]) -> list[str]:
    """Names of the output's tensors that no donor brings: a router's rows, which `mks2_rows.make_rows` makes."""
    return [name for name in shapes(config) if ".rows." in name]


def check_prompts(prompts: Any) -> None:
    """ValueError unless these are lists of texts under `positive` and `negative`, neither empty."""
    if not isinstance(prompts, Mapping) or prompts.keys() != {"positive", "negative"}:
        raise ValueError("router prompts needs `prompts` with two lists of texts, `positive` and `negative`")
    for key, texts in prompts.items():
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)):
            raise ValueError(f"`prompts`: {key} is not a list of texts")


def blocks_of(host: Basis) -> list[tuple[str, int]]:
    """(stack, number in it) of every block of a language model; an encoder's come before its decoder's."""
    return [(name, number) for name in stacks(host) for number in range(depth(host, name))]


def is_gated(host: Basis) -> bool:
    """Whether the host's MLPs are gated."""
    return all("gate" in stack.linears for stack in stacks(host).values())


def why_not(config: Mapping[str, Any], host: Basis) -> str:
    """One sentence why a language model cannot take the memory, or ""."""
    config = checked(config)
    if host.hidden_size != config["hidden_size"]:
        return f"has hidden size {host.hidden_size}, and the memory was made for {config['hidden_size']}"
    if (count := len(blocks_of(host))) <= config["layers"][-1]:
        return f"has {count} blocks, and the memory has one for block {config['layers'][-1]} (the first is 0)"
    lora = config["lora"]
    if lora and lora["mlp"] and config["router"] == "softmax":
        if host.intermediate_size != lora["mlp_size"]:
            size, wanted = host.intermediate_size, lora["mlp_size"]
            return f"has an MLP of {size}, and the low-rank change of it was made for {wanted}"
        if lora["mlp_gated"] != is_gated(host):
            told = ("without a gate", "one with it") if lora["mlp_gated"] else ("with a gate", "one without it")
            return f"has an MLP {told[0]}, and the low-rank change was made for {told[1]}"
    return ""


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """No placeholders."""
    del config
    return {}


def needs_images(config: Mapping[str, Any]) -> bool:
    """Whether it is heard at visual tokens alone, so that a model without eyes would never hear it."""
    return config["router"] == "token_type"


def _only(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {key: values[key]} if key in values else {}


def _whole(key: str, value: Any) -> None:
    if type(value) is not int or not 0 < value < _MOST:
        raise ValueError(f"{key} is {str(value)[:60]!r}, not a whole number from 1 to {_MOST - 1:,}")


def _positive(key: str, value: Any) -> None:
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{key} is {value!r}, not a number above 0")


def _check_lora(lora: Any) -> None:
    keys = {"memory", "mlp", "alpha", "mlp_size", "mlp_gated"}
    if not isinstance(lora, Mapping) or lora.keys() != keys:
        raise ValueError(f"lora has {', '.join(sorted(keys))}, and nothing else")
    for key in ("memory", "mlp"):
        if type(lora[key]) is not int or not 0 <= lora[key] < _MOST:
            raise ValueError(f"lora: {key} is {lora[key]!r}, not a rank")
    if type(lora["mlp_gated"]) is not bool:
        raise ValueError(f"lora: mlp_gated is {lora['mlp_gated']!r}, not true or false")
    _whole("lora: mlp_size", lora["mlp_size"])
    _positive("lora: alpha", lora["alpha"])
