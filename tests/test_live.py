"""A model remixed in place holds, bit for bit, what `fuse merge` of the recipe and a load give; and so does the way back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming

from fuse import live as live_module
from fuse.ask import Answerer, load
from fuse.engine.execute import execute
from fuse.errors import CheckpointError, RecipeError
from fuse.live import Live
from fuse.live_places import check_places, places
from fuse.methods.table import METHODS
from fuse.planner import make_plan
from fuse.recipe_edit import changed
from fuse.recipe_yaml import LoadedRecipe, load_recipe, parse_recipe
from tests import fused_members, recipe_members, tiny_text
from tests.cli import fuse_here
from tests.members import perturbed, save_member
from tests.test_recipes import KINDS, ROOT

Tensors = dict[str, Tensor]


def held(model: Any) -> Tensors:
    """A copy of every parameter and buffer, tied ones by each of their names, buffers that are not stored, too."""
    return {name: tensor.clone() for name, tensor in {**dict(model.named_buffers()), **model.state_dict()}.items()}


def same(one: Tensors, other: Tensors) -> bool:
    return list(one) == list(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True)
    )


def fresh_answerer(loaded: LoadedRecipe, folder: Path) -> Answerer:
    """What `fuse merge` of the recipe's text gives, loaded."""
    number = len(list(folder.glob("fresh-*")))
    file = loaded.folder / f"fresh-{number}.yaml"
    file.write_text(loaded.text)
    ran = fuse_here("merge", file, folder / f"fresh-{number}")
    file.unlink()
    assert (ran.code, ran.err) == (0, ""), ran
    return load(folder / f"fresh-{number}")


