"""The values of every parameter at every tensor of the output, and how a recipe of fuse says them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuse.mergekit_recipe.layout import Slice, Source
from fuse.mergekit_recipe.models import Reference
from fuse.mergekit_recipe.settings import Scope, Settings
from fuse.parameters import LAYER, layer_position, stack_depths
from fuse.recipe_mistakes import Path_


@dataclass(frozen=True)
class Tensor:
    """A tensor of the output: its canonical name, the slice that it is made in, and where in it, 0 to 1.

    own: the name under which each source has it.
    """

    name: str
    slice: Slice
    t: float
    own: tuple[str, ...]


def tensors_of(slices: Sequence[Slice], names: Sequence[str]) -> list[Tensor]:
    """Every tensor of the output's language model. names: the host's canonical ones.

    As in mergekit, what stands before and behind the layers is at the beginning of a slice, the first and the last.
    """
    if slices[0].sources[0].layers is None:
        depths = stack_depths(names)
        return [Tensor(name, slices[0], _place(name, depths), (name,) * len(slices[0].sources)) for name in names]
    found: list[Tensor] = []
    for name in names:
        if not LAYER.match(name):
            at = slices[0 if layer_position(name, {}) == 0 else -1]
            found.append(Tensor(name, at, 0.0, (name,) * len(at.sources)))
    prefix = next((match[1] for name in names if (match := LAYER.match(name))), "")
    rests = [name.removeprefix(f"{prefix}0.") for name in names if name.startswith(f"{prefix}0.")]
    number = 0
    for one in slices:
        first = [source.layers[0] for source in one.sources if source.layers]
        length = one.sources[0].layers[1] - first[0] if one.sources[0].layers else 0
        for i in range(length):
            t = i / (length - 1) if length > 1 else 1.0
            for rest in rests:
                own = tuple(f"{prefix}{begin + i}.{rest}" for begin in first)
                found.append(Tensor(f"{prefix}{number}.{rest}", one, t, own))
            number += 1
    return found


def _place(name: str, depths: Mapping[str, int]) -> float:
    if not (match := LAYER.match(name)):
        return 0.0
    depth = depths[match[1]]
    return int(match[2]) / (depth - 1) if depth > 1 else 1.0


class Values:
    """What every parameter is, tensor by tensor, and where it comes from.

    At each tensor a parameter has a value, or one for each member where mergekit takes it by model. base: the model
    that has none of its own, where the method sets the base apart.
    """

    def __init__(
        self, settings: Settings, everywhere: Scope, tensors: Sequence[Tensor], names: Mapping[Reference, str],
        base: Reference | None,
    ) -> None:  # fmt: skip
        self.settings, self.everywhere, self.names, self.base = settings, everywhere, names, base
        self.origins: dict[Path_, Path_] = {}
        self.by_tensor = {tensor.name: self._of(tensor) for tensor in tensors}
        settings.check_filters({scope.path: scope for scope in self._scopes(tensors)}.values())

    def _scopes(self, tensors: Sequence[Tensor]) -> Iterator[Scope]:
        yield self.everywhere
        for one in {id(tensor.slice): tensor.slice for tensor in tensors}.values():
            yield one.scope
            yield from (source.scope for source in one.sources if source.model != self.base)

    def _of(self, tensor: Tensor) -> dict[str, Any]:
        shared = [tensor.slice.scope, self.everywhere]
        found: dict[str, Any] = {}
        for name, param in self.settings.method.params.items():
            if name == "seed":
                continue
            if not param.per_member:
                found[name] = self._get(name, shared, tensor.name, tensor.t, (name,))
                continue
            found[name] = {}
            for source, own in zip(tensor.slice.sources, tensor.own, strict=True):
                if source.model != self.base:
                    member = self.names[source.model]
                    at = (name, member)
                    found[name][member] = self._get(name, [source.scope, *shared], own, tensor.t, at, source)
        return found

    def _get(
        self, name: str, scopes: Sequence[Scope], tensor: str, t: float, at: Path_, source: Source | None = None
    ) -> Any:
        value, origin = self.settings.value(name, scopes, tensor, t, source.model.path if source else "")
        if origin is not None:
            self.origins.setdefault(at, origin)
            self.origins.setdefault(at[:1], origin)
        return value


def said(values: Mapping[str, Any]) -> Any:
    """The values by tensor as a recipe says them: one number, or patterns.

    A layer's most frequent value stands for the layer, after the names of its other tensors.
    """
    everywhere = list(values.values())
    if all(value == everywhere[0] for value in everywhere):
        return everywhere[0]
    layers: dict[str, dict[str, Any]] = {}
    patterns: dict[str, Any] = {}
    for name, value in values.items():
        if match := LAYER.match(name):
            layers.setdefault(match[0], {})[name] = value
        else:
            patterns[name] = value
    for prefix, inside in layers.items():
        most = _most(inside.values())
        patterns |= {name: value for name, value in inside.items() if value != most}
        patterns[f"{prefix}*"] = most
    return patterns


def _most(values: Any) -> Any:
    counts: dict[Any, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return max(counts, key=lambda value: counts[value])
