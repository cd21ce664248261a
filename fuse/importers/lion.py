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

from fuse.branches import lion_aggregator_files
from fuse.errors import CheckpointError
from fuse.grafts import lion_files
from fuse.importers import About, Imported, Piece

if TYPE_CHECKING:
    from torch import Tensor

HELP = "LION's adapters of FLAN-T5, its hint for tags and its vision aggregator (LION-FlanT5-XL.pth)"
OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "heads": (), "layers": (), "adapter_norm": ("in", "out"), "adapter_scale": (),
}  # fmt: skip

_ADAPTER = re.compile(
    r"(?:t5_model\.)?(?:(encoder)\.block\.(\d+)\.layer\.1|(decoder)\.block\.(\d+)\.layer\.2)\.adapter\.(.+)"
)
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

    Raises CheckpointError for layers that are missing or differ, and for options that the shapes contradict.
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
    return Imported(_graft(state, graft, about), _projector(state, projector, about), dropped=dropped)


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
    first = named.get("encoder.0.adapters.0.down_proj.weight")
    if first is None or first.ndim != 2:
        missing = "t5_model.encoder.block.0.layer.1.adapter.adapters.0.down_proj.weight"
        raise CheckpointError(f"tensor {missing!r} is missing or no matrix")
    config: dict[str, Any] = {
        "stacks": {side: depths[side] for side in lion_files.SIDES},
        "width": int(first.shape[1]), "bottleneck": int(first.shape[0]),
        "adapters": 2 if "encoder.0.router_ratio1" in named else 1,
        "adapter_norm": _norm(named, about), "adapter_scale": _scale(named, about),
        "hint": lion_files.HINT in named, "task": "image", "activation": "gelu",
    }  # fmt: skip
    try:
        wanted = lion_files.shapes(config)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"is no LION checkpoint: {error}") from None
    _compare(named, wanted, names)
    return Piece.renamed("lion", config, state, names)


def _norm(named: Mapping[str, Tensor], about: About) -> str:
    """Whose place a checkpoint does not tell: one LayerNorm serves either."""
    has, told = any("adapter_layer_norm_before" in name for name in named), about.options.get("adapter_norm")
    if has and told is None:
        problem = "its adapters have a norm, and the file does not say where"
        raise CheckpointError(problem, hint="--set adapter_norm=in, or out")
    if told is not None and not has:
        raise CheckpointError(f"adapter_norm is {told!r}, and its adapters have no norm")
    return told or "none"


def _scale(named: Mapping[str, Tensor], about: About) -> float | str:
    has, told = any(name.endswith(".scale") for name in named), about.options.get("adapter_scale")
    if has and told is not None:
        raise CheckpointError(f"adapter_scale is {told!r}, and its adapters have learned theirs")
    if not has and told is None:
        problem = "its adapters have no learned scale, and the file does not say which they have"
        raise CheckpointError(problem, hint="--set adapter_scale=1.0")
    return "learned" if has else _number("adapter_scale", told)


def _number(key: str, told: Any) -> float:
    try:
        return float(told)
    except (TypeError, ValueError):
        raise CheckpointError(f"{key} is {told!r}, not a number") from None


def _projector(state: Mapping[str, Tensor], names: Mapping[str, str], about: About) -> Piece | None:
    if not names:
        if told := sorted({"heads", "layers"} & about.options.keys()):
            raise CheckpointError(f"{told[0]} is about the vision aggregator, and the file holds none")
        return None
    named = {new: state[old] for old, new in names.items()}
    blocks = {int(found[1]) for name in named if (found := re.match(r"fusion_adapter\.blocks\.(\d+)\.", name))}
    sizes: dict[str, int] = {}
    for key, name, side in (
        ("width", "adapter_proj.0.weight", 1), ("inner", "adapter_proj.0.weight", 0),
        ("hidden_size", "adapter_proj.2.weight", 0),
        ("intermediate", "fusion_adapter.blocks.0.intermediate.dense.weight", 0),
    ):  # fmt: skip
        if name not in named or named[name].ndim != 2:
            raise CheckpointError(f"tensor {name!r} is missing or no matrix")
        sizes[key] = int(named[name].shape[side])
    config = {"layers": _layers(about, len(blocks)), "heads": int(_number("heads", about.options.get("heads", 16)))}
    try:
        lion_aggregator_files.reads(config)
        wanted = lion_aggregator_files.shapes(config | sizes)
    except ValueError as error:
        raise CheckpointError(f"vision aggregator: {error}", hint="--set heads=, or layers=") from None
    _compare(named, wanted, names)
    return Piece.renamed("lion_aggregator", config | sizes, state, names)


def _layers(about: About, blocks: int) -> list[int]:
    told = about.options.get("layers")
    if told is None and blocks != len(lion_aggregator_files.LAYERS) - 1:
        problem = f"its vision aggregator has {blocks} blocks, and the file does not say what they read"
        raise CheckpointError(
            problem, hint="--set layers=38,28,18, the tower's blocks from 0: who asks, then who answers"
        )
    layers = list(lion_aggregator_files.LAYERS) if told is None else [one.strip() for one in str(told).split(",")]
    try:
        layers = [int(one) for one in layers]
    except ValueError:
        raise CheckpointError(f"layers is {told!r}, not numbers with commas between them") from None
    if len(layers) != blocks + 1:
        raise CheckpointError(f"layers is {told!r}, and {blocks} blocks of an aggregator read {blocks + 1}")
    return layers


def _compare(named: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], names: Mapping[str, str]) -> None:
    """Nothing is missing, unknown or of another shape. names: key of the file -> new name."""
    origin = {new: old for old, new in names.items()}
    for name, shape in wanted.items():
        if name not in named:
            raise CheckpointError(f"tensor {name!r} is missing, as its other layers have it")
        if tuple(named[name].shape) != shape:
            told = f"tensor {origin[name]!r} has shape {list(named[name].shape)}, and the others make it {list(shape)}"
            raise CheckpointError(told)
    if extra := [name for name in named if name not in wanted]:
        raise CheckpointError(f"tensor {origin[extra[0]]!r} is not part of LION's adapters or aggregator")
