"""YAML to recipe, strictly; every error has file, line and column.

Parses to nodes and builds plain values itself, so that tags, anchors, aliases, merge keys, duplicate keys and NaN are
refused where they stand and nothing is ever constructed by name.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, DocumentStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fuse.errors import RecipeError
from fuse.recipe import Recipe
from fuse.suggest import did_you_mean

MAX_BYTES = 1 << 20
MOST_MISTAKES = 8  # that are listed
MAX_DEPTH = 32
# pydantic's kinds of errors -> our words
WORDS = {"model_type": "should be a table", "dict_type": "should be a table", "list_type": "should be a list",
         "bool_type": "should be true or false"}  # fmt: skip
ENTRIES = {"too_short": "should have {min_length} or more entries, and has {actual_length}",
           "too_long": "has more than {max_length:,} entries"}  # fmt: skip
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its text and the position of every key, so that later errors can point at it."""

    recipe: Recipe
    file: Path
    text: str
    positions: dict[Path_, tuple[int, int]]

    @property
    def folder(self) -> Path:
        return self.file.parent

    def error(self, path: Path_, problem: str, hint: str = "") -> RecipeError:
        """An error at a place of the recipe, such as ("language", "weights", "mgm")."""
        return RecipeError(f"{_dotted(path)}: {problem}", where=_where(self.file, self.positions, path), hint=hint)


def load_recipe(file: Path) -> LoadedRecipe:
    """Read, parse and validate a recipe; RecipeError (one line per mistake) when anything is wrong with it."""
    return parse_recipe(file, _read(file))


def parse_recipe(file: Path, text: str) -> LoadedRecipe:
    """A recipe whose text is at hand, as if it stood in `file`; errors as `load_recipe` raises them."""
    positions: dict[Path_, tuple[int, int]] = {}
    data = _parse(file, text, positions)
    if isinstance(data, dict) and "merge_method" in data:
        raise RecipeError(
            "this is a mergekit recipe",
            where=_where(file, positions, ("merge_method",)),
            hint="write it with members and language; README.md shows the same merge in both",
        )
    if (
        isinstance(data, dict)
        and not {"members", "language"} & set(data)
        and {"model_type", "architectures"} & set(data)
    ):
        raise RecipeError(
            "this is a model's config, not a recipe", where=file, hint="a recipe names its folder as a member"
        )
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_sentence(file, positions, data, dict(item)) for item in error.errors()]
        lines = list(dict.fromkeys(lines))
        more = [f"and {len(lines) - MOST_MISTAKES} more"] if len(lines) > MOST_MISTAKES else []
        raise RecipeError("\n".join([*lines[:MOST_MISTAKES], *more])) from None
    return LoadedRecipe(recipe, file, text, positions)


def _read(file: Path) -> str:
    if not file.exists():
        raise RecipeError("there is no such file", where=file)
    if not file.is_file():
        raise RecipeError("this is not a plain file", where=file)
    if (size := file.stat().st_size) > MAX_BYTES:
        raise RecipeError(f"{size:,} bytes is more than a recipe's {MAX_BYTES:,}", where=file)
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8 at byte {error.start}", where=file) from None
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror})", where=file) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _parse(file: Path, text: str, positions: dict[Path_, tuple[int, int]]) -> Any:
    try:
        _check_events(file, text)
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{file.name}:{mark.line + 1}:{mark.column + 1}" if mark else file.name
        raise RecipeError(f"not YAML: {error.problem or error.context}", where=at) from None
    except YAMLError as error:
        raise RecipeError(f"not YAML: {str(error).splitlines()[0]}", where=file.name) from None
    except RecursionError:
        raise RecipeError("nested too deeply", where=file.name) from None
    if node is None:
        raise RecipeError("the recipe is empty", where=file.name, hint="it needs members and language")
    return _value(file, node, (), positions)


def _check_events(file: Path, text: str) -> None:
    documents = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        documents += isinstance(event, DocumentStartEvent)
        at = f"{file.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        if documents > 1:
            raise RecipeError("a recipe is one document", where=at)
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise RecipeError("anchors and aliases are not allowed in a recipe", where=at, hint="write it out")
        if getattr(event, "tag", None) is not None:
            raise RecipeError(f"the tag {event.tag} is not allowed in a recipe", where=at)


def _value(file: Path, node: Node, path: Path_, positions: dict[Path_, tuple[int, int]]) -> Any:
    at = f"{file.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
    positions.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if len(path) > MAX_DEPTH:
        raise RecipeError("nested too deeply", where=at)
    if isinstance(node, SequenceNode):
        return [_value(file, child, (*path, i), positions) for i, child in enumerate(node.value)]
    if isinstance(node, MappingNode):
        table: dict[str, Any] = {}
        for key, child in node.value:
            where = (key.start_mark.line + 1, key.start_mark.column + 1)
            at = f"{file.name}:{where[0]}:{where[1]}"
            if not isinstance(key, ScalarNode) or key.value == "<<":
                raise RecipeError("a key is a plain word", where=at)
            if key.value in table:
                raise RecipeError(f"{_dotted((*path, key.value))}: the key stands twice", where=at)
            positions[(*path, key.value)] = where
            table[key.value] = _value(file, child, (*path, key.value), positions)
        return table
    assert isinstance(node, ScalarNode)
    return _scalar(node, at)


def _scalar(node: ScalarNode, at: str) -> Any:
    try:
        return _plain(node, at)
    except ValueError:
        raise RecipeError(f"{node.value} is not a number", where=at) from None


def _plain(node: ScalarNode, at: str) -> Any:
    kind, text = node.tag.rsplit(":", 1)[-1], node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        digits = text.replace("_", "")
        if len(digits) > 40:
            raise RecipeError("the number has too many digits", where=at)
        return int(digits, 0 if digits.lower().lstrip("+-").startswith(("0x", "0o", "0b")) else 10)
    if kind == "float":
        value = float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").replace(".NaN", "nan")
                      .replace(".Inf", "inf").replace(".INF", "inf").replace(".NAN", "nan"))  # fmt: skip
        if not math.isfinite(value):
            raise RecipeError(f"{text} is not a finite number", where=at)
        return value
    return text


def _where(file: Path, positions: dict[Path_, tuple[int, int]], path: Path_) -> str:
    while path not in positions:
        path = path[:-1]
    line, column = positions[path]
    return f"{file.name}:{line}:{column}"


def _dotted(path: Path_) -> str:
    return ".".join(str(p) for p in path) or "recipe"


def _sentence(file: Path, positions: dict[Path_, tuple[int, int]], data: Any, error: dict[str, Any]) -> str:
    path = _actual_path(data, error)
    problem, known = error["msg"], _fields(path)
    if error["type"] == "extra_forbidden":
        problem = f"unknown key ({did_you_mean(path[-1], known)})"
    elif error["type"] == "missing":
        problem = "is missing"
    elif error["type"] in ENTRIES:
        problem = ENTRIES[error["type"]].format(**error["ctx"])
    elif "Input should be" in problem:
        told = WORDS.get(error["type"]) or problem.replace("Input should", "should")
        problem = f"{told}, not {_short(error['input'])}"
    return f"{_where(file, positions, path)}: {_dotted(path)}: {problem}"


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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
