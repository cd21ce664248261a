"""A recipe out of answers: options that would not work here are left out, and the file is written at the end."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from fuse import schema
from fuse.errors import FuseError, RecipeError
from fuse.planner import make_plan
from fuse.recipe_new.answers import Answers
from fuse.recipe_new.lines import Line, recipe_lines, written
from fuse.recipe_yaml import parse_recipe

SCHEMA = "recipe.schema.json"


def schema_beside(file: Path) -> tuple[str, bool]:
    """What the first line names as the schema, and whether it still has to be written beside the recipe.

    A copy beside the recipe travels with it. Where something else has the name, it is the installed file.
    """
    beside = file.parent / SCHEMA
    if not os.path.lexists(beside):
        return SCHEMA, True
    try:
        same = beside.read_text(encoding="utf-8") == schema.schema_text()
    except (OSError, UnicodeDecodeError):
        same = False
    return (SCHEMA if same else str(Path(schema.__file__).parent / SCHEMA)), False


def text_of(answers: Answers, file: Path, schema: str) -> str:
    """The recipe's text for `file`; of its options those that its plan takes, as far as the members can be opened."""
    lines = recipe_lines(answers, file, schema)
    options = [number for number, line in enumerate(lines) if line.option]
    if not answers.opened or not _works(lines, file, []) or _works(lines, file, options):
        return written(lines)
    bad = {number for number in options if not _works(lines, file, [number])}
    return written([line for number, line in enumerate(lines) if number not in bad])


def _works(lines: Sequence[Line], file: Path, chosen: Sequence[int]) -> bool:
    try:
        make_plan(parse_recipe(file, written(lines, chosen)))
    except FuseError:
        return False
    return True


def write(file: Path, text: str) -> None:
    """Write a text file whole or not at all. RecipeError where its folder is not there."""
    if not file.parent.is_dir():
        raise RecipeError(f"the folder {str(file.parent)!r} does not exist", where=file, hint="make it first")
    with NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, prefix=f".{file.name[:100]}.", delete=False) as new:
        try:
            new.write(text)
            new.close()
            mask = os.umask(0)
            os.umask(mask)
            Path(new.name).chmod(0o666 & ~mask)
            Path(new.name).replace(file)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise
