"""`method: mergekit/NAME` through the command line: results, seeds, and what a recipe may not say."""

from pathlib import Path

import pytest
import torch
from mergekit.merge_methods import merge_tensors
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fuse.recipe_yaml import load_recipe
from tests.cli import Ran, fuse, fuse_here
from tests.members import perturbed, save_member

CONFIG = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=80, bos_token_id=1, eos_token_id=2, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes in float32, each a folder."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG)
    save_member(base, root / "base", dtype=torch.float32)
    for seed, name in enumerate("ab"):
        save_member(perturbed(base, seed), root / name, dtype=torch.float32)
    return root


def run(family: Path, verb: str, language: str, *more: object, members: str = "{a: a, b: b}") -> Ran:
    recipe = family / "recipe.yaml"
    recipe.write_text(f"base: base\nmembers: {members}\nlanguage: {language}\n")
    return fuse_here(verb, recipe, *more)


def merged(family: Path, out: Path, language: str, **more: str) -> dict[str, torch.Tensor]:
    ran = run(family, "merge", language, out, **more)
    assert (ran.code, ran.err) == (0, "")
    return load_file(out / "model.safetensors")


def depth(name: str) -> float:
    """0 in the first of two layers and before, 1 in the last and behind."""
    return float("layers.1." in name or name in {"model.norm.weight", "lm_head.weight"})


CASES = {
    "{method: mergekit/ramplus_tl, parameters: {r: 0.2, epsilon: 1e-3}}": ("ramplus_tl", lambda n: {"r": 0.2, "epsilon": 1e-3}),
    "{method: mergekit/ram, parameters: {epsilon: [1e-3, 1e-2]}}": ("ram", lambda n: {"epsilon": 9e-3 * depth(n) + 1e-3}),
    "{method: mergekit/ram}": ("ram", lambda n: {}),
    "{method: mergekit/ties, parameters: {weight: {a: 0.7, b: {'*.mlp.*': 0.5, '*': [0, 1]}}, density: 0.5, normalize: false}}": (
        "ties",
        lambda n: {
            "weight": {"a": 0.7, "b": 0.5 if ".mlp." in n else depth(n)}, "density": {"a": 0.5, "b": 0.5}, "normalize": False,
        },
    ),
    "{method: mergekit/karcher, parameters: {max_iter: 2}}": ("karcher", lambda n: {"max_iter": 2}),
    "{method: mergekit/nuslerp, parameters: {weight: {a: 1, b: 3}}}": ("nuslerp", lambda n: {"weight": {"a": 1, "b": 3}}),
}  # fmt: skip


@pytest.mark.parametrize("language", CASES)
def test_as_mergekit(family: Path, tmp_path: Path, language: str) -> None:
    result = merged(family, tmp_path / "out", language)
    kernel, parameters = CASES[language]
    of = {name: load_file(family / name / "model.safetensors") for name in ("base", "a", "b")}
    members = ["a", "b"] if kernel == "karcher" else ["base", "a", "b"]
    for name, tensor in result.items():
        wanted = merge_tensors(
            [of[member][name] for member in members], kernel, parameters=parameters(name), ids=members,
            base_index=0 if "base" in members else None,
        )  # fmt: skip
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)


def test_one_member_near_the_base(family: Path, tmp_path: Path) -> None:
    result = merged(family, tmp_path / "out", "{method: mergekit/nearswap, parameters: {t: 1e-3}}", members="{a: a}")
    of = {name: load_file(family / name / "model.safetensors") for name in ("base", "a")}
    for name, tensor in result.items():
        wanted = merge_tensors([of["base"][name], of["a"][name]], "nearswap", parameters={"t": 1e-3}, base_index=0)
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)


def test_a_member_without_a_weight_takes_no_part(family: Path) -> None:
    ran = run(family, "plan", "{method: mergekit/task_arithmetic, parameters: {weight: {a: 1}}}")
    assert (ran.code, ran.err.strip()) == (
        2,
        "fuse: recipe.yaml:2:17: members.b: takes part in nothing (give it a weight or leave it out)",
    )


