"""What each kind of adapter does to the tensors of a module, after a check of ranks and shapes. Formulas: see
`fuse.engine.adapted`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fuse.adapters.config import rank_of, scaling_of, token_rows
from fuse.adapters.keys import Module
from fuse.adapters.update import Kind
from fuse.errors import CheckpointError
from fuse.grafts.lora_peft import CONFIG
from fuse.safetensors_header import TensorEntry


@dataclass(frozen=True)
class Change:
    """An `Update` whose tensor is not named yet."""

    kind: Kind
    parts: Mapping[str, TensorEntry]
    scale: float = 1.0
    transposed: bool = False
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Target:
    """What a module of the base stores: its weight, and its bias where it has one.

    transposed: the weight lies [in, out].
    """

    weight: TensorEntry
    bias: TensorEntry | None
    transposed: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """(out, in)."""
        return self.weight.shape[::-1] if self.transposed else self.weight.shape


Changes = dict[str, Change]  # by "weight" and "bias"


def changes(kind: str, module: Module, target: Target, told: Mapping[str, Any]) -> Changes:
    """The changes of a module. Raises CheckpointError, without a place, for parts that are missing or do not fit."""
    if len(target.weight.shape) != 2:
        shape = list(target.weight.shape)
        raise CheckpointError(
            f"changes {target.weight.name!r}, of shape {shape}, and fuse reads adapters of matrices",
            hint="merge it into its base with PEFT first",
        )
    found: Changes = {}
    if "rows" in module.parts:
        found = _rows(module, target, told)
    if set(module.parts) - {"rows"}:
        found |= _KINDS[kind](module, target, told)
    elif not found:
        raise CheckpointError(f"{module.name} has no tensors")
    return found


def _lora(module: Module, target: Target, told: Mapping[str, Any]) -> Changes:
    if "rows" in module.parts:
        raise CheckpointError(f"{module.name} has both LoRA factors and trained tokens, which fuse does not read")
    parts = {role: entry for role, entry in module.parts.items() if role != "v"}
    for have, lacks in (("A", "B"), ("B", "A")):
        if have in parts and lacks not in parts:
            raise CheckpointError(f"{module.name} has lora_{have} and not lora_{lacks}")
    if "A" not in parts:
        raise CheckpointError(f"{module.name} has neither lora_A nor lora_B")
    rank = rank_of(told, module.name)
    for side in "AB":
        if len(parts[side].shape) != 2:
            raise CheckpointError(f"tensor {parts[side].name!r} has shape {list(parts[side].shape)}, not two sizes")
    ranks = parts["A"].shape[0], parts["B"].shape[-1]
    if ranks != (rank, rank):
        raise CheckpointError(f"{module.name} has rank {ranks[0]} and {ranks[1]}, and {CONFIG} says {rank!r}")
    outputs, inputs = target.sizes
    _fits(parts["A"], (rank, inputs), target)
    _fits(parts["B"], (outputs, rank), target)
    if told.get("use_dora") and "m" not in parts:
        raise CheckpointError(f"{module.name} has no lora_magnitude_vector, and {CONFIG} says use_dora")
    if "m" in parts:
        _fits(parts["m"], (outputs,), target)
    scale = scaling_of(told, module.name, "lora_alpha")
    found = {"weight": Change("dora" if "m" in parts else "lora", parts, scale, target.transposed)}
    if "v" in module.parts:
        bias = _bias_of(module, target)
        _fits(module.parts["v"], bias.shape, target)
        found["bias"] = Change("bias", {"v": module.parts["v"]}, scale)
    return found


def _bias_of(module: Module, target: Target) -> TensorEntry:
    if target.bias is None:
        raise CheckpointError(f"tensor {module.parts['v'].name!r} changes a bias, and the base has none there")
    return target.bias


def _ia3(module: Module, target: Target, told: Mapping[str, Any]) -> Changes:
    """The inputs are scaled where the vector lies [1, in], else the outputs, with the bias."""
    del told
    entry = module.parts["l"]
    outputs, inputs = target.sizes
    of_inputs = len(entry.shape) == 2 and entry.shape[0] == 1 and entry.shape != (outputs, 1)
    _fits(entry, (1, inputs) if of_inputs else (outputs, 1), target)
    found = {"weight": Change("scale", {"l": entry}, transposed=of_inputs != target.transposed)}
    if target.bias is not None and not of_inputs:
        found["bias"] = Change("scale", {"l": entry})
    return found


def _loha(module: Module, target: Target, told: Mapping[str, Any]) -> Changes:
    rank, (outputs, inputs) = rank_of(told, module.name), target.weight.shape
    for name, shape in (("a", (outputs, rank)), ("b", (rank, inputs))):
        for side in ("w1", "w2"):
            _fits(_part(module, f"{side}_{name}", "hada_"), shape, target)
    return {"weight": Change("loha", module.parts, scaling_of(told, module.name, "alpha"))}


def _lokr(module: Module, target: Target, told: Mapping[str, Any]) -> Changes:
    sizes = [1, 1]
    for side in ("w1", "w2"):
        if side in module.parts:
            shape = module.parts[side].shape
        else:
            one, two = (_part(module, f"{side}_{name}", "lokr_").shape for name in ("a", "b"))
            if len(one) != 2 or len(two) != 2 or one[1] != two[0]:
                raise CheckpointError(f"{module.name} has {side} of {list(one)} and {list(two)}, which is no product")
            shape = (one[0], two[1])
        if len(shape) != 2:
            raise CheckpointError(f"{module.name} has {side} of {list(shape)}, which is no matrix")
        sizes = [size * more for size, more in zip(sizes, shape, strict=True)]
    if tuple(sizes) != target.weight.shape:
        raise CheckpointError(
            f"{module.name} makes a change of {sizes}, and {target.weight.name!r} of the base is "
            f"{list(target.weight.shape)}"
        )
    return {"weight": Change("lokr", module.parts, scaling_of(told, module.name, "alpha"))}


def _rows(module: Module, target: Target, told: Mapping[str, Any]) -> Changes:
    rows, entry = token_rows(told, module.name), module.parts["rows"]
    _fits(entry, (len(rows), target.weight.shape[1]), target)
    if max(rows, default=0) >= target.weight.shape[0]:
        raise CheckpointError(
            f"{CONFIG}: token {max(rows)} was trained, and {target.weight.name!r} of the base has "
            f"{target.weight.shape[0]} rows"
        )
    return {"weight": Change("rows", {"rows": entry}, rows=rows)}


def _part(module: Module, role: str, prefix: str) -> TensorEntry:
    if role not in module.parts:
        raise CheckpointError(f"{module.name} has no {prefix}{role}")
    return module.parts[role]


def _fits(entry: TensorEntry, shape: tuple[Any, ...], target: Target) -> None:
    if entry.shape != shape:
        raise CheckpointError(
            f"tensor {entry.name!r} has shape {list(entry.shape)}, and {target.weight.name!r} of the base, "
            f"{list(target.weight.shape)}, needs {list(shape)}",
            hint="is it an adapter of this base?",
        )


_KINDS: Mapping[str, Callable[[Module, Target, Mapping[str, Any]], Changes]] = {
    "LORA": _lora, "IA3": _ia3, "LOHA": _loha, "LOKR": _lokr,
}  # fmt: skip