def fresh(loaded: LoadedRecipe, folder: Path) -> Tensors:
    return held(fresh_answerer(loaded, folder).model)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 llama and two fine-tunes of it, and the same of a tied GPT-2 in float32."""
    folder = tmp_path_factory.mktemp("members")
    for kind, dtype in (("llama", torch.bfloat16), ("gpt2", torch.float32)):
        base = tiny_text.build(kind, bos_token_id=1, eos_token_id=2)
        save_member(base, folder / kind, dtype=dtype)
        for seed, name in ((1, "a"), (2, "b")):
            save_member(perturbed(base.float(), seed), folder / f"{kind}-{name}", dtype=dtype)
    return folder


def text_recipe(root: Path, kind: str = "llama", more: str = "") -> LoadedRecipe:
    text = f"base: {kind}\nmembers: {{a: {kind}-a, b: {kind}-b}}\nlanguage: {{method: linear, weights: 0.5}}\n{more}"
    return parse_recipe(root / "r.yaml", text)


@pytest.fixture(scope="module")
def llama(root: Path) -> Live:
    return Live(text_recipe(root))


TABLE = {"*.mlp.*": 0.75, "*": [0.25, 1]}
BY_METHOD: dict[str, dict[str, Any]] = {
    "linear": {"weights": {"a": TABLE, "b": 0.125}},
    "slerp": {"t": [0.25, 0.75]},
    "task_arithmetic": {"weights": {"a": 0.5, "b": [0, 1]}, "lambda": 0.75},
    "ties": {"weights": {"a": 0.5, "b": 1}, "density": {"a": 0.5, "b": 0.25}, "lambda": TABLE},
    "dare_linear": {"weights": 0.5, "density": 0.5, "seed": 3},
    "dare_ties": {"weights": 0.5, "density": {"a": 0.5, "b": 0.75}, "seed": 4},
    "della": {"weights": 0.5, "density": 0.5, "epsilon": {"a": 0.25, "b": 0.125}, "seed": 5},
    "della_linear": {"weights": {"a": 0.5, "b": TABLE}, "density": 0.75, "seed": 6},
    "breadcrumbs": {"weights": 0.5, "density": 0.5, "gamma": {"a": 0.125, "b": 0.25}},
    "breadcrumbs_ties": {"weights": 0.5, "density": 0.75, "gamma": 0.125},
    "sce": {"select_topk": [0.25, 1]},
    "nuslerp": {"weights": {"a": 1, "b": TABLE}, "flatten": False},
    "multislerp": {"weights": {"a": 0.5, "b": [0.25, 1]}},
    "karcher": {"max_iter": 3},
    "model_stock": {"filter_wise": True},
    "tsv": {"lambda": 0.5},
    "iso_c": {"lambda": TABLE},
    "wudi": {"steps": 3},
    "optmerge": {"variant": "modality"},
    "swudi": {"init": "mean", "ratio": [0.5, 1]},
    "aswudi": {"init": "zero", "rank": "entropy"},
}


def with_method(loaded: LoadedRecipe, method: str, numbers: dict[str, Any]) -> LoadedRecipe:
    values = {f"language.{key}": value for key, value in numbers.items()}
    return changed(loaded, {"language.weights": None, "language.method": method, **values})


def test_methods_are_all_here() -> None:
    ours = {name for name in METHODS if "/" not in name}
    assert set(BY_METHOD) == ours - {"passthrough", "arcee_fusion"}  # which take one member


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def mixed(request: pytest.FixtureRequest, root: Path) -> tuple[LoadedRecipe, Live, Tensors]:
    """A model of each kind, and what it holds at first, which is what the merge gives."""
    first = text_recipe(root, request.param)
    live = Live(first)
    before = held(live.answerer.model)
    assert same(before, fresh(first, root))
    model = live.answerer.model
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (request.param == "gpt2")
    return first, live, before


@pytest.mark.parametrize("method", BY_METHOD)
def test_every_method(mixed: tuple[LoadedRecipe, Live, Tensors], tmp_path: Path, method: str) -> None:
    first, live, before = mixed
    live.remix(first)
    assert same(held(live.answerer.model), before)
    second = with_method(first, method, BY_METHOD[method])
    assert live.remix(second) is False
    after = held(live.answerer.model)
    assert same(after, fresh(second, tmp_path)) and not same(after, before)
    assert live.remix(first) is False
    assert same(held(live.answerer.model), before)


NUMBER = st.floats(-2, 2, allow_subnormal=False) | st.sampled_from([0, 1])
VALUE = NUMBER | st.lists(NUMBER, min_size=1, max_size=3)
LANGUAGES = st.one_of(
    st.fixed_dictionaries({"method": st.just("task_arithmetic"), "weights": st.fixed_dictionaries({"a": VALUE, "b": VALUE}),
                           "lambda": NUMBER}),
    st.fixed_dictionaries({"method": st.just("linear"), "weights": st.fixed_dictionaries({"a": VALUE, "b": VALUE}),
                           "normalize": st.just(False)}),
    st.fixed_dictionaries({"method": st.just("dare_ties"), "weights": VALUE, "density": st.floats(0.125, 1),
                           "seed": st.integers(0, 9)}),
)  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(language=LANGUAGES)
def test_any_weights(
    llama: Live, root: Path, tmp_path_factory: pytest.TempPathFactory, language: dict[str, Any]
) -> None:
    """From whatever the last example left; the names of a stored llama are those of its parameters."""
    loaded = changed(text_recipe(root), {"language": language})
    assert llama.remix(loaded) is False
    plan, folder = make_plan(loaded), tmp_path_factory.mktemp("out")
    execute(plan.rows, plan.shards, folder, lambda _: None)
    assert same(
        dict(sorted(llama.answerer.model.state_dict().items())),
        dict(sorted(load_file(folder / plan.shards[0][0]).items())),
    )


# recipe -> what is changed: several families, tied heads, eyes that are mixed, branches of files, authors' own layouts
IN_PLACE: dict[str, dict[str, Any]] = {
    "vlm_all_parts.yaml": {"language.weights.general": 0.25, "vision.general.merge.weights.ocr": 2},
    "visionfuse_mgm_slime.yaml": {"language.weights.slime": 0.125},
    "visionfuse_equal_budget.yaml": {"language.weights": {"llava": [0, 1], "next": 0.25}},
    "visionfuse_qwen2.yaml": {"language.weights": {"qwen": 0.25, "onevision": {"*.mlp.*": 1, "*": 0.5}}},
    "vlm_with_open_clip_encoder.yaml": {"language": {"method": "linear", "weights": 3, "normalize": False}},
}


@pytest.mark.parametrize("recipe", IN_PLACE)
def test_recipes_of_many_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    text = (ROOT / recipe).read_text()
    recipe_members.furnish([text], KINDS[recipe], tmp_path, monkeypatch)
    first = parse_recipe(tmp_path / "r.yaml", recipe_members.stand_in(text))
    live = Live(first)
    before, answerer = held(live.answerer.model), live.answerer
    second = changed(first, IN_PLACE[recipe])
    assert live.remix(second) is False and live.answerer is answerer
    after = held(live.answerer.model)
    assert same(after, fresh(second, tmp_path)) and not same(after, before)
    assert live.remix(first) is False
    assert same(held(live.answerer.model), before)


UNION = """\
members: {llm: llm, tiles: tiles, views: views}
language: {method: linear, weights: {llm: 0.25, tiles: 0.5, views: 0.75}, embeddings: union}
vision: [{from: tiles, max_tokens: 4}, views]
output: {host: llm}
prompt: {template: views}
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> LoadedRecipe:
    """Two branches on a third's language model, whose table takes the guests' tokens in."""
    root = tmp_path_factory.mktemp("three")
    fused_members.save_llm(root / "llm")
    fused_members.save("idefics3", root / "tiles")
    fused_members.save("llava_next", root / "views", seed=2)
    (root / "r.yaml").write_text(UNION)
    return load_recipe(root / "r.yaml")