def test_the_seed_makes_the_bytes(family: Path, tmp_path: Path) -> None:
    language = "{method: mergekit/dare_ties, parameters: {weight: 0.5, density: 0.5}, seed: SEED}"
    for out, seed, threads in [("one", 3, 1), ("again", 3, 4), ("other", 4, 1)]:
        torch.manual_seed(threads)
        ran = run(family, "merge", language.replace("SEED", str(seed)), tmp_path / out, "--threads", threads)
        assert (ran.code, ran.err) == (0, "")
    one, again, other = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "again", "other"))
    assert one == again and one != other


def test_a_plan_tells_the_parameters_and_needs_no_mergekit(family: Path) -> None:
    recipe = family / "recipe.yaml"
    recipe.write_text(
        "base: base\nmembers: {a: a, b: b}\nlanguage: {method: mergekit/ramplus_tl, parameters: {epsilon: 0.001}}\n"
    )
    ran = fuse("plan", recipe)
    assert ran.code == 0 and "mergekit/ramplus_tl of a + b over base [epsilon 0.001]" in ran.out
    assert load_recipe(recipe).recipe.language.given("epsilon") == 0.001


@pytest.mark.parametrize(("language", "told"), [
    ("{method: mergekit/ramp}", "3:12: language.method: unknown method 'mergekit/ramp' (did you mean: mergekit/ram, mergekit/slerp, mergekit/ramplus_tl)"),
    ("{method: mergekit/ram, epsilon: 1}", "3:34: language.epsilon: mergekit/ram has no epsilon (its parameters are a table: parameters)"),
    ("{method: mergekit/ram, parameters: {epsilonn: 1}}", "3:47: language.parameters.epsilonn: mergekit/ram has no epsilonn (it takes: epsilon)"),
    ("{method: mergekit/ram, parameters: {epsilon: -1}}", "3:47: language.parameters.epsilon: should be at least 0, not -1"),
    ("{method: mergekit/ram, parameters: {epsilon: few}}", "3:47: language.parameters.epsilon: should be a number, true or false, not 'few'"),
    ("{method: mergekit/ram, parameters: {epsilon: {a: 1}}}", "3:57: language.parameters.epsilon.a: mergekit/ram has one epsilon for all members"),
    ("{method: mergekit/ram, seed: 1}", "3:34: language.seed: mergekit/ram has no seed (it draws nothing at random)"),
    ("{method: mergekit/karcher, parameters: {max_iter: 1.5}}", "3:51: language.parameters.max_iter: should be a whole number, not 1.5"),
    ("{method: mergekit/ties}", "3:1: language.parameters: mergekit/ties needs parameters with a weight"),
    ("{method: mergekit/ties, parameters: {density: 1}}", "3:35: language.parameters: mergekit/ties needs parameters with a weight"),
    ("{method: mergekit/ties, parameters: {weight: {a: 1, c: 1}}}", "3:63: language.parameters.weight.c: is not a member (known: a, b)"),
    ("{method: mergekit/ties, parameters: {weight: 1, normalize: 1}}", "3:59: language.parameters.normalize: should be true or false, not 1"),
    ("{method: mergekit/ties, parameters: {weight: {'*.x': 1, '*': 1}}}", "3:57: language.parameters.weight.*.x: the pattern fits no tensor, or an earlier one takes all it fits"),
    ("{method: linear, weights: 1, parameters: {normalize: true}}", "3:40: language.parameters: linear has no table of parameters"),
    ("{method: mergekit/slerp, parameters: {t: 0.5}}", "3:12: language.method: mergekit/slerp takes 1 member, not 2"),
    ("{method: mergekit/linear, parameters: {weight: {a: 1, b: -1}}}", "3:1: language: mergekit/linear: the weights sum to zero and cannot be normalized, at lm_head.weight"),
])  # fmt: skip
def test_what_a_recipe_may_not_say(family: Path, language: str, told: str) -> None:
    ran = run(family, "plan", language)
    assert (ran.code, ran.err.strip()) == (2, f"fuse: recipe.yaml:{told}")
