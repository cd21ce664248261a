"""What the schema finds wrong with a recipe, as a sentence with file, line and column."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from fuse.errors import short
from fuse.recipe import Recipe
from fuse.suggest import did_you_mean, near

# pydantic's kinds of errors -> our words
WORDS = {"model_type": "should be a table", "dict_type": "should be a table", "list_type": "should be a list",
         "bool_type": "should be true or false"}  # fmt: skip
ENTRIES = {"too_short": "should have {min_length} or more entries, and has {actual_length}",
           "too_long": "has more than {max_length:,} entries", "string_too_short": "is empty",
           "string_too_long": "has more than {max_length:,} characters"}  # fmt: skip
Path_ = tuple[str | int, ...]
MERGEKIT = "merge_method"  # the key by which its recipes are known
WORD = re.compile(r"[\w./-]{1,40}", re.ASCII)


def where_of(file: Path, positions: dict[Path_, tuple[int, int]], path: Path_) -> str:
    """`recipe.yaml:3:5` of a place in the recipe, or of what it would stand in."""
    while path not in positions:
        path = path[:-1]
    line, column = positions[path]
    return f"{file.name}:{line}:{column}"


def dotted(path: Path_) -> str:
    """`language.weights.a`: a place in the recipe by its keys."""
    return ".".join(_key(str(key)) for key in path) or "recipe"


def sentences(
    file: Path, positions: dict[Path_, tuple[int, int]], data: Any, errors: Iterable[dict[str, Any]]
) -> list[str]:
    """All of pydantic's errors, each once; a key that is missing since it is misspelt is told as that alone."""
    found = list(errors)
    meant = {
        (*path[:-1], name)
        for path in (_actual_path(data, error) for error in found if error["type"] == "extra_forbidden")
        for name in near(path[-1], _fields(path))[:1]
    }
    lines = [
        sentence(file, positions, data, error)
        for error in found
        if error["type"] != "missing" or _actual_path(data, error) not in meant
    ]
    return list(dict.fromkeys(lines))


def sentence(file: Path, positions: dict[Path_, tuple[int, int]], data: Any, error: dict[str, Any]) -> str:
    """One of pydantic's errors, as `file:line:column: key: what is wrong`. data: what was read from the recipe."""
    path = _actual_path(data, error)
    problem, known = error["msg"], _fields(path)
    if error["type"] == "extra_forbidden":
        problem = f"unknown key ({_unknown(path, known)})"
    elif error["type"] == "missing":
        problem = "is missing" + _misspelt(data, path)
    elif error["type"] in ENTRIES:
        problem = ENTRIES[error["type"]].format(**error["ctx"])
    elif error["type"] == "union_tag_invalid":
        wanted = error["ctx"]["expected_tags"].replace("'", "").replace(", ", " or a ")
        problem = f"should be a {wanted}, not {short(error['input'])}"
    elif error["type"] == "string_pattern_mismatch":
        problem = f"{short(error['input'])} is not a commit, tag or branch"
    elif "Input should be" in problem:
        told = WORDS.get(error["type"]) or problem.replace("Input should", "should")
        given = error["input"]
        problem = f"{told}, not {'null' if given is None else short(given)}{_such_as(error, path)}"
    return f"{where_of(file, positions, path)}: {dotted(path)}: {problem}"


def _unknown(path: Path_, known: list[str]) -> str:
    """What a key that the schema does not know may have been meant as."""
    key, depth = path[-1], len(path)
    if depth > 1 and str(key).isdecimal():
        return "a number with a decimal comma? It is written with a point, such as 0.5"
    if depth == 1 and near(key, [*known, MERGEKIT]) == [MERGEKIT]:
        return f"did you mean: {MERGEKIT}, of a recipe of mergekit's"
    return did_you_mean(key, known)


def _misspelt(data: Any, path: Path_) -> str:
    """` (did you mean it by: form)` where a table that takes any key has one that is like the missing one."""
    for step in path[:-1]:
        data = data[step]
    written = [key for key in data if key not in _fields(path)] if isinstance(data, dict) and path else []
    found = near(path[-1], written) if path else []
    return f" (did you mean it by `{found[0]}`?)" if found and path[0] == "grafts" else ""


def _such_as(error: dict[str, Any], path: Path_) -> str:
    """How a word is written where a table or a list of words is wanted."""
    given = error["input"]
    if not isinstance(given, str) or not WORD.fullmatch(given):
        return ""
    if error["type"] == "list_type":
        return f" (such as [{given}])"
    fields = _fields((*path, ""))
    table = error["type"] == "model_type" and path and fields != _fields(path)
    return f" (such as {{{fields[0]}: {given}}})" if table else ""


def _actual_path(data: Any, error: dict[str, Any]) -> Path_:
    """The keys of the recipe on the way to the error; pydantic adds the names of union members and aliases."""
    path: list[str | int] = []
    steps = list(error["loc"])
    if key := (error.get("ctx") or {}).get("key"):
        steps.extend([key] if isinstance(key, str) else key)
    for i, step in enumerate(steps):
        inside = (isinstance(data, dict) and step in data) or (
            isinstance(data, list) and isinstance(step, int) and step < len(data)
        )
        if inside:
            path.append(step)
            data = data[step]
        elif i == len(steps) - 1 and error["type"] in {"missing", "parameter"}:
            path.append(step)
    return tuple(path)


def _fields(path: Path_) -> list[str]:
    """The keys that the schema knows where `path` ends."""
    model: type[BaseModel] = Recipe
    for step in path[:-1]:
        field = next((f for n, f in model.model_fields.items() if step in {n, f.alias}), None)
        found = next(_models(field.annotation), None) if field else None
        model = found or model
    return [f.alias or n for n, f in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _key(key: str) -> str:
    return (key if len(key) <= 100 else f"{key[:97]}...") or "''"
