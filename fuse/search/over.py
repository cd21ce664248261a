"""The search space as the command line gives it: `--over PATH=VALUES` and `--sum TABLE=TOTAL`."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fuse.errors import RecipeError
from fuse.methods.table import METHODS, REQUIRED
from fuse.recipe import Recipe
from fuse.recipe_merge import PARAMETERS, Merge
from fuse.recipe_yaml import LoadedRecipe
from fuse.search.parts import PARTS, part_patterns
from fuse.search.space import Axis, Knob, Space, Sum, Value, is_number

NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})")
DEPTH = re.compile(r"depth:([0-9]{1,4})")
DEEPEST = 64  # numbers of a list over depth; more than a search could find
WORDS: dict[str, Value] = {"true": True, "false": False, "null": None}
USUAL = "0..1"


def read_space(
    loaded: LoadedRecipe, overs: Sequence[str], sums: Sequence[str], names: Callable[[], Iterable[str]]
) -> Space:
    """The space of a search. Without `overs`: every weight of the language model from 0 to 1, but the one that a sum
    determines.

    names: gives the canonical names of the merged tensors of the language model, for @parts.
    Raises RecipeError, one sentence, for what is no setting, sets something twice, or leaves nothing to search. Whether
    the recipe takes the paths and values is not looked at here.
    """
    kept = [_sum(loaded.recipe, text) for text in sums]
    if twice := _twice([one.table for one in kept]):
        raise RecipeError(f"--sum {twice} stands twice")
    first = {one.first for one in kept}
    if not overs:
        members = members_of(loaded.recipe, "language.weights")
        if not members:
            told = f"nothing to search: {loaded.recipe.language.method} has no weights"
            raise RecipeError(told, hint="--over PATH=VALUES names a setting, such as --over language.t=0..1")
        overs = [f"{path}={USUAL}" for name in members if (path := f"language.weights.{name}") not in first]
    knobs = [_knob(loaded.recipe, text, first, names) for text in overs]
    paths = [path for knob in knobs for path in knob.paths]
    if twice := _twice(paths):
        raise RecipeError(f"--over sets {twice} twice")
    if taken := [path for path in paths if path in first]:
        raise RecipeError(f"{taken[0]} takes what --sum leaves, so it cannot be searched")
    space = Space(tuple(knobs), tuple(kept))
    if not space.axes or all(len(axis.values) == 1 for axis in space.axes):
        told = "every setting has one value" if space.axes else "one member and a sum leave no choice"
        raise RecipeError(f"nothing to search: {told}", hint="give a range such as 0..1, or several values")
    for one in kept:
        if not any(path in paths for path in one.rest):
            raise RecipeError(f"--sum {one.table}: no other member of it is searched")
    return space


def members_of(recipe: Recipe, path: str) -> list[str]:
    """The members that a parameter has a number each for, such as language.weights, in the recipe's order; [] if none.

    Of a table by member those that it names, else all members.
    """
    merge, field = _merge_at(recipe, path)
    param = METHODS[merge.method].params.get(field) if merge else None
    if merge is None or param is None or not param.per_member:
        return []
    value = merge.given(field)
    named = [name for name in value if name in recipe.members] if isinstance(value, dict) else []
    return named or list(recipe.members)


def current(recipe: Recipe, path: str) -> Any:
    """What the recipe says at a path, or the default of a method's parameter; None where it says nothing."""
    table, _, last = path.rpartition(".")
    for at, member in ((path, ""), (table, last)):
        merge, field = _merge_at(recipe, at)
        if merge is not None and field in METHODS[merge.method].params and (not member or member in recipe.members):
            value, default = merge.given(field), METHODS[merge.method].params[field].default
            if isinstance(value, dict) and member in value:
                return value[member]
            given = None if isinstance(value, dict) and set(value) & {*recipe.members} and member else value
            return given if given is not None else None if default is REQUIRED else default
    if path == "vision":
        return tuple(branch.title for branch in recipe.vision or ())
    found: Any = recipe.model_dump(by_alias=True)
    for step in path.split("."):
        if isinstance(found, list):
            found = next((b for b in found if step in (b.get("from"), b.get("name"))), None)
        else:
            found = found.get(step) if isinstance(found, dict) else None
    return found


def _merge_at(recipe: Recipe, path: str) -> tuple[Merge | None, str]:
    """The section of a parameter and the parameter's name: language.FIELD, or vision.NAME.merge.FIELD."""
    match path.split("."):
        case ["language", field] if field in PARAMETERS:
            return recipe.language, field
        case ["vision", name, "merge", field] if field in PARAMETERS:
            branches = [branch for branch in recipe.vision or () if branch.title == name]
            return (branches[0].merge if branches else None), field
    return None, ""


