"""Bad input through the command line: one sentence, the right exit code, no output left behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cli import fuse_here
from tests.members import perturbed, save_member, save_tokenizer, words

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    save_member(model, root / "base")
    save_member(perturbed(model, 1), root / "a")
    save_member(perturbed(model, 2), root / "b")
    return root


@pytest.fixture
def family(originals: Path, tmp_path: Path) -> Path:
    """A fresh copy of base, a and b, to be damaged."""
    shutil.copytree(originals, tmp_path / "family")
    return tmp_path / "family"


LINEAR = "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\n"
TIES = "base: base\nmembers: {a: a, b: b}\nlanguage: {method: ties, weights: 0.5}\n"


def refusal(family: Path, recipe: str = LINEAR, code: int = 2) -> str:
    """What `fuse merge` says; `fuse plan` says the same wherever headers are enough to know."""
    (family / "recipe.yaml").write_text(recipe)
    before = sorted(p.name for p in family.iterdir())
    ran = fuse_here("merge", family / "recipe.yaml", family / "out")
    assert (ran.code, ran.out) == (code, ""), ran
    assert ran.err.startswith("fuse: ") and ran.err.count("\n") == 1, ran.err
    assert sorted(p.name for p in family.iterdir()) == before, "something was left behind"
    return ran.err.removeprefix("fuse: ").strip().replace(str(family), "FAMILY")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def other(family: Path, **changes: object) -> None:
    """Replace b by a model of another shape."""
    torch.manual_seed(5)
    shutil.rmtree(family / "b")
    save_member(LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})), family / "b")


def test_missing_member(family: Path) -> None:
    shutil.rmtree(family / "b")
    assert refusal(family) == (
        "recipe.yaml:1:17: members.b: 'b' does not exist (a folder, relative to the recipe, or a hub id org/name)"
    )


BASES = {
    "hidden_size": (64, "hidden_size is 32 in a and 64 in b", "members of one base agree in this"),
    "num_hidden_layers": (3, "layers is 2 in a and 3 in b", "members of one base agree in this"),
    "num_attention_heads": (8, "heads is 4 in a and 8 in b", "members of one base agree in this"),
    "num_key_value_heads": (4, "kv_heads is 2 in a and 4 in b", "members of one base agree in this"),
    "intermediate_size": (64, "intermediate_size is 48 in a and 64 in b", "members of one base agree in this"),
    "rms_norm_eps": (1e-5, "norm_eps is 1e-06 in a and 1e-05 in b", "members of one base agree in this; "
                     "`accept: [norm_eps]` under language goes on with the host's value"),
    "rope_theta": (5e5, "rope_theta is 10000.0 in a and 500000.0 in b", "members of one base agree in this; "
                   "`accept: [rope_theta]` under language goes on with the host's value"),
}  # fmt: skip


@pytest.mark.parametrize("key", BASES)
def test_members_of_different_bases(family: Path, key: str) -> None:
    value, difference, hint = BASES[key]
    other(family, **{key: value})
    assert refusal(family, code=3) == (f"FAMILY/b/config.json: a and b are not of one base: {difference} ({hint})")


def test_accepted_difference(family: Path) -> None:
    other(family, rms_norm_eps=1e-5)
    (family / "recipe.yaml").write_text(LINEAR.replace("weights: 0.5", "weights: 0.5, accept: [norm_eps]"))
    ran = fuse_here("plan", family / "recipe.yaml")
    assert ran.code == 0
    assert (
        "! same architecture: llama, 2 layers, hidden 32, 4/2 heads; accepted although it differs from a: norm_eps 1e-05 in b"
        in ran.out
    )


def test_shape_that_differs_from_the_config(family: Path) -> None:
    weights = load_file(family / "b" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(49, 32)
    save_file(weights, family / "b" / "model.safetensors")
    assert refusal(family, code=3).startswith(
        "FAMILY/b: tensor 'model.layers.1.mlp.up_proj.weight' has shape [49, 32], but config.json makes it [48, 32]"
    )


def test_equal_size_but_other_tokens(family: Path) -> None:
    save_tokenizer(family / "b", [*words(3), *(f"v{i}" for i in range(3, 64))])
    assert refusal(family, code=3) == (
        "FAMILY/b/tokenizer.json: a and b have different vocabularies (64 and 64 tokens): id 3 is 'w3' in a and 'v3' in "
        "b, and 61 tokens of the model's own differ (members of one base share its tokens)"
    )


def test_same_tokens_in_another_order(family: Path) -> None:
    save_tokenizer(family / "b", [*words(3), *reversed(words(64)[3:])])
    assert "id 3 is 'w3' in a and 'w63' in b" in refusal(family, code=3)


def test_no_tokenizer(family: Path) -> None:
    (family / "b" / "tokenizer.json").unlink()
    assert refusal(family, code=3) == (
        "FAMILY/b: b has no tokenizer, so its embedding rows cannot be matched by token "
        "(add its tokenizer.json, or keep the host's rows with `embeddings: a`)"
    )
    (family / "recipe.yaml").write_text(LINEAR.replace("weights: 0.5", "weights: 0.5, embeddings: a"))
    assert fuse_here("merge", family / "recipe.yaml", family / "out").code == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("recipe", [LINEAR, TIES, TIES.replace("ties", "dare_linear")], ids=["linear", "ties", "dare"])
def test_weights_that_are_not_finite(family: Path, value: float, recipe: str) -> None:
    weights = load_file(family / "b" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"].view(-1)[77] = value
    save_file(weights, family / "b" / "model.safetensors")
    assert refusal(family, recipe, code=3) == (
        f"FAMILY/b/model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight' of b holds {value} at element 77 "
        "(the checkpoint is damaged; fuse writes nothing from it)"
    )


def test_overflow_of_our_own(family: Path) -> None:
    for name in "ab":
        weights = load_file(family / name / "model.safetensors")
        weights["model.norm.weight"][3] = 60_000
        save_file(weights, family / name / "model.safetensors")
    recipe = LINEAR.replace("weights: 0.5", "weights: 1, normalize: false") + "output: {dtype: float16}\n"
    assert refusal(family, recipe, code=3) == (
        "output tensor 'model.norm.weight' is inf in F16 at element 3 (computed as 120000) "
        "(choose a wider output.dtype, or smaller weights)"
    )


def test_existing_output(family: Path) -> None:
    (family / "out").mkdir()
    (family / "out" / "precious").write_text("x")
    assert refusal(family) == "FAMILY/out: the output already exists (choose another folder, or --force)"
    assert (family / "out" / "precious").read_text() == "x"
    ran = fuse_here("merge", family / "recipe.yaml", family / "out", "--force")
    assert (ran.code, ran.err) == (
        2,
        f"fuse: {family / 'out'}: the output exists and fuse did not make it (it has no fuse.json) "
        "(choose another folder, or remove it yourself)\n",
    )
    assert (family / "out" / "precious").read_text() == "x"
    (family / "out" / "fuse.json").write_text('{"sha256": {}, "files": {"precious": ""}}')
    assert fuse_here("merge", family / "recipe.yaml", family / "out", "--force").code == 0
    assert not (family / "out" / "precious").exists() and (family / "out" / "model.safetensors").exists()


def test_an_empty_folder_is_replaced(family: Path) -> None:
    (family / "recipe.yaml").write_text(LINEAR)
    (family / "out").mkdir()
    assert fuse_here("merge", family / "recipe.yaml", family / "out", "--force").code == 0
    assert (family / "out" / "model.safetensors").exists()


def test_a_config_as_recipe(family: Path) -> None:
    ran = fuse_here("plan", family / "a" / "config.json")
    assert (ran.code, ran.err) == (
        2,
        f"fuse: {family}/a/config.json: this is a model's config, not a recipe (a recipe names its folder as a member)\n",
    )


def test_many_mistakes(family: Path) -> None:
    (family / "recipe.yaml").write_text("members: {a: ./a}\n" + "".join(f"key{i}: 1\n" for i in range(20)))
    lines = fuse_here("plan", family / "recipe.yaml").err.splitlines()
    assert len(lines) == 9 and lines[-1] == "and 13 more"


@pytest.mark.parametrize("where", ["a", "a/inside", "."])
def test_output_in_a_member(family: Path, where: str) -> None:
    (family / "recipe.yaml").write_text(LINEAR)
    ran = fuse_here("merge", family / "recipe.yaml", family / where, "--force")
    assert ran.code == 2 and "would lie in each other" in ran.err
    assert (family / "a" / "model.safetensors").exists()


def test_pickles(family: Path) -> None:
    (family / "b" / "model.safetensors").rename(family / "b" / "pytorch_model.bin")
    assert refusal(family, code=3).startswith("FAMILY/b: holds pytorch_model.bin but no safetensors;")


def test_unknown_family(family: Path) -> None:
    edit_config(family / "b", model_type="lama")
    assert refusal(family, code=3).startswith(
        "FAMILY/b: config.json: model_type 'lama' is not a family that fuse knows (did you mean llama"
    )


def test_tensors_that_no_table_explains(family: Path) -> None:
    weights = load_file(family / "b" / "model.safetensors")
    save_file(weights | {"model.layers.0.surprise.weight": torch.zeros(3)}, family / "b" / "model.safetensors")
    assert refusal(family, code=3) == (
        "FAMILY/b: tensor 'model.layers.0.surprise.weight' is not part of a llama language model"
    )


def test_missing_tensor(family: Path) -> None:
    weights = load_file(family / "b" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, family / "b" / "model.safetensors")
    assert refusal(family, code=3) == (
        "FAMILY/b: tensor 'model.layers.1.mlp.up_proj.weight' is missing: config.json promises 2 layers of llama"
    )


RECIPES = {
    TIES.replace("base: base\n", ""): "recipe.yaml:2:12: language.method: ties needs a base (add `base:` to the recipe)",
    LINEAR.replace("0.5", "{a: 1, c: 2}"): "recipe.yaml:2:44: language.weights.c: is not a member (known: a, b)",
    LINEAR.replace("0.5", "{c: 2}"): "recipe.yaml:2:38: language.weights.c: is neither a member nor a pattern (known: a, b)",
    LINEAR.replace("0.5", "{a: 1, b: 0}, normalize: true").replace("a: 1", "a: 0"):
        "recipe.yaml:2:1: language: linear: the weights sum to zero, so normalize cannot divide by their sum, "
        "at lm_head.weight",
    LINEAR.replace("0.5", "{'*.mpl.*': 1, '*': 0.5}"):
        "recipe.yaml:2:38: language.weights.*.mpl.*: the pattern fits no tensor, or an earlier one takes all it fits",
    LINEAR.replace("0.5", "{'*.mlp.*': 1}"):
        "recipe.yaml:2:28: language.weights: no pattern fits 'lm_head.weight' (end the table with \"*\")",
    LINEAR.replace("0.5", "{a: 1}"):
        "recipe.yaml:1:17: members.b: takes part in nothing (give it a weight or leave it out)",
    TIES.replace("0.5", "0.5, density: 1.5"):
        "recipe.yaml:3:40: language.density: should be at most 1, not 1.5",
    TIES.replace("0.5", "0.5, density: {a: 0}"):
        "recipe.yaml:3:50: language.density.a: should be greater than 0, not 0.0",
    "members: {a: a}\nlanguage: {method: slerp, t: 0.5}\n":
        "recipe.yaml:2:12: language.method: slerp takes 2 members, not 1",
    LINEAR.replace("0.5", "0.5, embeddings: c"):
        "recipe.yaml:2:42: language.embeddings: 'c' is not a choice (known: a, b, merge, union)",
    LINEAR + "vision: [a]\n": "recipe.yaml:3:10: vision.0: a has no encoder",
    LINEAR + "vision: [c]\n": "recipe.yaml:3:10: vision.0: 'c' is not a member (known: a, b)",
    LINEAR + "output: {host: c}\n": "recipe.yaml:3:10: output.host: 'c' is not a member (known: a, b)",
    LINEAR + "prompt: {template: c}\n": "recipe.yaml:3:10: prompt.template: 'c' is not a member (known: a, b)",
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_that_cannot_be(family: Path, recipe: str) -> None:
    said = refusal(family, recipe)
    assert said == RECIPES[recipe]
    assert fuse_here("plan", family / "recipe.yaml").err == f"fuse: {said}\n"


def test_names_cannot_drive_the_terminal(family: Path) -> None:
    recipe = LINEAR.replace("members: {a: a, b: b}", 'members: {a: "x\\e[31m", b: b}')
    assert "'x\\x1b[31m' does not exist" in refusal(family, recipe)


def test_donor_of_rows_must_be_of_the_base(family: Path) -> None:
    torch.manual_seed(5)
    save_member(LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_hidden_layers": 3})), family / "c")
    recipe = "members: {a: a, b: b, c: c}\nlanguage: {method: linear, weights: {a: 1, b: 1}, embeddings: c}\n"
    assert "a and c are not of one base: layers is 2 in a and 3 in c" in refusal(family, recipe, code=3)


def test_values_that_only_some_families_state(family: Path) -> None:
    for name, value in (("a", 0.5), ("b", 1.0)):
        edit_config(family / name, logit_scale=value)
    assert "a and b are not of one base: logit_scale is 0.5 in a and 1.0 in b" in refusal(family, code=3)


def test_parameters_of_a_member_without_weight(family: Path) -> None:
    recipe = TIES.replace("weights: 0.5", "weights: {a: 1}, density: {b: 0.5}, embeddings: b")
    assert refusal(family, recipe) == (
        "recipe.yaml:3:53: language.density.b: has no weight here, so its parameters mean nothing"
    )


@pytest.mark.parametrize("scalar", ["-_", "0x_", "._"])
def test_scalars_that_are_no_numbers(family: Path, scalar: str) -> None:
    said = refusal(family, LINEAR.replace("0.5", scalar))
    assert said.startswith("recipe.yaml:2:3") and scalar in said


def test_half_a_surrogate_pair(family: Path) -> None:
    text = (family / "b" / "config.json").read_text()
    (family / "b" / "config.json").write_text(text.replace("{", '{"x": "\\ud800",', 1))
    assert refusal(family, code=3) == "FAMILY/b/config.json: holds half of a surrogate pair, which is no text"


def test_names_that_are_too_long(family: Path) -> None:
    (family / "recipe.yaml").write_text(LINEAR)
    ran = fuse_here("merge", family / "recipe.yaml", family / ("o" * 300))
    said = f"fuse: {family}: the output's name is longer than 246 bytes (choose a shorter one)\n"
    assert (ran.code, ran.err) == (2, said)


def test_template_that_is_not_there(family: Path) -> None:
    assert refusal(family, LINEAR + "prompt: {template: b}\n") == (
        "recipe.yaml:3:10: prompt.template: b has no chat template"
    )


def test_template_with_tokens_of_its_own(family: Path) -> None:
    save_tokenizer(family / "a", words(64)[:60])
    save_tokenizer(family / "b", words(64)[:60], {"<|turn|>": 60}, "<|turn|>{{ messages[0].content }}")
    recipe = LINEAR + "prompt: {template: b}\n"
    assert refusal(family, recipe) == (
        "recipe.yaml:3:10: prompt.template: b's template writes '<|turn|>', which a has no token for "
        "(`embeddings: union` under language adds it)"
    )


def test_not_a_number_in_a_table_is_named_where_it_is_stored(family: Path) -> None:
    save_tokenizer(family / "b", words(64)[:60], {"<x>": 61, "<y>": 60})
    save_tokenizer(family / "a", words(64)[:60], {"<y>": 60})
    weights = load_file(family / "b" / "model.safetensors")
    weights["lm_head.weight"][61, 3] = float("nan")
    weights["model.embed_tokens.weight"][60, 5] = float("nan")
    save_file(weights, family / "b" / "model.safetensors")
    assert "tensor 'model.embed_tokens.weight' of b holds nan at element 1,925" in (
        refusal(family, LINEAR.replace("0.5", "0.5, embeddings: base").replace("members", "base: b\nmembers"), code=3)
    ).replace("of base", "of b")


def test_recipe_inside_the_output(family: Path) -> None:
    (family / "out").mkdir()
    text = "members: {a: ../a, b: ../b}\nlanguage: {method: linear, weights: 0.5}\n"
    (family / "out" / "recipe.yaml").write_text(text)
    ran = fuse_here("merge", family / "out" / "recipe.yaml", family / "out", "--force")
    assert ran.code == 2 and "the recipe lies in the output that would be replaced" in ran.err
    assert (family / "out" / "recipe.yaml").read_text() == text


def test_device_that_is_none(family: Path) -> None:
    ran = fuse_here("ask", family / "a", "w5", "--device", "abacus")
    told = "fuse: device 'abacus': a model runs on cpu, cuda, cuda:N, mps or auto\n"
    assert (ran.code, ran.out, ran.err) == (2, "", told)
