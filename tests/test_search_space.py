"""The search space: what --over and --sum say, the points that they make, and where a search begins."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.errors import RecipeError
from fuse.recipe_edit import changed
from fuse.recipe_yaml import LoadedRecipe, load_recipe
from fuse.search.over import current, members_of, read_space
from fuse.search.parts import part_patterns
from fuse.search.space import Space
from fuse.search.start import start_point

RECIPE = """\
base: base
members: {a: a, b: b, c: c}
language:
  method: task_arithmetic
  weights: {a: 0.5, b: 0.25, c: 1}
  lambda: 0.8
vision: [a, {from: b, max_tokens: 16}]
"""
NAMES = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"]


def recipe(folder: Path, text: str = RECIPE) -> LoadedRecipe:
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml")


def space(folder: Path, *overs: str, sums: tuple[str, ...] = (), text: str = RECIPE, names: list[str] = NAMES) -> Space:
    return read_space(recipe(folder, text), overs, sums, lambda: names)


def test_without_over_every_weight_is_searched(tmp_path: Path) -> None:
    axes = space(tmp_path).axes
    assert [(axis.name, axis.low, axis.high) for axis in axes] == [
        ("language.weights.a", 0.0, 1.0), ("language.weights.b", 0.0, 1.0), ("language.weights.c", 0.0, 1.0),
    ]  # fmt: skip
    kept = space(tmp_path, sums=("language.weights=1",))
    assert [axis.name for axis in kept.axes] == ["language.weights.b", "language.weights.c"]


@pytest.mark.parametrize(
    ("over", "values"),
    [
        ("language.lambda=0..1", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("language.lambda=-1..1e0", (-1.0, -0.5, 0.0, 0.5, 1.0)),
        ("language.lambda=0.5,.25,1", (0.25, 0.5, 1)),
        ("language.method=linear, ties", ("linear", "ties")),
        ("language.normalize=true,false", (True, False)),
        ("vision.b.max_tokens=16,null", (16, None)),
        ("vision=a+b,b+a,a", (("a", "b"), ("b", "a"), ("a",))),
    ],
)
def test_values(tmp_path: Path, over: str, values: tuple[Any, ...]) -> None:
    (axis,) = space(tmp_path, over).axes
    assert axis.grid(5) == values
    assert [type(v) for v in axis.grid(5)] == [type(v) for v in values]


@given(st.floats(-100, 100), st.floats(0.01, 100), st.integers(2, 30))
def test_a_grid_goes_from_end_to_end_in_even_steps(low: float, width: float, steps: int) -> None:
    from fuse.search.space import Axis

    values = Axis("x", low, low + width).grid(steps)
    assert len(values) == steps
    assert [values[0], values[-1]] == pytest.approx([low, low + width], rel=1e-5, abs=1e-9)
    gaps = [b - a for a, b in itertools.pairwise(values)]  # pyright: ignore
    assert gaps == pytest.approx([width / (steps - 1)] * (steps - 1), rel=1e-4)


def test_bands_parts_and_ties_write_what_a_recipe_takes(tmp_path: Path) -> None:
    found = space(
        tmp_path, "language.weights.b@depth:3=0..1", "language.weights.c@parts=0,0.5", "language.lambda=0.5,1"
    )
    assert [axis.name for axis in found.axes] == [
        "language.weights.b[0]", "language.weights.b[1]", "language.weights.b[2]", "language.weights.c[attention]",
        "language.weights.c[mlp]", "language.weights.c[rest]", "language.lambda",
    ]  # fmt: skip
    values = found.values((0.1, 0.2, 0.3, 0, 0.5, 0.25, 1))
    assert values == {
        "language.weights.b": [0.1, 0.2, 0.3],
        "language.weights.c": {"*attn.*": 0, "*.mlp.*": 0.5, "*": 0.25},
        "language.lambda": 1,
    }
    made = changed(recipe(tmp_path), values).recipe.language
    assert made.weights == {"a": 0.5, "b": [0.1, 0.2, 0.3], "c": {"*attn.*": 0, "*.mlp.*": 0.5, "*": 0.25}}
    tied = space(tmp_path, "language.weights.*=0..1")
    assert tied.values((0.3,)) == {"language.weights.b": 0.3, "language.weights.c": 0.3}
    assert space(tmp_path, "vision=b+a,a+b").values((("b", "a"),)) == {"vision": ["b", "a"]}


def test_patterns_of_every_family_fit_and_take_apart() -> None:
    gpt2 = ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_fc.weight"]
    assert part_patterns(gpt2) == (("*attn.*", 0), ("*.mlp.*", 1), ("*", 2))
    t5 = [
        "shared.weight",
        "decoder.block.0.layer.1.EncDecAttention.k.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi.weight",
    ]
    assert part_patterns(t5) == (("*Attention.*", 0), ("*.DenseReluDense.*", 1), ("*", 2))
    opt = ["model.decoder.layers.0.fc1.bias", "model.decoder.layers.0.self_attn_layer_norm.bias"]
    assert part_patterns(opt) == (("*.fc[12].*", 1), ("*", 2))
    assert part_patterns(NAMES[1:]) == (("*attn.*", 0), ("*.mlp.*", 1))


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=2), st.floats(-2, 2))
def test_sums_are_kept(point: list[float], total: float) -> None:
    from fuse.search.space import Sum, left_of

    kept = Sum("t", total, "t.a", ("t.b", "t.c"))
    assert left_of(total, point, kept) + sum(point) == pytest.approx(total, abs=1e-4)  # pyright: ignore
    lists = left_of(total, [[point[0], point[1]], point[0]], kept)
    assert lists == pytest.approx([total - 2 * point[0], total - point[1] - point[0]], abs=1e-4)
    table = left_of(total, [{"*": point[0]}, point[1]], kept)
    assert table == pytest.approx({"*": total - sum(point)}, abs=1e-4)


def test_the_first_member_takes_what_is_left(tmp_path: Path) -> None:
    found = space(tmp_path, "language.weights.b=0..1", sums=("language.weights=2",))
    assert found.values((0.3,)) == {"language.weights.b": 0.3, "language.weights.a": 0.7}  # c has 1
    with pytest.raises(RecipeError, match=r"^language.weights: lists or tables of different kinds have no sum "):
        space(
            tmp_path, "language.weights.b@depth:2=0..1", "language.weights.c@depth:3=0..1", sums=("language.weights=1",)
        ).values((0.0,) * 5)


@pytest.mark.parametrize(
    ("overs", "sums", "said"),
    [
        (["language.lambda"], [], "--over 'language.lambda' is not PATH=VALUES (such as language.weights.b=0..1)"),
        (["language.lambda=1..0"], [], "language.lambda: the range 1..0 is upside down (0..1)"),
        (["language.lambda=1..1"], [], "language.lambda: the range 1..1 has one value"),
        (["language.lambda=0..1e999"], [], "language.lambda: 1e999 is not a finite number"),
        (["language.lambda=nan,1"], [], "language.lambda: nan is not a finite number"),
        (["language.lambda=1,,2"], [], "language.lambda: '1,,2' has an empty value (such as 0..1, or 0,0.25,0.5)"),
        (["language.lambda="], [], "language.lambda: '' has an empty value (such as 0..1, or 0,0.25,0.5)"),
        (["language.lambda=1,0.5,1.0"], [], "language.lambda: the value 1.0 stands twice"),
        (["language.lambda=0.5"], [], "nothing to search: every setting has one value (give a range such as 0..1, or several values)"),
        (["language.lambda=0..1", "language.lambda=0,1"], [], "--over sets language.lambda twice"),
        (["language.weights.*=0..1", "language.weights.b=0..1"], [], "--over sets language.weights.b twice"),
        (["language.weights.b@depth:1=0..1"], [], "--over language.weights.b@depth:1: a list over depth has 2 to 64 numbers"),
        (["language.weights.b@layers=0..1"], [], "--over language.weights.b@layers: @layers is not known (known: @depth:N, @parts)"),
        (["vision.a.max_tokens@parts=1,2"], [], "--over vision.a.max_tokens@parts: @parts are those of the language model"),
        (["language.weights.b@depth:2=x,y"], [], "language.weights.b[0]: 'x,y' are not numbers (such as 0..1, or 0,0.25,0.5)"),
        (["language.weights.a=0..1"], ["language.weights=1"], "language.weights.a takes what --sum leaves, so it cannot be searched"),
        (["language.lambda=0..1"], ["language.weights=1"], "--sum language.weights: no other member of it is searched"),
        ([], ["language.weights"], "--sum 'language.weights' is not TABLE=NUMBER (such as language.weights=1)"),
        ([], ["language.lambda=1"], "--sum language.lambda has no number for each member (such as language.weights=1)"),
        ([], ["language.weights=1", "language.weights=1"], "--sum language.weights stands twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched(tmp_path: Path, overs: list[str], sums: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match="^" + re.escape(said) + "$"):
        space(tmp_path, *overs, sums=tuple(sums))


def test_nothing_to_search(tmp_path: Path) -> None:
    slerp = "members: {a: a, b: b}\nlanguage: {method: slerp, t: 0.5}\n"
    with pytest.raises(RecipeError, match=r"^nothing to search: slerp has no weights \(--over PATH=VALUES names"):
        space(tmp_path, text=slerp)
    one = "members: {a: a}\nlanguage: {method: linear, weights: 1}\n"
    with pytest.raises(RecipeError, match=r"^nothing to search: one member and a sum leave no choice"):
        space(tmp_path, text=one, sums=("language.weights=1",))
    with pytest.raises(RecipeError, match=r"^--over language.weights.\*: there is no member but the first, a$"):
        space(tmp_path, "language.weights.*=0..1", text=one)


def test_what_the_recipe_says_now(tmp_path: Path) -> None:
    loaded = recipe(tmp_path).recipe
    assert current(loaded, "language.weights.b") == 0.25
    assert current(loaded, "language.lambda") == 0.8
    assert current(loaded, "vision.b.max_tokens") == 16
    assert current(loaded, "vision") == ("a", "b")
    assert current(loaded, "language.nothing") is None
    assert members_of(loaded, "language.lambda") == []
    one = recipe(tmp_path, "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\n").recipe
    assert current(one, "language.weights.b") == 0.5
    assert members_of(one, "language.weights") == ["a", "b"]
    ties = recipe(tmp_path, "base: x\nmembers: {a: a}\nlanguage: {method: ties, weights: {a: 1}}\n").recipe
    assert current(ties, "language.density") == 1


def test_a_search_begins_at_the_recipe(tmp_path: Path) -> None:
    loaded = recipe(tmp_path).recipe
    found = space(
        tmp_path, "language.weights.b@depth:2=0..1", "language.lambda=0..0.5", "language.weights.c@parts=0,0.4,1",
        "language.method=ties,task_arithmetic,linear", "vision=b+a,a+b",
    )  # fmt: skip
    assert start_point(found, loaded, 5) == (0.25, 0.25, 0.5, 1, 1, 1, "task_arithmetic", ("a", "b"))
    thirds = space(tmp_path, "language.weights.b=0..1")
    assert start_point(thirds, loaded, 4) == (0.25,)
    assert start_point(thirds, loaded, 4, on_grid=True) == (pytest.approx(1 / 3),)
