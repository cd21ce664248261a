"""A mergekit recipe as a recipe of fuse, whose errors still point at the lines of the file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from fuse.anatomy import Member
from fuse.errors import RecipeError, short
from fuse.host import open_named
from fuse.mergekit_recipe.given import TOP, Given
from fuse.mergekit_recipe.layout import Slice, layout
from fuse.mergekit_recipe.methods import OWN, chosen, foreign
from fuse.mergekit_recipe.models import Reference, names_of, reference
from fuse.mergekit_recipe.settings import Settings, scope
from fuse.mergekit_recipe.tensors import Tensor, Values, said, tensors_of
from fuse.mergekit_recipe.tokens import check_tokens, template, tokenizer_source
from fuse.methods.method import Method
from fuse.methods.table import METHODS
from fuse.methods.table_foreign import FOREIGN, PREFIX
from fuse.recipe import Recipe
from fuse.recipe_mistakes import Path_, dotted, where_of
from fuse.recipe_yaml import LoadedRecipe
from fuse.suggest import did_you_mean

DTYPES: Final = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class TranslatedRecipe(LoadedRecipe):
    """places: where in the file stands what a place of the recipe was made from."""

    places: Mapping[Path_, Path_] = field(default_factory=dict)

    def error(self, path: Path_, problem: str, hint: str = "") -> RecipeError:
        """As `LoadedRecipe.error`, at the place of the mergekit recipe."""
        while path not in self.places:
            path = path[:-1]
        there = self.places[path]
        return RecipeError(f"{dotted(there)}: {problem}", where=where_of(self.file, self.positions, there), hint=hint)


@dataclass(frozen=True)
class _Read:
    """The recipe as far as it can be read without its models."""

    given: Given
    method: Method  # mergekit's row
    base: Reference | None
    slices: tuple[Slice, ...]
    source: tuple[Path_, str | Reference]
    dtype: str | None

    @property
    def name(self) -> str:
        return self.method.name.removeprefix(PREFIX)

    @property
    def apart(self) -> Reference | None:
        """The base, where the method sets it apart from the models that it merges."""
        return None if self.method.base == "none" else self.base


def translated(file: Path, text: str, data: Mapping[str, Any], positions: dict[Path_, tuple[int, int]]) -> LoadedRecipe:
    """The recipe that a mergekit recipe comes to.

    Opens the models (configs and headers), because mergekit's filters go by the names of tensors and its lists by the
    number of layers. Raises RecipeError where the recipe is wrong or means nothing here, and what `open_member` raises.
    """
    read = _read(Given(file, text, data, positions))
    names, places = _names(read)
    members = _opened(read, names, places)
    host, union = _host(read, names, members)
    given = read.given
    everywhere = scope(given, ("parameters",), data.get("parameters"), read.method)
    tensors = tensors_of(read.slices, list(members[host].language))
    values = Values(Settings(given, read.method), everywhere, tensors, names, read.apart)
    method = chosen(read.name, list(values.by_tensor.values()), lambda _: _inputs(read))
    if read.source[1]:
        check_tokens(given, read.source[0], members[host], _mixed(read, names, members), union=union)
    apart = names[read.apart] if read.apart and METHODS[method].base != "none" else None
    merged = [name for name in _ordered(read, names) if name != apart]
    if not merged:
        raise given.error(("merge_method",), f"{read.name} merges nothing: the base_model is the only model")
    language = _language(read, method, tensors, values, places, apart)
    language["embeddings"] = "union" if union else "merge"
    if read.slices[0].sources[0].layers is not None:
        language["layers"] = _layers(read, names, merged, apart, places)
    spoken = template(given, members, host)
    recipe = {
        "members": {name: model.member for name in [*merged, host] for model in names
                    if names[model] == name and name != apart},
        "language": language,
        "output": {"host": "base" if host == apart else host, "dtype": read.dtype},
        "prompt": {"template": spoken},
    }  # fmt: skip
    if apart:
        places[("base",)] = places[("members", apart)]
        recipe["base"] = next(model.member for model in names if names[model] == apart)
    places |= {("prompt", "template"): ("chat_template",), ("output", "host"): read.source[0]}
    return _validated(read, recipe, places)


def _read(given: Given) -> _Read:
    data = given.table((), given.data, TOP, ("merge_method",))
    name = given.word(("merge_method",), data["merge_method"])
    if PREFIX + name not in FOREIGN:
        known = [one.removeprefix(PREFIX) for one in FOREIGN]
        raise given.error(("merge_method",), f"unknown method {short(name)} ({did_you_mean(name, known)})")
    method = foreign(name)
    base = data.get("base_model")
    base = reference(given, ("base_model",), base) if base is not None else None
    if method.base == "required" and base is None:
        raise given.error(("merge_method",), f"{name} needs a base_model")
    slices = layout(given, method, base)
    if base is not None and method.base != "none":
        for one in slices:
            if all(source.model != base for source in one.sources):
                raise given.error((*one.path, "sources"), f"{name} needs the base_model among them")
    words = {key: _dtype(given, key) for key in ("dtype", "out_dtype")}
    return _Read(given, method, base, slices, tokenizer_source(given), words["out_dtype"] or words["dtype"])


def _dtype(given: Given, key: str) -> str | None:
    value = given.data.get(key)
    word = value.removeprefix("torch.") if isinstance(value, str) else value
    if word is not None and word not in DTYPES:
        raise given.error((key,), f"should be bfloat16, float16 or float32, not {short(value)}")
    return word


def _names(read: _Read) -> tuple[dict[Reference, str], dict[Path_, Path_]]:
    """A name for each model, the base first, and where each stands."""
    stands = {source.model: (*source.path, "model") for one in reversed(read.slices) for source in one.sources
              if source.path != ("base_model",)}  # fmt: skip
    order = [source.model for one in read.slices for source in one.sources]
    if read.base is not None:
        order.insert(0, read.base)
        stands.setdefault(read.base, ("base_model",))
    names = dict(names_of(order))
    places: dict[Path_, Path_] = {(): ()}
    for model, name in names.items():
        places[("members", name)] = stands[model]
    places |= {("language",): ("merge_method",), ("language", "method"): ("merge_method",)}
    return names, places


def _opened(read: _Read, names: Mapping[Reference, str], places: Mapping[Path_, Path_]) -> dict[str, Member]:
    given = read.given
    recipe = {"members": {name: model.member for model, name in names.items()},
              "language": {"method": "linear", "weights": 1.0}}  # fmt: skip
    loaded = _validated(read, recipe, places)
    members = {name: open_named(loaded, ("members", name), name) for name in loaded.recipe.members}
    if seeing := [name for name, member in members.items() if member.sees]:
        raise given.error(
            places[("members", seeing[0])],
            f"{seeing[0]} can see, and a mergekit recipe does not say whose eyes to keep",
            "write a recipe with members, language and vision",
        )  # fmt: skip
    return members


def _host(read: _Read, names: Mapping[Reference, str], members: Mapping[str, Member]) -> tuple[str, bool]:
    """Whose config and tokenizer the output has, and whether it takes tokens from the others."""
    path, source = read.source
    default = names[read.base] if read.base is not None else next(iter(members))
    if isinstance(source, Reference):
        if source not in names:
            raise read.given.error(path, "is none of the models", "base, union or one of them")
        return names[source], False
    return default, source == "union"


def _inputs(read: _Read) -> int:
    """How many members fuse's own method merges at the first slice."""
    count = len(read.slices[0].sources)
    return count if read.name == "slerp" or read.apart is None else count - 1


