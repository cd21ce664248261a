"""What stands in the output of a mergekit recipe: whole models, or slices of their layers, with their parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuse.errors import short
from fuse.mergekit_recipe.given import Given
from fuse.mergekit_recipe.models import Reference, reference
from fuse.mergekit_recipe.settings import Scope, scope
from fuse.methods.method import Method
from fuse.recipe_mistakes import Path_
from fuse.sizes import counted


@dataclass(frozen=True)
class Source:
    """A model that takes part in a slice. layers: first layer and the one behind the last; None for all of them."""

    model: Reference
    path: Path_
    scope: Scope
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Slice:
    """Sources that are merged layer by layer. path: where it stands."""

    path: Path_
    sources: tuple[Source, ...]
    scope: Scope


def layout(given: Given, method: Method, base: Reference | None) -> tuple[Slice, ...]:
    """The slices of the output, the base among the sources; one of whole models where the recipe has `models`."""
    models, slices = given.data.get("models"), given.data.get("slices")
    if (models is None) == (slices is None):
        raise given.error(("merge_method",), "the recipe needs either models or slices")
    if models is not None:
        return (_of_models(given, models, method, base),)
    entries = given.entries(("slices",), slices)
    return tuple(_slice(given, ("slices", i), entry, method, base) for i, entry in enumerate(entries))


def _of_models(given: Given, models: Any, method: Method, base: Reference | None) -> Slice:
    sources: list[Source] = []
    for i, entry in enumerate(given.entries(("models",), models)):
        path: Path_ = ("models", i)
        table = given.table(path, entry, ("model", "parameters"), ("model",))
        model = reference(given, (*path, "model"), table["model"])
        sources.append(Source(model, path, _own(given, path, table, method)))
    _check_once(given, sources)
    if base is not None and all(source.model != base for source in sources):
        sources.append(Source(base, ("base_model",), Scope(("base_model",), {})))
    return Slice((), tuple(sources), Scope((), {}))


def _slice(given: Given, path: Path_, entry: Any, method: Method, base: Reference | None) -> Slice:
    table = given.table(path, entry, ("sources", "parameters", "base_model"), ("sources",))
    if table.get("base_model") is not None and reference(given, (*path, "base_model"), table["base_model"]) != base:
        told = "differs from the recipe's base_model, and fuse has one base for all layers"
        raise given.error((*path, "base_model"), told)
    sources: list[Source] = []
    for i, one in enumerate(given.entries((*path, "sources"), table["sources"])):
        at = (*path, "sources", i)
        inner = given.table(at, one, ("model", "layer_range", "parameters"), ("model", "layer_range"))
        model = reference(given, (*at, "model"), inner["model"])
        layers = _layers(given, (*at, "layer_range"), inner["layer_range"])
        sources.append(Source(model, at, _own(given, at, inner, method), layers))
    _check_once(given, sources)
    lengths = {source.layers[1] - source.layers[0] for source in sources if source.layers}
    if len(lengths) > 1:
        told = " and ".join(counted(n, "layer") for n in sorted(lengths))
        raise given.error((*path, "sources"), f"ranges that are merged have one length, and these have {told}")
    return Slice(path, tuple(sources), scope(given, (*path, "parameters"), table.get("parameters"), method))


def _own(given: Given, path: Path_, table: dict[str, Any], method: Method) -> Scope:
    """The parameters of one source. Those that are one for all models are not read there by mergekit."""
    found = scope(given, (*path, "parameters"), table.get("parameters"), method)
    for name in found.table:
        if name != "int8_mask" and not method.params[name].per_member:
            told = "is one for all models, and mergekit does not read it here"
            raise given.error((*found.path, name), told, "write it under the recipe's own parameters")
    return found


def _layers(given: Given, path: Path_, value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or any(type(n) is not int for n in value):
        raise given.error(path, f"{short(value)} is not a range of layers (such as [0, 16])")
    if not 0 <= value[0] < value[1]:
        raise given.error(path, f"{value} holds no layer: a range is its first layer and the one behind its last")
    return value[0], value[1]


def _check_once(given: Given, sources: Sequence[Source]) -> None:
    seen: set[Reference] = set()
    for source in sources:
        if source.model in seen:
            raise given.error((*source.path, "model"), "the model stands here twice")
        seen.add(source.model)
