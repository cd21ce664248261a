"""YAML to recipe, strictly; every error has file, line and column.

Parses to nodes and builds plain values itself, so that directives, tags, anchors, aliases, merge keys, duplicate keys
and NaN are refused where they stand and nothing is ever constructed by name. What is too deep or too much is refused
while it is read, before anything is built of it.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    ScalarEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fuse.errors import RecipeError
from fuse.handles import OF_MACHINE
from fuse.recipe import Recipe
from fuse.recipe_mistakes import Path_, dotted, sentences, where_of
from fuse.suggest import near

MAX_BYTES = 1 << 18  # ruamel reads some 100 KB in a second
MOST_MISTAKES = 8  # that are listed
MAX_DEPTH = 32
MAX_VALUES = 20_000  # keys and values; a second's work
DIRECTIVE = re.compile(r"(?:[ \t]*(?:#.*)?\n)*%")  # before anything else: it changes what `yes` or `010` mean


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
        return RecipeError(f"{dotted(path)}: {problem}", where=where_of(self.file, self.positions, path), hint=hint)


def load_recipe(file: Path) -> LoadedRecipe:
    """Read, parse and validate a recipe; RecipeError (one line per mistake) when anything is wrong with it."""
    return parse_recipe(file, _read(file))


def parse_recipe(file: Path, text: str) -> LoadedRecipe:
    """A recipe whose text is at hand, as if it stood in `file`; errors as `load_recipe` raises them."""
    positions: dict[Path_, tuple[int, int]] = {}
    data = _parse(file, text, positions)
    if isinstance(data, dict) and "merge_method" in data:
        from fuse.mergekit_recipe.translate import translated

        return translated(file, text, data, positions)
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
        lines = sentences(file, positions, data, (dict(item) for item in error.errors()))
        more = [f"and {len(lines) - MOST_MISTAKES} more"] if len(lines) > MOST_MISTAKES else []
        raise RecipeError(lines[0], more=[*lines[1:MOST_MISTAKES], *more]) from None
    return LoadedRecipe(recipe, file, text, positions)


def _read(file: Path) -> str:
    if not file.exists():
        raise RecipeError("there is no such file", where=file, hint=_neighbours(file))
    if file.is_dir():
        raise RecipeError("is a folder, not a recipe", where=file, hint=_inside(file))
    if not file.is_file():
        raise RecipeError("this is not a plain file", where=file)
    if (size := file.stat().st_size) > MAX_BYTES:
        raise RecipeError(f"{size:,} bytes is more than a recipe's {MAX_BYTES:,}", where=file)
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8 at byte {error.start}", where=file) from None
    except OSError as error:
        if error.errno in OF_MACHINE:  # the machine's, not the recipe's
            raise
        raise RecipeError(f"cannot be read ({error.strerror})", where=file) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _neighbours(file: Path) -> str:
    """`did you mean: recipe.yaml`, where a recipe of nearly that name lies there."""
    found = near(file.name, [name for name in _yamls(file.parent) if name != file.name])
    return f"did you mean: {', '.join(found)}" if found else ""


def _inside(folder: Path) -> str:
    """What to name instead of a folder."""
    found = _yamls(folder)
    return f"name a file in it, such as {folder / found[0]}" if found else "a recipe is a file such as recipe.yaml"


def _yamls(folder: Path) -> list[str]:
    try:
        return sorted(one.name for one in folder.iterdir() if one.suffix in {".yaml", ".yml"} and one.is_file())
    except OSError:
        return []


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
    except (ValueError, OverflowError):  # of chr
        raise RecipeError("not YAML: an escape is beyond Unicode", where=file.name) from None
    if node is None:
        raise RecipeError("the recipe is empty", where=file.name, hint="it needs members and language")
    return _value(file, node, (), positions)


def _check_events(file: Path, text: str) -> None:
    if before := DIRECTIVE.match(text):
        where = f"{file.name}:{before[0].count(chr(10)) + 1}:1"
        raise RecipeError("directives are not allowed in a recipe", where=where)
    documents = depth = values = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        documents += isinstance(event, DocumentStartEvent)
        values += isinstance(event, ScalarEvent | CollectionStartEvent)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        at = f"{file.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        if depth > MAX_DEPTH:
            raise RecipeError("nested too deeply", where=at)
        if values > MAX_VALUES:
            raise RecipeError(f"more than {MAX_VALUES:,} keys and values", where=at)
        if documents > 1:
            raise RecipeError("a recipe is one document", where=at)
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise RecipeError("anchors and aliases are not allowed in a recipe", where=at, hint="write it out")
        if getattr(event, "tag", None) is not None:
            raise RecipeError(f"the tag {event.tag} is not allowed in a recipe", where=at)


def _value(file: Path, node: Node, path: Path_, positions: dict[Path_, tuple[int, int]]) -> Any:
    at = f"{file.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
    positions.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, SequenceNode):
        return [_value(file, child, (*path, i), positions) for i, child in enumerate(node.value)]
    if isinstance(node, MappingNode):
        table: dict[str, Any] = {}
        for key, child in node.value:
            where = (key.start_mark.line + 1, key.start_mark.column + 1)
            at = f"{file.name}:{where[0]}:{where[1]}"
            if not isinstance(key, ScalarNode) or key.value == "<<":
                raise RecipeError("a key is a plain word", where=at)
            _check_text(key.value, at)
            if key.value in table:
                raise RecipeError(f"{dotted((*path, key.value))}: the key stands twice", where=at)
            positions[(*path, key.value)] = where
            table[key.value] = _value(file, child, (*path, key.value), positions)
        return table
    assert isinstance(node, ScalarNode)
    _check_text(node.value, at)
    return _scalar(node, at)


def _check_text(text: str, at: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RecipeError("holds half of a surrogate pair, which is no text", where=at)


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
