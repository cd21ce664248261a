"""LION's checkpoints: the adapters and routers of FLAN-T5's feed-forward layers, the hint, the vision aggregator.

The authors save what they train (`LION-FlanT5-XL.pth`): `t5_model.{encoder,decoder}.block.{i}.layer.{1|2}.adapter.*`,
`soft_prompt_hint`, `fusion_adapter.*`, `ln_adapter.*`, `adapter_proj.*`, and the Q-Former with its projection. The
Q-Former reads the question in BERT's words and has no branch here: what is imported sees through the aggregator alone,
which the authors' code calls `visual_input: AGGREGATOR`.

What shapes do not tell: the heads of the aggregator (16, the authors' default) and the blocks that it reads (38, 28 and
18); where an adapter's norm stands, and an adapter's scale that is not learned, which `--set` must say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fuse.branches.lion_aggregator_files import LAYERS
from fuse.errors import CheckpointError, RecipeError
from fuse.grafts import lion_files
from fuse.importers import About, Imported, Piece
from fuse.sizes import counted

if TYPE_CHECKING:
    from torch import Tensor

HELP = "LION's adapters of FLAN-T5, its hint for tags and its vision aggregator (LION-FlanT5-XL.pth)"
OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "heads": (), "layers": (), "adapter_norm": ("in", "out"), "adapter_scale": (),
}  # fmt: skip

_ADAPTER = re.compile(
    r"(?:t5_model\.)?(?:(encoder)\.block\.(\d+)\.layer\.1|(decoder)\.block\.(\d+)\.layer\.2)\.adapter\.(.+)"
)
_T5 = {"model_type": "t5", "norm": "rms", "norm_eps": 1e-6}
_HEADS = 16  # of FusionAdapter, by default
_AGGREGATOR = ("fusion_adapter.", "ln_adapter.", "adapter_proj.")
_QFORMER = "of the Q-Former, which reads the question in BERT's words and has no branch here"
_DROPPED = {
    "t5_model.": "a weight of the language model, which comes from its own folder",
    **dict.fromkeys(("Qformer.", "query_tokens", "t5_proj.", "ln_vision."), _QFORMER),
    "visual_encoder.": "a weight of the vision tower, which comes from its own files",
    **dict.fromkeys(("ram_model.", "tag_model."), "of the model that makes tags, which may be any: tags are text"),
}


def sort_keys(state: Mapping[str, Tensor], about: About) -> Imported:
    """Adapters, routers and the hint into a graft, the aggregator into a projector.

    Raises CheckpointError for a file that holds a part of them or does not tell what it should, RecipeError for options
    that are no numbers or that the file contradicts.
    """
    graft: dict[str, str] = {}
    projector: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for key in state:
        if found := _ADAPTER.fullmatch(key):
            side, layer = found[1] or found[3], int(found[2] or found[4])
            graft[key] = f"{side}.{layer}.{found[5]}"
        elif key == lion_files.HINT:
            graft[key] = key
        elif key.startswith(_AGGREGATOR):
            projector[key] = key
        elif reason := next((why for begin, why in _DROPPED.items() if key.startswith(begin)), None):
            dropped[key] = reason
    piece = _graft(state, graft, about)
    depth = piece.config["stacks"]["encoder"] if piece else None
    return Imported(piece, _projector(state, projector, about, depth), dropped=dropped)


def _graft(state: Mapping[str, Tensor], names: Mapping[str, str], about: About) -> Piece | None:
    named = {new: state[old] for old, new in names.items()}
    depths: dict[str, int] = {}
    for name in named:
        side, _, rest = name.partition(".")
        if rest:
            depths[side] = max(depths.get(side, 0), int(rest.partition(".")[0]) + 1)
    if not depths:
        if names:
            raise CheckpointError("holds a hint for tags but no adapters", hint="LION saves both in one file")
        return None
    if lost := [side for side in lion_files.SIDES if side not in depths]:
        raise CheckpointError(f"holds no adapters of the {lost[0]}")
    inner, width = _sizes(named, "encoder.0.adapters.0.down_proj.weight")
    config: dict[str, Any] = {
        "stacks": {side: depths[side] for side in lion_files.SIDES}, "width": width, "bottleneck": inner,
        "adapters": 2 if "encoder.0.router_ratio1" in named else 1,
        "adapter_norm": _norm(named, about), "adapter_scale": _scale(named, about),
        "hint": lion_files.HINT in named, "task": "image", "activation": "gelu",
    }  # fmt: skip
    return Piece.renamed("lion", config, state, names, {"hidden_size": width, "layers": depths["encoder"], **_T5})


def _norm(named: Mapping[str, Tensor], about: About) -> str:
    """Whose place a checkpoint does not tell: one LayerNorm serves either."""
    has, told = any("adapter_layer_norm_before" in name for name in named), about.options.get("adapter_norm")
    if has and told is None:
        problem = "its adapters have a norm, and the file does not say where"
        raise CheckpointError(problem, hint="--set adapter_norm=in, or out")
    if told is not None and not has:
        raise RecipeError(f"adapter_norm is {told!r}, and the adapters have no norm", where="--set")
    return told or "none"


def _scale(named: Mapping[str, Tensor], about: About) -> float | str:
    has, told = any(name.endswith(".scale") for name in named), about.options.get("adapter_scale")
    if has and told is not None:
        raise RecipeError(f"adapter_scale is {told!r}, and the adapters have learned theirs", where="--set")
    if not has and told is None:
        problem = "its adapters have no learned scale, and the file does not say which they have"
        raise CheckpointError(problem, hint="--set adapter_scale=1.0")
    if has:
        return "learned"
    if not isinstance(told, int | float):
        raise RecipeError(f"adapter_scale is {told!r}, not a number", where="--set")
    return float(told)


def _projector(
    state: Mapping[str, Tensor], names: Mapping[str, str], about: About, depth: int | None
) -> Piece | None:  # fmt: skip
    """depth: blocks of the T5's encoder, where the file tells."""
    if not names:
        if told := sorted({"heads", "layers"} & about.options.keys()):
            raise RecipeError(f"{told[0]} is about the vision aggregator, and the file holds none", where="--set")
        return None
    named = {new: state[old] for old, new in names.items()}
    blocks = {int(found[1]) for name in named if (found := re.match(r"fusion_adapter\.blocks\.(\d+)\.", name))}
    inner, width = _sizes(named, "adapter_proj.0.weight")
    hidden, _ = _sizes(named, "adapter_proj.2.weight")
    middle, _ = _sizes(named, "fusion_adapter.blocks.0.intermediate.dense.weight")
    heads = about.options.get("heads", _HEADS)
    if type(heads) is not int or heads < 1 or width % heads:
        problem = f"heads is {heads!r}, and the vision aggregator's width of {width} does not divide by that"
        raise RecipeError(problem, where="--set", hint="--set heads=NUMBER")
    config = {
        "layers": _layers(about, len(blocks)), "width": width, "heads": heads, "intermediate": middle, "inner": inner,
        "hidden_size": hidden,
    }  # fmt: skip
    host = {"hidden_size": hidden, "layers": depth, **_T5}
    return Piece.renamed("lion_aggregator", config, state, names, host)


def _layers(about: About, blocks: int) -> list[int]:
    """The tower's blocks that the aggregator reads: who asks, then who answers."""
    told = about.options.get("layers")
    if told is None and blocks != len(LAYERS) - 1:
        problem = f"its vision aggregator has {counted(blocks, 'block')}, and the file does not say what they read"
        raise CheckpointError(problem, hint="--set layers=38,28,18: who asks, then who answers")
    layers = list(map(str, LAYERS)) if told is None else [one.strip() for one in str(told).split(",")]
    if len(layers) != blocks + 1 or not all(re.fullmatch(r"-?\d{1,4}", one) for one in layers):
        reads = f"an aggregator of {counted(blocks, 'block')} reads {blocks + 1} of the tower's"
        problem = f"layers is {told!r}, and {reads}"
        raise RecipeError(problem, where="--set", hint="--set layers=38,28,18: who asks, then who answers")
    return [int(one) for one in layers]


def _sizes(named: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Rows and columns of a matrix that every such file has."""
    if name not in named or named[name].ndim != 2:
        raise CheckpointError(f"holds no matrix for {name!r} of LION")
    rows, columns = named[name].shape
    return int(rows), int(columns)
