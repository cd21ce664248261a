"""Recipes with other values: set by path in the YAML itself, so that comments and order stay."""

import copy
import io
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from fuse.errors import RecipeError
from fuse.recipe import Recipe
from fuse.recipe_merge import PARAMETERS
from fuse.recipe_yaml import LoadedRecipe, parse_recipe
from fuse.suggest import did_you_mean

Steps = tuple[str, ...]
AT = re.compile(r"^[^\n]*?:\d+:\d+: ", re.MULTILINE)  # a place in a text that nobody has seen
KEY_ALONE = re.compile(r"^( *)[^\s#-][^\n]*:[ ]*(?:#[^\n]*)?\n(?=(?:[ ]*(?:#[^\n]*)?\n)*([ ]*)(- *)?\S)", re.MULTILINE)
PATHS = ("path", "vision_tower", "vision_tower_aux", "weights", "projector", "encoder")


class Written(str):
    """A number as the file writes it: ruamel's own floats may come back another number in the last digit."""

    tag: str


class _Constructor(RoundTripConstructor):
    def written(self, node: ScalarNode) -> Written:
        number = Written(node.value)
        number.tag = node.tag
        return number


class _Representer(RoundTripRepresenter):
    def written(self, number: Written) -> ScalarNode:
        return self.represent_scalar(number.tag, number)


for _kind in ("int", "float"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _Constructor.written)
_Representer.add_representer(Written, _Representer.written)


def changed(loaded: LoadedRecipe, values: Mapping[str, Any]) -> LoadedRecipe:
    """The recipe with each value set at its dotted path, as if the user had written it there.

    Paths: `language.lambda`, `language.weights.MEMBER` (a single number for all members becomes one each),
    `language.weights.MEMBER.PATTERN`, `vision.NAME.max_tokens` (a branch by its name, or its number from 0),
    `prompt.template` and so on; keys that are missing are made. values: numbers, text, lists and tables of these; None
    takes the key out. `vision` takes a list of branch names, which keep what the recipe says of them.
    Raises RecipeError, naming the paths, where the result is no recipe. `loaded` stays as it is.
    """
    yaml, data = _open(loaded.text)
    try:
        for path, value in values.items():
            _set(loaded.recipe, data, path, plain(value, path))
        return parse_recipe(loaded.file, _dumped(yaml, data))
    except RecipeError as error:
        told = ", ".join(f"{path} = {value!r}" for path, value in values.items())
        raise RecipeError(f"with {told}: {AT.sub('', str(error))}", where=loaded.file.name) from None


def recipe_text(loaded: LoadedRecipe, folder: Path | None = None) -> str:
    """The recipe's YAML. folder: where it is going to stand, so that paths of folders and files still lead there."""
    if folder is None or folder.resolve() == loaded.folder.resolve():
        return loaded.text
    yaml, data = _open(loaded.text)
    for table, key in _paths(data):
        here = loaded.folder / table[key]
        if not Path(table[key]).is_absolute() and here.exists():
            table[key] = os.path.relpath(here.resolve(), folder.resolve())
    return _dumped(yaml, data)


def plain(value: Any, path: str) -> Any:
    """Numbers of any library as Python's, lists and tables likewise; RecipeError for what a recipe cannot hold."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner, path) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [plain(inner, path) for inner in value]
    raise RecipeError(f"{path}: {type(value).__name__} is nothing that a recipe can hold")


def _open(text: str) -> tuple[YAML, CommentedMap]:
    """The text for a round trip, and a writer that indents as it does."""
    mapping, sequence, offset = 2, 4, 2
    for key, below, dash in KEY_ALONE.findall(text):
        if dash:
            offset = len(below) - len(key)
            sequence = offset + len(dash)
        elif len(below) > len(key):
            mapping = len(below) - len(key)
    yaml = YAML()
    yaml.Constructor, yaml.Representer = _Constructor, _Representer
    yaml.preserve_quotes, yaml.width = True, 1 << 30
    yaml.indent(mapping, sequence, offset)
    return yaml, yaml.load(text)


def _dumped(yaml: YAML, data: CommentedMap) -> str:
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def _set(recipe: Recipe, data: CommentedMap, path: str, value: Any) -> None:
    """Walk to the table that the path's last step stands in, making what is missing, and set it there."""
    members = list(recipe.members)
    steps, parameter = _steps(path, members)
    table: Any = data
    for number, step in enumerate(steps[:-1]):
        key = _key(table, step, steps[: number + 1])
        inner = table[key] if isinstance(table, list) else table.get(key)
        if parameter is not None and number >= parameter:
            names = _participants(table, members) if number == parameter and steps[number + 1] in members else None
            table[key] = table = _spread(inner, names)
        else:
            table[key] = table = _opened(steps, number, inner)
    key = _key(table, steps[-1], steps)
    is_pattern = parameter is not None and parameter < len(steps) - 1 and key not in members
    if value is None:
        if isinstance(table, list) or key in table:
            del table[key]
    elif steps == ("vision",):
        table[key] = _branches(table.get(key), value)
    elif is_pattern and key not in table:
        table.insert(0, key, _flow(value))  # of the patterns that fit, the first wins
    else:
        table[key] = _flow(value)


