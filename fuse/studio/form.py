"""The recipe as a form: what its controls show, and the text that a change of one makes. The text is all there is."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.errors import RecipeError
from fuse.methods.table import METHODS, REQUIRED
from fuse.names import mistake_in
from fuse.recipe import Location, Member
from fuse.recipe_edit import changed
from fuse.recipe_merge import PARAMETERS
from fuse.recipe_yaml import LoadedRecipe, parse_recipe

START = {"t": 0.5, "density": 0.5}  # of parameters that a method needs, where the recipe has none
PLAIN = re.compile(  # a path that YAML takes for text as it stands
    r"(?!(?:true|false|null)$)(?:\.{0,2}/|~/)?[A-Za-z_][\w./-]*", re.ASCII | re.IGNORECASE
)
FIRST = re.compile(r"(?:[ \t]*(?:#.*)?\n)*(?=[a-z]+:)")  # what stands before the first key
NATIVE = tuple(name for name in METHODS if "/" not in name)  # the methods that the form offers


@dataclass(frozen=True)
class Row:
    """One member in the form. weight: its number under `language.weights`, or None where it has none or more than one.

    sees: whether its eyes are in `vision`.
    """

    name: str
    path: str
    weight: float | None
    sees: bool


@dataclass(frozen=True)
class Form:
    """What the form shows. weighs: whether the method takes one number for each member."""

    base: str
    members: tuple[Row, ...]
    method: str
    weighs: bool
    eyes: tuple[str, ...]


def form_of(loaded: LoadedRecipe) -> Form:
    """The form of a recipe."""
    recipe = loaded.recipe
    eyes = tuple(branch.title for branch in recipe.vision or [])
    weights = recipe.language.weights
    return Form(
        base=_path(recipe.base) if recipe.base else "",
        members=tuple(
            Row(name, _path(given), _number(weights, name), name in eyes) for name, given in recipe.members.items()
        ),
        method=recipe.language.method,
        weighs="weights" in METHODS[recipe.language.method].params,
        eyes=eyes,
    )


def _path(given: Member | Location) -> str:
    """Where a member lies, as a person reads it."""
    if isinstance(given, Member) and given.base and given.adapter:
        return f"{given.base.path} + {given.adapter.path}"
    return given.path


def _number(weights: Any, name: str) -> float | None:
    value = weights.get(name) if isinstance(weights, dict) else weights
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def begun(file: Path, path: str, *, sees: bool) -> str:
    """The text of a first recipe, with one member, as it stands in `file`."""
    name = name_of(path, ())
    eyes = f"vision: [{name}]\n" if sees else ""
    text = f"members:\n  {name}: {_quoted(path)}\nlanguage:\n  method: linear\n  weights: {{{name}: 1.0}}\n{eyes}"
    return parse_recipe(file, text).text


def with_member(loaded: LoadedRecipe, path: str, *, sees: bool) -> str:
    """The recipe with one more member, and with its eyes behind those that are there where it sees."""
    recipe = loaded.recipe
    name = name_of(path, (*recipe.members, "base"))
    known = changed(loaded, {f"members.{name}": path})
    values: dict[str, Any] = {}
    if isinstance(recipe.language.weights, dict):
        numbers = [_number(recipe.language.weights, other) for other in recipe.members]
        values[f"language.weights.{name}"] = next((one for one in reversed(numbers) if one is not None), 1.0)
    if sees:
        values["vision"] = [*(branch.title for branch in recipe.vision or []), name]
    return changed(known, values).text


def without_member(loaded: LoadedRecipe, name: str) -> str:
    """The recipe without a member, its weight and its eyes. Raises RecipeError where no member would be left."""
    recipe = loaded.recipe
    if len(recipe.members) == 1:
        raise RecipeError(f"{name} is the last member, and a recipe has at least one")
    values: dict[str, Any] = {f"members.{name}": None}
    if isinstance(recipe.language.weights, dict) and name in recipe.language.weights:
        values[f"language.weights.{name}"] = None
    titles = [branch.title for branch in recipe.vision or []]
    if name in titles:
        values["vision"] = [title for title in titles if title != name] or None
    if recipe.prompt.template == name:
        values["prompt.template"] = None
    if recipe.output.host == name:
        values["output.host"] = None
    return changed(loaded, values).text


def with_weight(loaded: LoadedRecipe, name: str, value: float | None) -> str:
    """The recipe with another number for a member; None takes it out of the merge."""
    return changed(loaded, {f"language.weights.{name}": value}).text


def with_method(loaded: LoadedRecipe, method: str) -> str:
    """The recipe with another method: parameters that it has not go, and those that it needs get a start."""
    language, params = loaded.recipe.language, METHODS[method].params
    values: dict[str, Any] = {"language.method": method}
    values |= {f"language.{key}": None for key in PARAMETERS if language.given(key) is not None and key not in params}
    for key, param in params.items():
        if param.default is REQUIRED and language.given(key) is None:
            names = list(loaded.recipe.members)
            values[f"language.{key}"] = START.get(key, dict.fromkeys(names, _share(method, len(names))))
    return changed(loaded, values).text


def _share(method: str, members: int) -> float:
    """A start for each weight: means are divided by their sum, task vectors are summed as they are."""
    return 1.0 if METHODS[method].base != "required" else round(1 / members, 2)


def with_base(loaded: LoadedRecipe, path: str) -> str:
    """The recipe with another base, or with none where the path is empty. A first one goes above the members."""
    above = FIRST.match(loaded.text)
    if loaded.recipe.base is None and path and above:
        text = f"{above[0]}base: {_quoted(path)}\n{loaded.text[above.end() :]}"
        return parse_recipe(loaded.file, text).text
    return changed(loaded, {"base": path or None}).text


def with_base_of(loaded: LoadedRecipe, name: str) -> str:
    """The recipe with a member as the base instead."""
    path = loaded.recipe.members[name].path
    if not path:
        raise RecipeError(f"{name} is a base with an adapter, and a base is one folder")
    return with_base(parse_recipe(loaded.file, without_member(loaded, name)), path)


def with_eyes(loaded: LoadedRecipe, names: Sequence[str]) -> str:
    """The recipe with the eyes of these members, in this order."""
    return changed(loaded, {"vision": list(names)}).text


def name_of(path: str, taken: Sequence[str]) -> str:
    """What a member in a folder or repository is called: the last part of its path, made a name that is free."""
    last = path.rstrip("/").rpartition("/")[2]
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", last).strip("_-")[:50] or "member"
    name = plain if mistake_in(plain) is None else f"m_{plain}"
    numbered = (f"{name}_{number}" for number in range(2, 1000))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _quoted(path: str) -> str:
    return path if PLAIN.fullmatch(path) else json.dumps(path)
