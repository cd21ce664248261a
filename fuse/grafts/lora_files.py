"""LoRA as a graft: low-rank changes of a host's projections (arXiv 2106.09685), as PEFT and LLaVA store them.

config: `{"modules": {"language.0.q": {"rank": 8, "in": 64, "out": 64, "scaling": 2.0}, ...}}`: by stack (`language`, or
`encoder` and `decoder`), block and projection (`q k v o gate up down`, or `qkv` and `gate_up` where one matrix holds
several); `scaling` is PEFT's alpha / rank. Tensors are `<module>.down` [rank, in] and `<module>.up` [out, rank]. torch
is not imported.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuse.families import Basis
from fuse.grafts.lora_names import PROJECTIONS, depth, has, parts, sizes, stacks, stored

STACKS = ("language", "encoder", "decoder")
OPTIONS: Mapping[str, tuple[Any, ...]] = {}
SLOTS = ("linear",)
TRANSPOSED = frozenset({"gpt2"})  # families whose weights lie [in, out]


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of graft.safetensors. Raises ValueError for a config that describes no LoRA."""
    wanted: dict[str, tuple[int, ...]] = {}
    modules = config["modules"]
    if not isinstance(modules, Mapping) or not modules:
        raise ValueError("modules is not a table of projections")
    for name, row in modules.items():
        split(name)
        numbers = [row["rank"], row["in"], row["out"]]
        if not all(type(number) is int and 0 < number < 1 << 31 for number in numbers):
            raise ValueError(f"module {name!r} has rank, in and out {numbers}, not positive whole numbers")
        if type(row["scaling"]) not in (int, float) or not abs(row["scaling"]) < 1e9:
            raise ValueError(f"module {name!r} has scaling {row['scaling']!r}, not a number")
        rank, inputs, outputs = numbers
        wanted |= {f"{name}.down": (rank, inputs), f"{name}.up": (outputs, rank)}
    return wanted


def split(name: str) -> tuple[str, int, str]:
    """(stack, block, projection) of a module's name. Raises ValueError for a name that is none."""
    stack, _, rest = name.partition(".")
    layer, _, linear = rest.partition(".")
    if stack not in STACKS or not re.fullmatch(r"0|[1-9]\d{0,3}", layer) or linear not in PROJECTIONS:
        raise ValueError(f"module {name!r} is not called STACK.BLOCK.PROJECTION")
    return stack, int(layer), linear


def why_not(config: Mapping[str, Any], host: Basis) -> str:
    """Why the host cannot take it, or ""."""
    held = stacks(host)
    for name, row in config["modules"].items():
        stack, layer, linear = split(name)
        if stack not in held:
            return f"has no stack {stack!r}, and the donor changes {name}"
        if layer >= depth(host, stack):
            return f"has {depth(host, stack)} blocks, and the donor changes {name}"
        if not has(held[stack], linear):
            return f"has no projection {linear!r}, and the donor changes {name}"
        for part, (begin, end) in parts(linear, row["in"], row["out"]).items():
            if (row["in"], end - begin) != (wanted := sizes(host, part)):
                here = f"{stack}.{layer}.{part}"
                return f"makes {wanted[1]} numbers of {wanted[0]} in {here}, and the donor {end - begin} of {row['in']}"
    return ""


def configured(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The graft's JSON in config.json; LoRA has no options of its own."""
    del options
    return dict(config)


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """No placeholders."""
    del config
    return {}


@dataclass(frozen=True)
class Fold:
    """One change of a stored weight: `weight[rows] += scaling * up[up_rows] @ down`.

    down, up: names in graft.safetensors. rows, up_rows: [begin, end) of outputs. transposed: the weight lies [in, out],
    so its columns are meant.
    """

    down: str
    up: str
    scaling: float
    rows: tuple[int, int]
    up_rows: tuple[int, int]
    transposed: bool


def folds(config: Mapping[str, Any], host: Basis, scale: float) -> dict[str, list[Fold]]:
    """Which weights of the host change when the graft is folded: canonical name of a language tensor -> its changes.

    To be asked where `why_not` found nothing.
    """
    found: dict[str, list[Fold]] = {}
    for name, row in config["modules"].items():
        stack, layer, linear = split(name)
        for part, up_rows in parts(linear, row["in"], row["out"]).items():
            weight, rows = stored(host, stack, layer, part)
            change = Fold(
                f"{name}.down", f"{name}.up", row["scaling"] * scale, rows, up_rows, host.family in TRANSPOSED
            )
            found.setdefault(weight, []).append(change)
    return found