def _steps(path: str, members: Sequence[str]) -> tuple[Steps, int | None]:
    """The keys on the way, and which of them is a method's parameter.

    Below a parameter, what is no member's name is one pattern, dots and all.
    """
    steps = path.split(".")
    for number, step in enumerate(steps):
        if step in PARAMETERS and (steps[0], number) in {("language", 1), ("vision", 3)}:
            first = number + 1
            first += first < len(steps) and steps[first] in members
            return (*steps[:first], *filter(None, [".".join(steps[first:])])), number
    if "" in steps:
        raise RecipeError(f"{path!r} is not a path", hint="such as language.weights.MEMBER")
    return tuple(steps), None


def _participants(section: Any, members: list[str]) -> list[str]:
    """Whom a parameter by member is for: those that the section's weights name, else all."""
    weights = section.get("weights")
    return [name for name in members if isinstance(weights, dict) and name in weights] or members


def _spread(inner: Any, names: list[str] | None) -> Any:
    """A parameter's value as a table: by member where names are given, else by pattern. One value for all is copied."""
    if inner is None or (isinstance(inner, dict) and (names is None or set(inner) & set(names))):
        return inner if inner is not None else _flow({})
    return _flow({name: plain(inner, name) for name in names or ["*"]})


def _opened(steps: Steps, number: int, inner: Any) -> Any:
    """The table or list that a step leads into: the one that is there, its short form written out, or a new one."""
    here = steps[: number + 1]
    if isinstance(inner, dict | list):
        return inner
    if inner is None:
        return _flow({})
    if here == ("base",) or (here[0] == "members" and len(here) == 2):
        return _flow({"path": inner})
    if here[0] == "vision" and len(here) == 2:
        return _flow({"from": inner})
    raise RecipeError(f"{'.'.join(here)} is {inner!r}, which holds no {steps[number + 1]!r}")


def _key(table: Any, step: str, steps: Steps) -> Any:
    """The step as a key of the table; in the list of branches, the number of the branch of that name."""
    if not isinstance(table, list):
        return step
    titles = [_title(entry) for entry in table]
    if steps[0] == "vision" and step in titles:
        return titles.index(step)
    if step.isdigit() and int(step) < len(table):
        return int(step)
    raise RecipeError(f"{'.'.join(steps)}: there is no {step!r} ({did_you_mean(step, map(str, titles))})")


def _title(entry: Any) -> Any:
    return entry.get("from", entry.get("name")) if isinstance(entry, dict) else entry


def _branches(present: Any, value: Any) -> Any:
    """The branches in another order: of each name, what the recipe says of it; other entries as they are."""
    if not isinstance(value, list):
        raise RecipeError(f"vision: should be a list of branches, not {value!r}")
    said = {_title(entry): entry for entry in present or []}
    made = CommentedSeq(copy.deepcopy(said.get(entry, entry)) if isinstance(entry, str) else _flow(entry)
                        for entry in value)  # fmt: skip
    if not value or not isinstance(present, CommentedSeq) or present.fa.flow_style():
        made.fa.set_flow_style()
    return made


def _flow(value: Any) -> Any:
    """New lists and tables on one line, as recipes write them; those of the file stay as they are."""
    if isinstance(value, dict) and not isinstance(value, CommentedMap):
        made: Any = CommentedMap((key, _flow(inner)) for key, inner in value.items())
    elif isinstance(value, list) and not isinstance(value, CommentedSeq):
        made = CommentedSeq(_flow(inner) for inner in value)
    else:
        return value
    made.fa.set_flow_style()
    return made


def _paths(data: CommentedMap) -> list[tuple[Any, Any]]:
    """Where the recipe names folders and files: the table and the key in it."""
    found: list[tuple[Any, Any]] = [(data, "base")]
    found += [(data["members"], name) for name in data["members"]]
    tables = [inner for table, key in found if isinstance(inner := table.get(key), dict)]
    tables += [table["towers"] for table in tables if isinstance(table.get("towers"), dict)]
    entries = [entry for entry in data.get("vision") or [] if isinstance(entry, dict)]
    tables += [
        *entries,
        *(
            share
            for entry in entries
            if isinstance(entry.get("projector"), list)
            for share in entry["projector"]
            if isinstance(share, dict)
        ),
    ]
    found += [(table, key) for table in tables for key in PATHS]
    return [(table, key) for table, key in found if isinstance(table.get(key), str)]
