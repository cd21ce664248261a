"""The JSON schema: what an editor checks a recipe by is what fuse takes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from fuse.schema import schema_text
from tests.cli import fuse_here

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads(schema_text())
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)


def mistakes(recipe: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(recipe)]


def recipes_of(page: Path) -> list[Any]:
    """The whole recipes of a page, but mergekit's."""
    found = [yaml.safe_load(text) for text in FENCE.findall(page.read_text())]
    return [one for one in found if isinstance(one, dict) and "members" in one and "merge_method" not in one]


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert fuse_here("schema").out == schema_text()


def test_the_copy_in_the_tree_is_current() -> None:
    assert (ROOT / "fuse" / "recipe.schema.json").read_text() == schema_text(), (
        "run: fuse schema > fuse/recipe.schema.json"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_it_takes_every_recipe(file: Path) -> None:
    assert mistakes(yaml.safe_load(file.read_text())) == []


def test_it_takes_the_recipes_of_the_pages() -> None:
    found = [(page.name, recipe) for page in PAGES for recipe in recipes_of(page)]
    assert len(found) > 40
    assert [(name, wrong) for name, recipe in found if (wrong := mistakes(recipe))] == []


LANGUAGE = {"method": "linear", "weights": 1}
BROKEN = {
    "an unknown key": {"members": {"a": "x"}, "langauge": {}},
    "a member that is a number": {"members": {"a": 3}},
    "a member without a name": {"members": {"a": ""}},
    "a key of a member": {"members": {"a": {"path": "x", "revison": "main"}}},
    "a branch that is a list": {"members": {"a": "x"}, "vision": [["a"]]},
    "a branch with a typo": {"members": {"a": "x"}, "vision": [{"from": "a", "max_token": 3}]},
}


@pytest.mark.parametrize("case", BROKEN)
def test_it_refuses(case: str) -> None:
    assert mistakes({"members": {"a": "x"}, "language": LANGUAGE}) == []
    assert len(mistakes({"language": LANGUAGE, **BROKEN[case]})) == 1
