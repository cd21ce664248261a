"""The vector methods through the command line: against mergekit's own pipeline, by blocks and threads, and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cli import fuse_here
from tests.members import perturbed, save_member

CONFIG = LlamaConfig(
    hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=80, bos_token_id=1, eos_token_id=2, max_position_embeddings=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 base and two fine-tunes, so that hardly any two changes are equal."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG)
    save_member(base, root / "base")
    save_member(perturbed(base, 1), root / "a")
    save_member(perturbed(base, 2), root / "b")
    return root


def merged(root: Path, out: Path, language: str, members: str, base: bool, *options: object) -> dict[str, torch.Tensor]:
    recipe = root / f"{out.name}.yaml"
    named = ", ".join(f"{name}: {name}" for name in members)
    recipe.write_text(f"{'base: base' if base else ''}\nmembers: {{{named}}}\nlanguage: {language}\n")
    ran = fuse_here("merge", recipe, out, *options)
    assert (ran.code, ran.err) == (0, "")
    return load_file(out / "model.safetensors")


BY_MEMBER = {"weight": {"a": 0.7, "b": 0.3}}
# our parameters, mergekit's, and whether there is a base
KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "nuslerp": ("weights: {a: 0.7, b: 0.3}", BY_MEMBER, False),
    "nuslerp of task vectors": ("weights: {a: 0.7, b: 0.3}", BY_MEMBER, True),
    "nuslerp by row": ("weights: {a: 0.7, b: 0.3}, flatten: false", BY_MEMBER | {"nuslerp_flatten": False}, True),
    "nuslerp by column": (
        "weights: {a: 0.7, b: 0.3}, flatten: false, row_wise: true",
        BY_MEMBER | {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        False,
    ),
    "multislerp": ("weights: {a: 0.7, b: 0.3}", BY_MEMBER, False),
    "multislerp of task vectors": ("weights: {a: 0.7, b: 0.3}", BY_MEMBER, True),
    "karcher": ("max_iter: 20, tol: 1.0e-7", {"max_iter": 20, "tol": 1e-7}, False),
    "model_stock": ("", {}, True),
    "model_stock by row": ("filter_wise: true", {"filter_wise": True}, True),
    "breadcrumbs": ("weights: 0.6, density: 0.5, gamma: 0.1", {"weight": 0.6, "density": 0.5, "gamma": 0.1}, True),
    "breadcrumbs_ties": ("weights: 0.6, density: 0.5, gamma: 0.1", {"weight": 0.6, "density": 0.5, "gamma": 0.1}, True),
    "sce": ("select_topk: 0.4", {"select_topk": 0.4}, True),
    "arcee_fusion": ("", {}, True),
    "della": ("weights: 0.5, density: 1, epsilon: 0", {"weight": 0.5, "density": 1.0}, True),
    "della_linear": ("weights: 0.5, density: 1, epsilon: 0", {"weight": 0.5, "density": 1.0}, True),
}


def mergekits(family: Path, out: Path, method: str, parameters: dict[str, Any], members: str, base: bool) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    weights = parameters.get("weight")
    shared = {name: value for name, value in parameters.items() if not isinstance(value, dict)}
    models = [
        {"model": str(family / name), "parameters": {"weight": weights[name]} if isinstance(weights, dict) else {}}
        for name in members
    ]
    config = {"merge_method": method, "models": models, "dtype": "float32", "parameters": shared}
    if base:
        config["base_model"] = str(family / "base")
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_mergekit(family: Path, tmp_path: Path, kind: str) -> None:
    given, parameters, base = KINDS[kind]
    method, members = kind.split(maxsplit=1)[0], "a" if kind == "arcee_fusion" else "ab"
    ours = merged(family, tmp_path / "ours", f"{{method: {method}, {given}}}", members, base)
    mergekits(family, tmp_path / "theirs", method, parameters, members, base)
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    start = load_file(family / "base" / "model.safetensors")
    assert set(ours) == set(theirs)
    unequal = total = changed = 0
    for name, tensor in ours.items():
        # two changes that are equal, or equally important but for float32, may change places
        unequal += int((~torch.isclose(tensor, theirs[name], rtol=1e-5, atol=2e-6)).sum())
        total += tensor.numel()
        changed += int((tensor != start[name]).sum())
    assert unequal <= (3e-4 * total if method in {"breadcrumbs", "breadcrumbs_ties", "sce", "arcee_fusion"} else 0)
    assert changed > 0.02 * total


DRAWN = "{method: %s, weights: 0.5, density: 0.5, epsilon: 0.3, seed: %d}"


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_drops_what_the_seed_says(family: Path, tmp_path: Path, method: str) -> None:
    one, again, other = (
        merged(family, tmp_path / name, DRAWN % (method, seed), "a", True, "--threads", threads)
        for name, seed, threads in (("one", 1, 1), ("again", 1, 2), ("other", 2, 1))
    )
    base = load_file(family / "base" / "model.safetensors")
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    kept = sum(int((one[name] != base[name]).sum()) for name in one) / sum(tensor.numel() for tensor in one.values())
    assert abs(kept - 0.5) < 0.01


@pytest.mark.parametrize(
    ("language", "told"),
    [
        (
            "{method: breadcrumbs, weights: 1, density: 0.9, gamma: 0.2}",
            "recipe.yaml:3:1: language: breadcrumbs: density should be greater than 0 and density + gamma at most 1, "
            "not 0.9 and 0.2, at lm_head.weight",
        ),
        (
            "{method: della, weights: 1, density: 0.9}",
            "recipe.yaml:3:1: language: della: density - epsilon should be greater than 0 and density + epsilon at "
            "most 1, not 0.9 - 0.15 and 0.9 + 0.15, at lm_head.weight",
        ),
        ("{method: della_linear, weights: 1}", "recipe.yaml:3:1: language.density: della_linear needs density"),
        (
            "{method: nuslerp, weights: {a: 1, b: -1}}",
            "recipe.yaml:3:1: language: nuslerp: the weights sum to zero, so they give no place on the arc, at "
            "lm_head.weight",
        ),
        (
            "{method: multislerp, weights: {a: 1, b: -1}}",
            "recipe.yaml:3:1: language: multislerp: the weights sum to zero, so normalize cannot divide by their sum, "
            "at lm_head.weight",
        ),
        (
            "{method: sce, select_topk: 1.5}",
            "recipe.yaml:3:25: language.select_topk: should be at most 1, not 1.5",
        ),
        (
            "{method: arcee_fusion}",
            "recipe.yaml:3:12: language.method: arcee_fusion takes 1 member, not 2",
        ),
        (
            "{method: karcher, max_iter: -1}",
            "recipe.yaml:3:29: language.max_iter: should be greater than or equal to 0, not -1",
        ),
        (
            "{method: model_stock, weights: 1}",
            "recipe.yaml:3:33: language.weights: model_stock has no weights (it takes: filter_wise)",
        ),
    ],
)
def test_a_plan_refuses(family: Path, language: str, told: str) -> None:
    (family / "recipe.yaml").write_text(f"base: base\nmembers: {{a: a, b: b}}\nlanguage: {language}\n")
    ran = fuse_here("plan", family / "recipe.yaml")
    assert ran.code == 2 and ran.err.replace(f"{family}/", "") == f"fuse: {told}\n"


def test_a_plan_tells_which_layer_and_what_stands_beside_it(family: Path) -> None:
    (family / "recipe.yaml").write_text("members: {a: a, b: b}\nlanguage: {method: slerp, t: [0, 1]}\n")
    out = fuse_here("plan", family / "recipe.yaml").out
    assert " [t 0]: model.layers.0.*, model.embed_tokens.weight\n" in out
