"""LLaMA-Adapter's files: version 1's `adapter_query` and gates, version 2's multimodal ones.

The authors' LLaMA turns neighbouring channels of a head together, transformers' turns the two halves of a head: queries
and keys of a converted LLaMA have their channels in another order, and so have the biases and the LoRA that are added
to them here. Prompts go through the host's own projections and need no order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fuse.errors import CheckpointError
from fuse.grafts.llama_adapter_files import GATES, shapes
from fuse.importers import About, Imported, Piece

if TYPE_CHECKING:
    from torch import Tensor

HELP = "LLaMA-Adapter: prompts and gates of version 1, or a multimodal file of version 2 (BIAS-7B.pth)"
OPTIONS: Mapping[str, tuple[Any, ...]] = {"length": (), "gate": GATES, "norm_eps": (), "visual_heads": ()}
LENGTH, VISUAL_HEADS = 10, 16  # of all that the authors published; their files do not tell

LINEARS = {
    "attention.wq": "q", "attention.wk": "k", "attention.wv": "v", "attention.wo": "o",
    "feed_forward.w1": "gate", "feed_forward.w3": "up", "feed_forward.w2": "down",
}  # fmt: skip
VISUAL = {
    "clip_proj": "proj_in", "clip_proj_norm": "norm_in", "visual_proj": "proj_out", "visual_proj_norm": "norm_out",
}  # fmt: skip
INSIDE = {
    "norm1": "norm1", "attn.qkv": "qkv", "attn.proj": "proj", "norm2": "norm2", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
}  # fmt: skip
_LAYER = r"layers\.(\d+)\."
_LORA = {key.replace(".", r"\.lora_"): name for key, name in LINEARS.items()}
# pattern of a key without `llama.` -> its name in the graft; gates, which are stacked, have their layer in front
NAMES = {
    r"adapter_query\.weight": "query",
    _LAYER + r"attention\.(gate|new_gate)": r"\1|\2",
    **{rf"{_LAYER}{key}_l1\.weight": rf"layers.\1.{name}.down" for key, name in _LORA.items()},
    **{rf"{_LAYER}{key}_l2\.weight": rf"layers.\1.{name}.up" for key, name in _LORA.items()},
    **{rf"{_LAYER}{key}\.bias": rf"layers.\1.{name}.bias" for key, name in LINEARS.items()},
    r"visual_query\.weight": "visual.query",
    **{rf"{key}\.(weight|bias)": rf"visual.{name}.\1" for key, name in VISUAL.items()},
    **{rf"visual_blocks\.(\d+)\.{key}\.(weight|bias)": rf"visual.blocks.\1.{n}.\2" for key, n in INSIDE.items()},
}
NORMS = {
    r"norm\.weight": "norms.final",
    _LAYER + r"attention_norm\.weight": r"norms.\1.attention",
    _LAYER + r"ffn_norm\.weight": r"norms.\1.ffn",
}
_FROZEN = "a weight of the base, which training left alone: the host brings its own"
DROPPED = {
    r"clip\..*": "the image encoder, which a recipe names by itself",
    r"(tok_embeddings|output)\.weight|rope\.freqs|layers\.\d+\.(attention|feed_forward)\.w[qkvo123]\.weight": _FROZEN,
}
_SCALED = r"layers\.\d+\.(attention|feed_forward)\.w[qkvo123]_(scale|bias)"


def sort_keys(state: Mapping[str, Tensor], about: About) -> Imported:
    """The graft, and for version 2 a projector that passes CLIP's features on to it.

    Raises CheckpointError for a file without prompts or gates, for a layer that lacks what others have, and for prompts
    that are not those of a whole number of layers.
    """
    second = any(key.startswith("llama.") for key in state)
    named: dict[str, str] = {}  # name in the graft (stacked ones with their layer in front) -> key of the file
    dropped: dict[str, str] = {}
    for key in state:
        own = key.removeprefix("llama.")
        if name := _first({**NAMES, **NORMS} if second else NAMES, own):
            named[name] = key
        elif reason := _first(DROPPED if second else {**DROPPED, **dict.fromkeys(NORMS, _FROZEN)}, own):
            dropped[key] = reason
        elif re.fullmatch(_SCALED, own):
            told = f"tensor {key!r} is of the chat model of version 2, whose input scales fuse does not carry"
            raise CheckpointError(told, hint="fuse imports version 1 and the multimodal files of version 2")
    config = _config(state, named, about)
    tensors: dict[str, Tensor] = {}
    origins: dict[str, tuple[str, ...]] = {}
    for name, shape in _shapes(config).items():
        keys = [f"{layer}|{name}" for layer in range(config["depth"])] if name in ("gate", "new_gate") else [name]
        if lacking := [key for key in keys if key not in named]:
            raise CheckpointError(f"holds nothing for {lacking[0].replace('|', ': ')}, though it does for other layers")
        origins[name] = tuple(named[key] for key in keys)
        tensors[name] = _tensor(name, [state[key] for key in origins[name]], shape, config)
    visual = config["visual"]
    width = {"width": visual["features"], "hidden_size": config["hidden_size"]} if visual else {}
    projector = Piece("llama_adapter", width, {}, {}, {"model_type": "llama", "norm": "rms"}) if visual else None
    cut_from = {"model_type": "llama", "layers": config["depth"], "norm": "rms"}
    return Imported(Piece("llama_adapter", config, tensors, origins, cut_from), projector, None, dropped)


def _first(table: Mapping[str, str], key: str) -> str:
    """What the first pattern that fits makes of a key, or ""."""
    found = ((re.fullmatch(pattern, key), name) for pattern, name in table.items())
    return next((match.expand(name) for match, name in found if match), "")


def _config(state: Mapping[str, Tensor], named: Mapping[str, str], about: About) -> dict[str, Any]:
    gates = _gates(named)
    if "query" not in named or not gates:
        raise CheckpointError("holds no adapter_query.weight with gates of layers", hint=HELP)
    rows, width = _matrix(state, named["query"])
    depth, heads = len(gates), state[gates[0]].numel()
    for layer, key in enumerate(gates):
        if state[key].numel() != heads:
            told = f"the gate of layer {layer} has {state[key].numel()} heads, and that of layer 0 has {heads}"
            raise CheckpointError(told)
    if not heads or width % (2 * heads):
        raise CheckpointError(f"{heads} gates of a layer are not those of heads that share {width} channels")
    linears: dict[str, dict[str, Any]] = {}
    for name in LINEARS.values():
        down, up, bias = (named.get(f"layers.0.{name}.{what}") for what in ("down", "up", "bias"))
        if down and up:
            rank, inputs = _matrix(state, down)
            outputs = _matrix(state, up)[0]
        elif down or up:
            raise CheckpointError(f"holds one factor of the LoRA of {name} in layer 0 and not the other")
        elif bias:
            rank, inputs, outputs = 0, _inputs(name, width, state, named), state[bias].numel()
        else:
            continue
        if name in "qk" and outputs % (width // heads):
            raise CheckpointError(f"changes {outputs} channels of {name}, which are no whole heads of {width // heads}")
        linears[name] = {"in": inputs, "out": outputs, "rank": rank, "bias": bool(bias)}
    norms = [n for n in ("attention", "ffn") if f"norms.0.{n}" in named] + ["final"] * ("norms.final" in named)
    config = {
        "hidden_size": width, "depth": depth, "heads": heads, "rows": rows, "length": LENGTH,
        "gate": about.options.get("gate", GATES[0]), "new_gate": "0|new_gate" in named, "linears": linears,
        "norms": norms, "visual": _visual(state, named, about),
    }  # fmt: skip
    config["length"] = _length(state, named, config, about)
    if norms:
        config["norm_eps"] = _norm_eps(about)
    return config


def _matrix(state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    """Both sizes of a matrix."""
    shape = tuple(state[key].shape)
    if len(shape) != 2:
        raise CheckpointError(f"tensor {key!r} has shape {list(shape)}, which is no matrix")
    return shape


def _inputs(name: str, width: int, state: Mapping[str, Tensor], named: Mapping[str, str]) -> int:
    """Numbers that a projection takes: those of the MLP's inside come from a neighbour's bias."""
    beside = named.get("layers.0.up.bias") or named.get("layers.0.gate.bias")
    return state[beside].numel() if name == "down" and beside else width


def _visual(state: Mapping[str, Tensor], named: Mapping[str, str], about: About) -> dict[str, Any] | None:
    if "visual.query" not in named:
        return None
    blocks = [name for name in named if name.startswith("visual.blocks.") and name.endswith(".fc1.weight")]
    if not blocks or "visual.proj_in.weight" not in named:
        raise CheckpointError("holds visual_query.weight without the blocks that read it")
    width, features = _matrix(state, named["visual.proj_in.weight"])
    return {
        "features": features, "width": width, "depth": len(blocks),
        "heads": about.options.get("visual_heads", VISUAL_HEADS), "inner": _matrix(state, named[blocks[0]])[0],
    }  # fmt: skip


def _length(state: Mapping[str, Tensor], named: Mapping[str, str], config: Mapping[str, Any], about: About) -> int:
    """Prompts of one layer. Version 1's files do not tell, but the gates below the prompts have stayed 0."""
    if config["visual"]:
        return _matrix(state, named["visual.query"])[0]
    if "length" in about.options:
        return about.options["length"]
    zeros = [bool((state[key] == 0).all()) for key in _gates(named)]
    trained = config["depth"] - (zeros.index(False) if False in zeros else 0)
    return config["rows"] // trained if config["rows"] % trained == 0 else LENGTH


