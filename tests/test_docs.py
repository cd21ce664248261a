"""What the documents say is so: recipes parse, files exist, methods and parameters are those of the table."""

import re
from pathlib import Path

import pytest

from fuse.cli import VERBS
from fuse.families.registry import FAMILIES
from fuse.methods.table import METHODS, REQUIRED
from fuse.recipe_yaml import load_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md")]
)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
        assert "://" in target or ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_recipes_parse(name: str, tmp_path: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
        (tmp_path / "recipe.yaml").write_text(block)
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_verbs_and_targets_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for verb in re.findall(r"^\s*fuse (\w+)", text, re.MULTILINE):
        assert verb in VERBS
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= targets


def test_table_of_methods() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(METHODS)
    for name, told in rows:
        if told.startswith("as "):
            assert METHODS[name].params.keys() == METHODS[told.split("`")[1]].params.keys()
            continue
        for field, param in METHODS[name].params.items():
            default = (
                ""
                if param.default is REQUIRED
                else f" ({param.default:g})"
                if not isinstance(param.default, bool)
                else f" ({str(param.default).lower()})"
            )
            assert f"`{field}`{default}" in told, (name, field, default)


def test_every_family_is_named() -> None:
    text = re.sub(r"[^a-z0-9]", "", (ROOT / "README.md").read_text().lower())
    for name in FAMILIES:
        plain = re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("chat")
        assert plain in text, name