@pytest.fixture(scope="module")
def fused(three: LoadedRecipe) -> tuple[Live, Tensors]:
    live = Live(three)
    return live, held(live.answerer.model)


def test_tables_matched_by_token_and_extended(fused: tuple[Live, Tensors], three: LoadedRecipe, tmp_path: Path) -> None:
    live, before = fused
    live.remix(three)
    assert any(row.runs and row.added for row in live.plan.rows)
    second = changed(three, {"language.weights.tiles": 0, "language.weights.llm": -1, "language.embeddings": "merge"})
    assert live.remix(second) is False  # the markers are tokens of the branches either way
    assert same(held(live.answerer.model), fresh(second, tmp_path))
    assert live.remix(three) is False
    assert same(held(live.answerer.model), before)


def test_other_tokens_build_the_model_anew(three: LoadedRecipe, tmp_path: Path) -> None:
    union = parse_recipe(
        three.file, UNION.replace("[{from: tiles, max_tokens: 4}, views]", "[views]").replace("llm}", "views}")
    )
    live = Live(union)
    vocabulary = live.answerer.tokenizer.get_vocab()
    assert live.remix(changed(union, {"language.weights.llm": 0})) is False
    second = changed(union, {"language.embeddings": "merge"})
    assert live.remix(second) is True
    new = fresh_answerer(second, tmp_path)
    assert same(held(live.answerer.model), held(new.model))
    assert live.answerer.tokenizer.get_vocab() == new.tokenizer.get_vocab() != vocabulary


REBUILT: dict[str, dict[str, Any]] = {
    "the order of branches": {"vision": ["views", "tiles"]},
    "one branch less": {"vision.tiles": None, "output.model": "fuse"},
    "a budget": {"vision.tiles.max_tokens": 3},
    "the template": {"prompt.template": "tiles"},
    "the dtype": {"output.dtype": "bfloat16"},
    "the host": {"output.host": "views"},
}


@pytest.mark.parametrize("what", REBUILT)
def test_other_changes_build_the_model_anew(
    fused: tuple[Live, Tensors], three: LoadedRecipe, tmp_path: Path, what: str
) -> None:
    live, before = fused
    live.remix(three)
    assert same(held(live.answerer.model), before)
    answerer = live.answerer
    second = changed(three, {**REBUILT[what], "language.weights.llm": 0.5})
    assert live.remix(second) is True
    assert live.answerer is not answerer and live.plan.recipe_text == second.text
    new = fresh_answerer(second, tmp_path)
    assert same(held(live.answerer.model), held(new.model))
    configs = [{**one.model.config.to_dict(), "_name_or_path": ""} for one in (live.answerer, new)]
    assert configs[0] == configs[1]
    assert live.answerer.processor.chat_template == new.processor.chat_template