def _gates(named: Mapping[str, str]) -> list[str]:
    """The keys of all layers' gates, in order."""
    depth = sum(name.endswith("|gate") for name in named)
    names = [f"{layer}|gate" for layer in range(depth)]
    if lacking := [name for name in names if name not in named]:
        raise CheckpointError(f"holds no gate of layer {lacking[0].partition('|')[0]}, though of {depth} others")
    return [named[name] for name in names]


def _norm_eps(about: About) -> float:
    """Of the option, else of the host, else of the params.json that lies beside the authors' LLaMA."""
    told = (
        about.options.get("norm_eps"), about.host.get("rms_norm_eps"),
        about.beside.get("params.json", {}).get("norm_eps"),
    )  # fmt: skip
    eps = next((value for value in told if value is not None), None)
    if not isinstance(eps, int | float):
        hint = "--host FOLDER, or --set norm_eps=1e-6 as LLaMA's params.json says"
        raise CheckpointError("holds norms, and how small a variance they bear is not known", hint=hint)
    return float(eps)


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    try:
        return shapes(config)
    except ValueError as error:
        hint = "--set length=N: prompts of one layer" if not config["visual"] else "--set visual_heads=N"
        raise CheckpointError(str(error), hint=hint) from None


def _tensor(name: str, found: list[Tensor], shape: tuple[int, ...], config: Mapping[str, Any]) -> Tensor:
    """As the graft holds it; one of another shape as it is, so that it is refused under its own name.

    Gates are [1, H, 1, 1] in the file, second gates [1, 1, 1, 1].
    """
    import torch

    if name in ("gate", "new_gate"):
        fits = all(one.numel() * len(found) == math.prod(shape) for one in found)
        return torch.stack([one.flatten() for one in found]).reshape(shape) if fits else found[0]
    if found[0].shape == shape and re.fullmatch(r"layers\.\d+\.[qk]\.(up|bias)", name):
        return halves(found[0], config["hidden_size"] // config["heads"])
    return found[0]


def halves(rows: Tensor, head_dim: int) -> Tensor:
    """Rows [heads * head_dim, ...] of queries or keys, from pairs that turn together to halves that do."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
