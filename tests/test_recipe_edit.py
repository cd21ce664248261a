"""Recipes edited by path: what is set is what the strict reader reads, and the rest of the file stays as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from fuse.errors import RecipeError
from fuse.recipe_edit import changed, recipe_text
from fuse.recipe_types import LARGEST
from fuse.recipe_yaml import LoadedRecipe, parse_recipe

TEXT = """\
# yaml-language-server: $schema=x
# Two of one family.
base: 'zero'   # pretrained
members:
    one: one
    two: {path: sub/two, revision: abc}  # the other

language:
    method: ties  # trimmed
    weights: {one: 0.5, two: 0.25}
    density: 0.10

vision:
  # the order counts
  - one
  - from: two  # second
    max_tokens: 4
"""


def read(text: str = TEXT, file: Path = Path("r.yaml")) -> LoadedRecipe:
    return parse_recipe(file, text)


def data(loaded: LoadedRecipe) -> Any:
    return YAML(typ="safe", pure=True).load(loaded.text)


def test_only_the_value_changes() -> None:
    loaded = read()
    new = changed(loaded, {"language.weights.one": 0.75, "vision.two.max_tokens": 9})
    assert new.text == TEXT.replace("one: 0.5", "one: 0.75").replace("max_tokens: 4", "max_tokens: 9")
    assert new.recipe.language.weights == {"one": 0.75, "two": 0.25}
    assert new.recipe.vision is not None and new.recipe.vision[1].max_tokens == 9
    assert (loaded.text, new.file) == (TEXT, loaded.file)
    assert recipe_text(new) == new.text
    assert changed(loaded, {}).text == TEXT


STYLES = [
    "members: {one: x}\nlanguage: {method: linear, weights: 1}\nvision:\n- one\n",
    "members: {one: x}\nlanguage:\n   method: linear\n   weights: 1\nvision:\n   - one\n",
    "members:\n  one: x\nlanguage:\n  method: linear\n  weights:\n    - 1\n    - 2\nvision:\n  - one\n",
    '{"members": {"one": "x"}, "language": {"method": "linear", "weights": 1}, "vision": ["one"]}\n',
]


@pytest.mark.parametrize("text", STYLES)
def test_other_people_s_indents_stay(text: str) -> None:
    assert changed(read(text), {}).text == text


NUMBERS_AS_WRITTEN = (
    "1e5 1.5843676859037889e+19 0x10 -0o7 .5 1_000 +3 1. -.5e-3 12e03 0.10 007 9007199254740993".split()
)


@pytest.mark.parametrize("number", NUMBERS_AS_WRITTEN)
def test_other_numbers_stay_as_written(number: str) -> None:
    text = LINEAR.replace("weights: 0.5", f"weights: {{one: {number}, two: 1}}")
    assert changed(read(text), {"language.weights.two": 2}).text == text.replace("two: 1", "two: 2")
    spread = changed(read(LINEAR.replace("0.5", number)), {"language.weights.two": 2})
    assert f"weights: {{one: {number}, two: 2}}" in spread.text


LINEAR = "members: {one: x, two: y}\nlanguage: {method: linear, weights: 0.5}\n"
TIES = "base: z\nmembers: {one: x, two: y}\nlanguage: {method: ties, weights: {one: 1}, density: 0.5}\n"
TABLE = "members: {one: x, two: y}\nlanguage: {method: linear, weights: {'*.mlp.*': 0.5, '*': [0, 1]}}\n"
EDITS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (LINEAR, {"language.weights": [0, 1]}, {"weights": [0, 1]}),
    (LINEAR, {"language.weights.two": 2}, {"weights": {"one": 0.5, "two": 2}}),
    (LINEAR, {"language.weights.two.*.mlp.*": 2}, {"weights": {"one": 0.5, "two": {"*.mlp.*": 2, "*": 0.5}}}),
    (LINEAR, {"language.weights.*.mlp.*": 2}, {"weights": {"*.mlp.*": 2, "*": 0.5}}),
    (LINEAR, {"language.weights.one": {"*.q.*": [0, 1], "*": 1}}, {"weights": {"one": {"*.q.*": [0, 1], "*": 1}, "two": 0.5}}),
    (LINEAR, {"language.normalize": False}, {"weights": 0.5, "normalize": False}),
    (LINEAR, {"language.method": "slerp", "language.weights": None, "language.t": 0.25}, {"method": "slerp", "t": 0.25}),
    (LINEAR, {"language.normalize": None}, {"weights": 0.5}),
    (LINEAR, {"language.weights.one": np.float32(0.5), "language.weights.two": np.int64(3)}, {"weights": {"one": 0.5, "two": 3}}),
    (TIES, {"language.density.one": 0.25}, {"weights": {"one": 1}, "density": {"one": 0.25}}),
    (TIES, {"language.lambda.*.mlp.*": 3}, {"weights": {"one": 1}, "density": 0.5, "lambda": {"*.mlp.*": 3}}),
    (TIES, {"language.weights.two": 0.5}, {"weights": {"one": 1, "two": 0.5}, "density": 0.5}),
    (TABLE, {"language.weights.one": 3}, {"weights": {"one": 3, "two": {"*.mlp.*": 0.5, "*": [0, 1]}}}),
    (TABLE, {"language.weights.*.mlp.*": 3}, {"weights": {"*.mlp.*": 3, "*": [0, 1]}}),
    (TABLE, {"language.weights.*.q.*": 3}, {"weights": {"*.q.*": 3, "*.mlp.*": 0.5, "*": [0, 1]}}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "values", "wanted"), EDITS)
def test_language(text: str, values: dict[str, Any], wanted: dict[str, Any]) -> None:
    loaded = read(text)
    found = data(changed(loaded, values))
    assert found["language"] == {"method": loaded.recipe.language.method, **wanted}
    assert str(found["language"].get("weights")) == str(wanted.get("weights"))  # patterns are in order
    assert {k: v for k, v in found.items() if k != "language"} == {
        k: v for k, v in data(loaded).items() if k != "language"
    }


def test_sections_and_short_forms() -> None:
    values = {
        "prompt.template": "one", "output.dtype": "bfloat16", "vision.one.max_tokens": 3, "vision.1.prune": "norm",
        "vision.two.merge": {"method": "linear", "weights": 1}, "vision.two.merge.weights.one": 0, "base.revision": "abc",
        "members.one.revision": "def",
    }  # fmt: skip
    found = data(changed(read(), values))
    assert found["vision"] == [
        {"from": "one", "max_tokens": 3},
        {
            "from": "two",
            "max_tokens": 4,
            "prune": "norm",
            "merge": {"method": "linear", "weights": {"one": 0, "two": 1}},
        },
    ]
    assert (found["prompt"], found["output"]) == ({"template": "one"}, {"dtype": "bfloat16"})
    assert found["base"] == {"path": "zero", "revision": "abc"}
    assert found["members"]["one"] == {"path": "one", "revision": "def"}


def test_order_of_branches() -> None:
    new = changed(read(), {"vision": ["two", "one"]})
    assert data(new)["vision"] == [{"from": "two", "max_tokens": 4}, "one"]
    assert "  - from: two  # second\n    max_tokens: 4\n  - one\n" in new.text
    assert data(changed(new, {"vision": ["one", "two"]})) == data(read())
    assert data(changed(read(), {"vision": [{"from": "one", "max_tokens": 2}]}))["vision"] == [
        {"from": "one", "max_tokens": 2}
    ]
    assert data(changed(read(), {"vision.one": None}))["vision"] == [{"from": "two", "max_tokens": 4}]
    assert data(changed(read(LINEAR), {"vision": ["one"]}))["vision"] == ["one"]


REFUSED = [
    ("language.wieghts.one", 1, "language.wieghts: unknown key (did you mean: weights)"),
    ("language.t", 0.5, "language.t: ties has no t (it takes: weights, density, lambda, normalize)"),
    ("language.lambda", float("nan"), ".nan is not a finite number"),
    ("language.lambda", "much", "language.lambda: should be a valid number, not 'much'"),
    ("language.method.x", 1, "language.method is 'ties', which holds no 'x'"),
    ("vision.three.max_tokens", 1, "vision.three: there is no 'three' (known: one, two)"),
    ("vision.one.max_tokens", 0, "vision.0.max_tokens: should be greater than or equal to 1, not 0"),
    ("vision", "one", "vision: should be a list of branches, not 'one'"),
    ("language..lambda", 1, "'language..lambda' is not a path (such as language.weights.MEMBER)"),
    ("members", None, "members: is missing"),
    ("language.lambda", {1}, "language.lambda: set is nothing that a recipe can hold"),
]


@pytest.mark.parametrize(("path", "value", "problem"), REFUSED)
def test_refusals_name_the_path(path: str, value: Any, problem: str) -> None:
    with pytest.raises(RecipeError) as error:
        changed(read(), {path: value})
    assert str(error.value) == f"r.yaml: with {path} = {value!r}: {problem}"


NUMBERS = st.floats(-LARGEST, LARGEST) | st.integers(-(2**53), 2**53)
VALUES = NUMBERS | st.lists(NUMBERS, min_size=1, max_size=5) | st.dictionaries(
    st.sampled_from(["*.mlp.*", "layers.[01].*", "*"]), NUMBERS, min_size=1)  # fmt: skip


@settings(deadline=None)
@given(text=st.sampled_from([TEXT, LINEAR, TIES, TABLE]), one=VALUES, two=VALUES)
def test_what_is_set_is_what_is_read(text: str, one: Any, two: Any) -> None:
    new = changed(read(text), {"language.weights.one": one, "language.weights.two": two})
    assert new.recipe.language.weights == {"one": one, "two": two}
    assert changed(new, {"language.weights.one": one}).text == new.text


def test_paths_still_lead_there_from_another_folder(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "deep" / "other"
    for folder in (home / "zero", home / "one", home / "sub" / "two", other):
        folder.mkdir(parents=True)
    text = TEXT.replace(
        "- one\n",
        "- {name: eyes, encoder: one, projector: /no/where}\n  - {name: far, timm: one, weights: w, projector: p}\n",
    )
    loaded = read(text, home / "r.yaml")
    told = recipe_text(loaded, other)
    found = data(read(told, other / "r.yaml"))
    assert found["base"] == "../../home/zero" and (other / found["base"]).is_dir()
    assert found["members"] == {"one": "../../home/one", "two": {"path": "../../home/sub/two", "revision": "abc"}}
    assert found["vision"][0] == {"name": "eyes", "encoder": "../../home/one", "projector": "/no/where"}
    assert found["vision"][1] == {"name": "far", "timm": "one", "weights": "w", "projector": "p"}  # no such files
    assert "# pretrained" in told and "weights: {one: 0.5, two: 0.25}" in told
    assert recipe_text(loaded, home) == text