def _mixed(read: _Read, names: Mapping[Reference, str], members: Mapping[str, Member]) -> list[Member]:
    found = {names[source.model] for one in (read.slices[0], read.slices[-1]) for source in one.sources}
    return [member for name, member in members.items() if name in found]


def _ordered(read: _Read, names: Mapping[Reference, str]) -> list[str]:
    """The models that are merged; for slerp the base first, which is where it starts."""
    found = dict.fromkeys(names[source.model] for one in read.slices for source in one.sources)
    if read.name == "slerp" and read.base is not None:
        found = dict.fromkeys([names[read.base], *found])
    return list(found)


def _language(
    read: _Read, method: str, tensors: list[Tensor], values: Values, places: dict[Path_, Path_], apart: str | None
) -> dict[str, Any]:
    """The method and its parameters, and where each stands."""
    own = OWN.get(read.name, {}) if method == read.name else {}
    language: dict[str, Any] = {"method": method}
    if method != read.name and len(read.method.params) > read.method.random:
        language["parameters"] = {}
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
        (language if name in own else language["parameters"])[at[-1]] = told
    if language.get("flatten"):
        language.pop("row_wise")  # means nothing then
    return language


def _layers(
    read: _Read, names: Mapping[Reference, str], merged: list[str], apart: str | None, places: dict[Path_, Path_]
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


def _validated(read: _Read, recipe: Mapping[str, Any], places: Mapping[Path_, Path_]) -> TranslatedRecipe:
    given = read.given
    try:
        made = Recipe.model_validate(recipe)
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(first["loc"])
        while path not in places:
            path = path[:-1]
        raise given.error(places[path], first["msg"]) from None
    return TranslatedRecipe(made, given.file, given.text, given.positions, places)
