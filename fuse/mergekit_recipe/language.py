"""The language section that a mergekit recipe comes to: the method, its parameters, and stacked layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuse.mergekit_recipe.methods import OWN
from fuse.mergekit_recipe.models import Reference
from fuse.mergekit_recipe.read import Read
from fuse.mergekit_recipe.tensors import Tensor, Values, said
from fuse.recipe_mistakes import Path_


def language(
    read: Read, method: str, tensors: Sequence[Tensor], values: Values, places: dict[Path_, Path_]
) -> dict[str, Any]:
    """The method and its parameters, and where each stands."""
    own = OWN.get(read.name, {}) if method == read.name else {}
    section: dict[str, Any] = {"method": method}
    if method != read.name and len(read.method.params) > read.method.random:
        section["parameters"] = {}
    for name, param in read.method.params.items():
        if name == "seed" or (method == read.name and name not in own):
            continue
        at: Path_ = ("language", own[name]) if name in own else ("language", "parameters", name)
        places[at] = values.origins.get((name,), ("merge_method",))
        by_tensor = {tensor.name: values.by_tensor[tensor.name][name] for tensor in tensors}
        if not param.per_member:
            told = said(by_tensor)
        elif method == "passthrough":
            told = said({tensor: next(iter(found.values())) for tensor, found in by_tensor.items()})
        else:
            told = {}
            for member in dict.fromkeys(one for found in by_tensor.values() for one in found):
                told[member] = said({tensor: found[member] for tensor, found in by_tensor.items() if member in found})
                places[(*at, member)] = values.origins.get((name, member), places[at])
        (section if name in own else section["parameters"])[at[-1]] = told
    if section.get("flatten"):
        section.pop("row_wise")  # means nothing then
    return section


def layers(
    read: Read, names: Mapping[Reference, str], merged: Sequence[str], apart: str | None, places: dict[Path_, Path_]
) -> list[dict[str, list[int]]]:
    """The ranges of members' layers, slice by slice. The base's, where it stands apart, are those of the others."""
    entries: list[dict[str, list[int]]] = []
    places[("language", "layers")] = ("slices",)
    for i, one in enumerate(read.slices):
        ranges = {names[source.model]: source.layers for source in one.sources if source.layers}
        places[("language", "layers", i)] = one.path
        for source in one.sources:
            name = names[source.model]
            places[("language", "layers", i, name)] = (*source.path, "layer_range")
            if apart and name != apart and source.layers != ranges[apart]:
                told = f"{read.name} takes the base's layers of the same numbers, which are {list(ranges[apart])}"
                raise read.given.error((*source.path, "layer_range"), told)
        entries.append({name: list(ranges[name]) for name in merged if name in ranges})
    return entries