def test_only_rows_that_differ_are_computed(llama: Live, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(row: Any, reader: Any, **how: Any) -> Iterator[Tensor]:
        asked.append(row.name)
        return blocks(row, reader, **how)

    blocks = live_module.blocks
    first = changed(text_recipe(root), {"language.weights": {"a": {"*.1.mlp.*": 1, "*": 0.5}, "b": 1}})
    llama.remix(first)
    monkeypatch.setattr(live_module, "blocks", counted)
    llama.remix(first)
    assert asked == []
    llama.remix(changed(first, {"language.weights.a.*.1.mlp.*": 2}))
    assert sorted(asked) == [f"model.layers.1.mlp.{name}_proj.weight" for name in ("down", "gate", "up")]


def test_numbers_that_overflow_leave_the_model_as_it_was(root: Path) -> None:
    first = text_recipe(root, more="output: {dtype: float16}\n")
    live = Live(first)
    before = held(live.answerer.model)
    huge = changed(first, {"language.normalize": False, "language.weights": {"*.1.mlp.up_proj.*": 1e7, "*": 0.75}})
    with pytest.raises(
        CheckpointError, match=r"output tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is -?inf in F16"
    ):
        live.remix(huge)
    assert same(held(live.answerer.model), before) and live.plan.recipe_text == first.text


def test_a_recipe_that_cannot_be_leaves_the_model_as_it_was(llama: Live, root: Path) -> None:
    first = text_recipe(root)
    llama.remix(first)
    before = held(llama.answerer.model)
    with pytest.raises(RecipeError, match="is neither a member nor a pattern"):
        llama.remix(changed(first, {"language.weights": {"c": 1}}))
    with pytest.raises(CheckpointError, match="in F16"):  # another dtype, so the folder is made first
        llama.remix(changed(first, {"language.normalize": False, "language.weights": 1e7, "output.dtype": "float16"}))
    assert same(held(llama.answerer.model), before) and llama.plan.recipe_text == first.text


def test_an_interrupted_remix_is_mended_by_the_next(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = text_recipe(root)
    live = Live(first)
    count = 0

    def interrupted(row: Any, reader: Any, **how: Any) -> Iterator[Tensor]:
        nonlocal count
        count += 1
        for block in blocks(row, reader, **how):
            yield block[: len(block) // 2]
            if count == 5:
                raise KeyboardInterrupt
            yield block[len(block) // 2 :]

    blocks = live_module.blocks
    with monkeypatch.context() as patch:
        patch.setattr(live_module, "blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            live.remix(changed(first, {"language.weights": {"a": 1, "b": 0}}))
    assert live.remix(first) is False
    assert same(held(live.answerer.model), fresh(first, tmp_path))


def test_nothing_stays_on_the_disk(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    live = Live(text_recipe(root))
    assert list(tmp_path.iterdir()) == [] and not live.answerer.folder.exists()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()


def test_places_are_exact_and_whole(llama: Live, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama.answerer.model
    llama.remix(changed(text_recipe(root), {"language.weights": {"a": 1, "b": 0}}))
    names = list(places(model, model.state_dict(), "m"))
    check_places(places(model, names, "m"), root / "llama-a")
    with pytest.raises(CheckpointError, match=r"tensor '.*' is another one in the loaded model"):
        check_places(places(model, names, "m"), root / "llama-b")
    with pytest.raises(CheckpointError, match=r"m: tensor 'model\.other' is no parameter of LlamaForCausalLM"):
        places(model, [*names, "model.other"], "m")
    with pytest.raises(CheckpointError, match=r"m: parameter 'model\.norm\.weight' comes from no stored tensor"):
        places(model, [name for name in names if name != "model.norm.weight"], "m")
    monkeypatch.setattr(
        conversion_mapping, "get_model_conversion_mapping", lambda _: [WeightRenaming("k_proj", "q_proj")]
    )
    with pytest.raises(CheckpointError, match="m: two tensors are one parameter of LlamaForCausalLM"):
        places(model, names, "m")
    monkeypatch.setattr(
        conversion_mapping,
        "get_model_conversion_mapping",
        lambda _: [WeightConverter("up_proj", "up_proj", [Transpose()])],
    )
    with pytest.raises(
        CheckpointError, match=r"m: transformers rearranges tensor 'model\.layers\.0\.mlp\.up_proj\.weight' as it"
    ):
        places(model, names, "m")
