"""LaVIN's checkpoints: adapters of the language model and of CLIP, their routers, the modality token, the projector.

The authors save every parameter whose name holds "adapter" (util/misc.py), as float32: `layers.{i}.adapter_attn.*`,
`backbone.visual.transformer.resblocks.{i}.adapter_attn.*`, `adapter_modality_embedding.weight` and `adapter_proj.*`.
All of them read what a norm gives, or give to the residual stream, and how rotary channels are paired is no matter of
either: nothing is permuted. What shapes do not tell are the router's temperature and the adapters' scale, options of
the authors' scripts, which they store in the file (`args`). Without them, and unless the caller says: 5 for 13B models
(hidden size 5120) and 10 otherwise, and 1, as in the authors' scripts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fuse.errors import CheckpointError, RecipeError
from fuse.grafts import lavin_files
from fuse.importers import About, Imported, Piece

if TYPE_CHECKING:
    from torch import Tensor

HELP = "LaVIN's adapters of LLaMA and of CLIP, with its projector (checkpoint-*.pth)"
OPTIONS: Mapping[str, tuple[Any, ...]] = {"temperature": (), "adapter_scale": ()}

_TOWER = "backbone.visual.transformer.resblocks."
_PROJECTOR = "adapter_proj."
_EVERY = 4  # blocks of the tower between two that the projector reads (clip/model.py of the authors)
_HOST = {"model_type": "llama", "norm": "rms"}
_DEEP = 24  # blocks of ViT-L/14, the tower of all published checkpoints


def sort_keys(state: Mapping[str, Tensor], about: About) -> Imported:
    """Adapters, routers and the modality token into a graft, `adapter_proj` into a projector.

    Raises CheckpointError for a file without adapters, tensors that say no sizes, and options that are no numbers. That
    all layers are there and alike is for the framework to see, from the sizes of the first.
    """
    names: dict[str, str] = {}
    projector: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for key in state:
        if key.startswith(_PROJECTOR):
            projector[key] = key.removeprefix(_PROJECTOR)
        elif key.startswith(_TOWER) and ".adapter_" in key:
            names[key] = "tower." + key.removeprefix(_TOWER)
        elif re.match(r"layers\.\d+\.adapter_|adapter_modality_embedding\.", key):
            names[key] = key
        else:
            dropped[key] = "no adapter: language model and encoder come from their own folders"
    if not names:
        raise CheckpointError("holds no adapters of a language model", hint="LaVIN saves them as checkpoint-*.pth")
    config = _graft_config({new: state[old] for old, new in names.items()}, about)
    graft = Piece.renamed("lavin", config, state, names, _HOST)
    if not projector:
        return Imported(graft, dropped=dropped)
    told = _projector_config({new: state[old] for old, new in projector.items()}, config)
    piece = Piece.renamed("lavin", told, state, projector, {**_HOST, "layers": config["layers"]})
    return Imported(graft, piece, dropped=dropped)


def _graft_config(named: Mapping[str, Tensor], about: About) -> dict[str, Any]:
    modality = _matrix(named, "adapter_modality_embedding.weight")
    sizes = _sizes(named, "layers")
    if sizes is None:
        raise CheckpointError("holds no adapters of a language model", hint="LaVIN saves them as checkpoint-*.pth")
    block = "layers.0.adapter_mlp.conv_A.weight" in named
    config = {
        "hidden_size": int(modality.shape[1]), **sizes, "adapter_type": "block" if block else "attn",
        "adapter_scale": _number(about, "adapter_scale", 1.0),
        "temperature": _number(about, "temperature", 5.0 if modality.shape[1] == 5120 else 10.0),
        "tower": _tower_config(named),
    }  # fmt: skip
    try:
        lavin_files.checked(config)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"is no LaVIN checkpoint: {error}") from None
    return config


def _tower_config(named: Mapping[str, Tensor]) -> dict[str, Any] | None:
    sizes = _sizes(named, "tower")
    if sizes is None:
        return None
    kind = "normal"
    if "tower.0.adapter_attn.conv_D.weight" in named:
        kind = "router_block" if "tower.0.adapter_mlp.conv_A.weight" in named else "router"
    width = int(_matrix(named, "tower.0.adapter_attn.conv_A.weight").shape[1])
    return {"width": width, **sizes, "visual_adapter_type": kind}


def _sizes(named: Mapping[str, Tensor], stack: str) -> dict[str, int] | None:
    """Layers, hidden channels and groups of a stack's adapters; None where it has none."""
    found = {int(match[1]) for name in named if (match := re.match(rf"{stack}\.(\d+)\.", name))}
    if not found:
        return None
    down = _matrix(named, f"{stack}.0.adapter_attn.conv_A.weight")
    up = _matrix(named, f"{stack}.0.adapter_attn.conv_B.weight")
    groups = down.shape[0] // up.shape[1] if up.shape[1] else 0
    return {"layers": max(found) + 1, "adapter_dim": int(down.shape[0]), "groups": groups}


def _projector_config(parts: Mapping[str, Tensor], graft: Mapping[str, Any]) -> dict[str, Any]:
    down, up = _matrix(parts, "conv_A.weight", _PROJECTOR), _matrix(parts, "conv_B.weight", _PROJECTOR)
    deep = graft["tower"]["layers"] if graft["tower"] else _DEEP
    return {
        "width": int(down.shape[1]), "hidden": int(down.shape[0]), "hidden_size": int(up.shape[0]),
        "layers": list(range(_EVERY - 1, deep, _EVERY)),
    }  # fmt: skip


def _matrix(named: Mapping[str, Tensor], name: str, prefix: str = "") -> Tensor:
    """A tensor that every such file has, with two dimensions at least."""
    if name not in named:
        raise CheckpointError(f"tensor {_official(prefix + name)!r} is missing")
    if named[name].ndim < 2:
        told = f"tensor {_official(prefix + name)!r} has shape {list(named[name].shape)}, which is no matrix"
        raise CheckpointError(told)
    return named[name]


def _official(name: str) -> str:
    return _TOWER + name.removeprefix("tower.") if name.startswith("tower.") else name


def _number(about: About, key: str, default: float) -> float:
    """A number that `--set` says, else the file's `args`. Raises RecipeError or CheckpointError for what is none."""
    said = key in about.options
    value = about.options[key] if said else about.args.get(key, default)
    problem = ""
    if not isinstance(value, int | float) or not abs(value) < 1e300:
        problem = f"{key} is {value!r}, not a number"
    elif key == "temperature" and value <= 0:
        problem = f"temperature is {value}, and scores are divided by it: it is above 0"
    if problem and said:
        raise RecipeError(problem, where="--set")
    if problem:
        raise CheckpointError(f"args: {problem}", hint=f"--set {key}=NUMBER")
    return float(value)