def _knob(recipe: Recipe, text: str, first: set[str], names: Callable[[], Iterable[str]]) -> Knob:
    """One --over as a knob."""
    target, equals, written = text.partition("=")
    path, at, shape = target.strip().partition("@")
    if not equals or not path:
        raise RecipeError(f"--over {text!r} is not PATH=VALUES", hint="such as language.weights.b=0..1")
    paths = (path,)
    parent, _, last = path.rpartition(".")
    if last == "*" and (members := members_of(recipe, parent)):
        paths = tuple(f"{parent}.{name}" for name in members[1:] if f"{parent}.{name}" not in first)
        if not paths:
            raise RecipeError(f"--over {path}: there is no member but the first, {members[0]}")
    if not at:
        return Knob(paths, (_axis(path, written, path == "vision"),))
    if depth := DEPTH.fullmatch(shape):
        if not 2 <= int(depth[1]) <= DEEPEST:
            raise RecipeError(f"--over {target}: a list over depth has 2 to {DEEPEST} numbers")
        axes = tuple(_axis(f"{path}[{i}]", written, numbers=True) for i in range(int(depth[1])))
        return Knob(paths, axes, "depth")
    if shape != "parts":
        raise RecipeError(f"--over {target}: @{shape} is not known", hint="known: @depth:N, @parts")
    if not path.startswith("language."):
        raise RecipeError(f"--over {target}: @parts are those of the language model")
    patterns = part_patterns(names())
    present = sorted({number for _, number in patterns})
    axes = tuple(_axis(f"{path}[{PARTS[number]}]", written, numbers=True) for number in present)
    return Knob(paths, axes, "parts", tuple((pattern, present.index(number)) for pattern, number in patterns))


def _axis(name: str, written: str, order: bool = False, numbers: bool = False) -> Axis:
    """The values of one axis. order: they are orders of branches. numbers: nothing else is meant."""
    written = written.strip()
    if found := RANGE.fullmatch(written):
        low, high = (_finite(name, number) for number in found.groups())
        if low > high:
            raise RecipeError(f"{name}: the range {written} is upside down", hint=f"{found[2]}..{found[1]}")
        if low == high:
            raise RecipeError(f"{name}: the range {written} has one value")
        return Axis(name, low, high)
    words = [word.strip() for word in written.split(",")]
    if "" in words:
        raise RecipeError(f"{name}: {written!r} has an empty value", hint="such as 0..1, or 0,0.25,0.5")
    values = [tuple(word.split("+")) if order else _value(name, word) for word in words]
    if twice := _twice(values):
        raise RecipeError(f"{name}: the value {twice} stands twice")
    if all(is_number(value) for value in values):
        return Axis(name, values=tuple(sorted(values)))  # pyright: ignore[reportArgumentType]
    if numbers:
        raise RecipeError(f"{name}: {written!r} are not numbers", hint="such as 0..1, or 0,0.25,0.5")
    return Axis(name, values=tuple(values))


def _value(name: str, word: str) -> Value:
    if ".." in word and not word.strip("."):
        raise RecipeError(f"{name}: {word!r} is not a range", hint="such as 0..1")
    if re.fullmatch(r"[+-]?[0-9]{1,18}", word):
        return int(word)
    if re.fullmatch(NUMBER, word):
        return _finite(name, word)
    if word.lower().strip("+-.") in {"nan", "inf", "infinity"}:
        raise RecipeError(f"{name}: {word} is not a finite number")
    return WORDS.get(word, word)


def _finite(name: str, word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise RecipeError(f"{name}: {word} is not a finite number")
    return number


def _sum(recipe: Recipe, text: str) -> Sum:
    """One --sum: the first member of the table takes what the others leave."""
    table, equals, total = (part.strip() for part in text.partition("="))
    if not equals or not re.fullmatch(NUMBER, total):
        raise RecipeError(f"--sum {text!r} is not TABLE=NUMBER", hint="such as language.weights=1")
    members = members_of(recipe, table)
    if not members:
        raise RecipeError(f"--sum {table} has no number for each member", hint="such as language.weights=1")
    paths = [f"{table}.{name}" for name in members]
    fixed = {path: value for path in paths[1:] if isinstance(value := current(recipe, path), int | float | list | dict)}
    return Sum(table, _finite(table, total), paths[0], tuple(paths[1:]), fixed)


def _twice(values: Sequence[Any]) -> Any:
    """The first value that stands twice, as text; "" if none. True and 1 are two values."""
    seen: set[tuple[type, Any]] = set()
    for value in values:
        key = (bool if isinstance(value, bool) else float if is_number(value) else type(value), value)
        if key in seen:
            return "+".join(value) if isinstance(value, tuple) else str(value)
        seen.add(key)
    return ""
