"""The projector of an encoder branch: a file of linear layers with GELU between them, as LLaVA's `mlp2x_gelu`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fuse.errors import CheckpointError
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry

_PREFIXES = ("model.mm_projector.", "mm_projector.", "model.multi_modal_projector.", "multi_modal_projector.")
_LAYER = re.compile(r"(?:(?P<index>\d{1,2})\.|linear_(?P<number>\d{1,2})\.|(?P<one>linear\.)|)(?P<kind>weight|bias)")
_HINT = "`0.weight`, `0.bias`, `2.weight` ..., `linear_1.weight` ..., or one `weight`, after `mm_projector.` or nothing"


@dataclass(frozen=True)
class Projector:
    """layers: `{"in", "out", "bias"}` of each linear layer, as the branch's JSON holds them. names: their stored names
    without `.weight`. placed: stored tensor -> name in the branch, or None and why it is not used.
    """

    layers: tuple[dict[str, int | bool], ...]
    names: tuple[str, ...]
    placed: tuple[tuple[TensorEntry, str | None, str], ...]


def read_projector(tensors: Mapping[str, TensorEntry], where: Path) -> Projector:
    """The layers in a projector file, whatever it calls them, in order.

    Raises CheckpointError for names that are no projector's, missing layers, and shapes that do not follow each other.
    """
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), "")
    found: dict[tuple[str, int], dict[str, TensorEntry]] = {}
    placed: list[tuple[TensorEntry, str | None, str]] = []
    for name, entry in tensors.items():
        if not name.startswith(prefix):
            placed.append((entry, None, "not of the projector"))
            continue
        match = _LAYER.fullmatch(name.removeprefix(prefix))
        if not match:
            raise CheckpointError(f"tensor {name!r} is not of a projector that fuse knows", where=where, hint=_HINT)
        if entry.dtype not in FLOAT_BYTES:
            raise CheckpointError(f"tensor {name!r} has dtype {entry.dtype}, not floats", where=where)
        style = "index" if match["index"] else "number" if match["number"] else "one"
        found.setdefault((style, int(match["index"] or match["number"] or 0)), {})[match["kind"]] = entry
    if len({style for style, _ in found}) != 1:
        raise CheckpointError("holds layers of two naming styles", where=where, hint=_HINT)
    order = sorted(found)
    start, step = {"index": (0, 2), "number": (1, 1), "one": (0, 1)}[order[0][0]]
    if [number for _, number in order] != [start + step * i for i in range(len(order))]:
        raise CheckpointError(
            f"has layers {', '.join(str(number) for _, number in order)}; one is missing", where=where, hint=_HINT
        )
    layers, names = [], []
    for i, key in enumerate(order):
        layer = _layer(found[key], where)
        if layers and layers[-1]["out"] != layer["in"]:
            raise CheckpointError(
                f"tensor {found[key]['weight'].name!r} takes {layer['in']} numbers but the layer before it gives "
                f"{layers[-1]['out']}",
                where=where,
            )
        layers.append(layer)
        names.append(found[key]["weight"].name.removesuffix("weight").removesuffix("."))
        placed += [(entry, f"projector.{2 * i}.{kind}", "") for kind, entry in sorted(found[key].items())]
    return Projector(tuple(layers), tuple(names), tuple(placed))


def _layer(tensors: Mapping[str, TensorEntry], where: Path) -> dict[str, int | bool]:
    if "weight" not in tensors:
        raise CheckpointError(f"tensor {tensors['bias'].name!r} has no weight beside it", where=where)
    weight, bias = tensors["weight"], tensors.get("bias")
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise CheckpointError(f"tensor {weight.name!r} has shape {list(weight.shape)}, not [out, in]", where=where)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise CheckpointError(
            f"tensor {bias.name!r} has shape {list(bias.shape)}, not [{weight.shape[0]}]", where=where
        )
    return {"in": weight.shape[1], "out": weight.shape[0], "bias": bias is not None}
