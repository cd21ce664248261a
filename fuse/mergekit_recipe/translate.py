"""A mergekit recipe as a recipe of fuse, whose errors still point at the lines of the file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fuse.anatomy import Member
from fuse.errors import RecipeError
from fuse.host import open_named
from fuse.mergekit_recipe.given import Given
from fuse.mergekit_recipe.language import language, layers
from fuse.mergekit_recipe.methods import chosen
from fuse.mergekit_recipe.models import Reference, names_of
from fuse.mergekit_recipe.read import Read, read_words
from fuse.mergekit_recipe.settings import Settings, scope
from fuse.mergekit_recipe.tensors import Values, tensors_of
from fuse.mergekit_recipe.tokens import check_tokens, template
from fuse.methods.table import METHODS
from fuse.recipe import Recipe
from fuse.recipe_mistakes import Path_, dotted, where_of
from fuse.recipe_yaml import LoadedRecipe


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


def translated(file: Path, text: str, data: Mapping[str, Any], positions: dict[Path_, tuple[int, int]]) -> LoadedRecipe:
    """The recipe that a mergekit recipe comes to.

    Opens the models (configs and headers), because mergekit's filters go by the names of tensors and its lists by the
    number of layers. Raises RecipeError where the recipe is wrong or means nothing here, and what `open_member` raises.
    """
    read = read_words(Given(file, text, data, positions))
    names, places = _names(read)
    members = _opened(read, names, places)
    host, union = _host(read, names, members)
    given = read.given
    everywhere = scope(given, ("parameters",), data.get("parameters"), read.method)
    tensors = tensors_of(read.slices, list(members[host].language))
    values = Values(Settings(given, read.method), everywhere, tensors, names, read.apart)
    method = chosen(read.name, [(values.by_tensor[one.name], read.inputs(one.slice)) for one in tensors])
    if read.source[1]:
        check_tokens(given, read.source[0], members[host], _mixed(read, names, members), union=union)
    apart = names[read.apart] if read.apart and METHODS[method].base != "none" else None
    merged = [name for name in _ordered(read, names) if name != apart]
    if not merged:
        raise given.error(("merge_method",), f"{read.name} merges nothing: the base_model is the only model")
    spoken = language(read, method, tensors, values, places)
    spoken["embeddings"] = "union" if union else "merge"
    if read.slices[0].sources[0].layers is not None:
        spoken["layers"] = layers(read, names, merged, apart, places)
    recipe = {
        "members": {name: model.member for name in [*merged, host] for model in names
                    if names[model] == name and name != apart},
        "language": spoken,
        "output": {"host": "base" if host == apart else host, "dtype": read.dtype},
        "prompt": {"template": template(given, members, host)},
    }  # fmt: skip
    if apart:
        places[("base",)] = places[("members", apart)]
        recipe["base"] = next(model.member for model in names if names[model] == apart)
    places |= {("prompt", "template"): ("chat_template",), ("output", "host"): read.source[0]}
    return _validated(read, recipe, places)


def _names(read: Read) -> tuple[dict[Reference, str], dict[Path_, Path_]]:
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


def _opened(read: Read, names: Mapping[Reference, str], places: Mapping[Path_, Path_]) -> dict[str, Member]:
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


def _host(read: Read, names: Mapping[Reference, str], members: Mapping[str, Member]) -> tuple[str, bool]:
    """Whose config and tokenizer the output has, and whether it takes tokens from the others."""
    path, source = read.source
    default = names[read.base] if read.base is not None else next(iter(members))
    if isinstance(source, Reference):
        if source not in names:
            raise read.given.error(path, "is none of the models", "base, union or one of them")
        return names[source], False
    return default, source == "union"


def _mixed(read: Read, names: Mapping[Reference, str], members: Mapping[str, Member]) -> list[Member]:
    found = {names[source.model] for one in (read.slices[0], read.slices[-1]) for source in one.sources}
    return [member for name, member in members.items() if name in found]


def _ordered(read: Read, names: Mapping[Reference, str]) -> list[str]:
    """The models that are merged; for slerp the base first, which is where it starts."""
    found = dict.fromkeys(names[source.model] for one in read.slices for source in one.sources)
    if read.name == "slerp" and read.base is not None:
        found = dict.fromkeys([names[read.base], *found])
    return list(found)


def _validated(read: Read, recipe: Mapping[str, Any], places: Mapping[Path_, Path_]) -> TranslatedRecipe:
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
