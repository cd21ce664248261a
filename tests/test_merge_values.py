"""Numbers that no merge can use: one sentence with tensor, member and value, and no output."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from fuse.methods.table import METHODS, REQUIRED
from tests.cli import Ran, fuse_here
from tests.members import perturbed, save_member

CONFIG = LlamaConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=80, bos_token_id=1,
    eos_token_id=2, max_position_embeddings=64,
)  # fmt: skip
GIVEN = {"weights": 0.5, "t": 0.5, "density": 0.5, "gamma": 0.2, "epsilon": 0.1, "scale": 1}
MATRIX, NORM, TABLE = "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
DAMAGED = "(the checkpoint is damaged; fuse writes nothing from it)"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("values")
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG)
    save_member(base, root / "base", dtype=torch.bfloat16)
    save_member(perturbed(base.float(), 1), root / "a", dtype=torch.bfloat16)
    save_member(perturbed(base.float(), 2), root / "b", dtype=torch.bfloat16)
    return root


def changed(family: Path, root: Path, name: str, member: str = "b", **values: float | torch.Tensor) -> None:
    """Copies of the members; element 7 of one tensor of one member, or all of it, is another."""
    for folder in ("base", "a", "b"):
        shutil.copytree(family / folder, root / folder)
    file = root / member / "model.safetensors"
    tensors = load_file(file)
    if "all" in values:
        tensors[name] = torch.as_tensor(values["all"]).to(torch.bfloat16).expand(tensors[name].shape).contiguous()
    else:
        tensors[name].view(-1)[7] = values["seventh"]
    save_file(tensors, file, {"format": "pt"})


def merged(root: Path, language: str, more: str = "", base: bool = True) -> Ran:
    recipe = root / "recipe.yaml"
    members = "members: {a: a, b: b}"
    recipe.write_text(f"{'base: base' if base else ''}\n{members}\nlanguage: {language}\n{more}\n")
    ran = fuse_here("merge", recipe, root / "out")
    if ran.code:
        assert ran.out == "" and sorted(p.name for p in root.iterdir()) == ["a", "b", "base", "recipe.yaml"]
    return ran


def said(method: str) -> str:
    """A recipe's language section with what the method needs."""
    row = METHODS[method].params
    needed = [
        f"{key}: {GIVEN[key]}" for key in row if key in GIVEN and (row[key].default is REQUIRED or key != "scale")
    ]
    return f"{{{', '.join([f'method: {method}', *needed])}}}"


TWO = [name for name, row in METHODS.items() if "/" not in name and (row.inputs[1] or 2) >= 2 and row.inputs[0] <= 2]


@pytest.mark.parametrize("name", [MATRIX, NORM, TABLE])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("method", TWO)
def test_no_method_hides_what_is_not_finite(family: Path, tmp_path: Path, method: str, value: float, name: str) -> None:
    changed(family, tmp_path, name, seventh=value)
    ran = merged(tmp_path, said(method), base=METHODS[method].base != "none")
    file = tmp_path / "b" / "model.safetensors"
    assert ran.code == 3, ran
    assert ran.err == f"fuse: {file}: tensor '{name}' of b holds {value} at element 7 {DAMAGED}\n"


def test_a_base_that_is_not_finite(family: Path, tmp_path: Path) -> None:
    changed(family, tmp_path, MATRIX, "base", seventh=float("-inf"))
    ran = merged(tmp_path, "{method: ties, weights: 1, density: 0.2}")
    file = tmp_path / "base" / "model.safetensors"
    assert (ran.code, ran.err) == (3, f"fuse: {file}: tensor '{MATRIX}' of base holds -inf at element 7 {DAMAGED}\n")


def test_overflow_of_our_own(family: Path, tmp_path: Path) -> None:
    changed(family, tmp_path, NORM, seventh=60000.0)
    ran = merged(tmp_path, "{method: linear, weights: 1.5, normalize: false}", "output: {dtype: float16}")
    assert ran.code == 3
    assert ran.err.startswith(f"fuse: output tensor '{NORM}' is inf in F16 at element 7 (computed as 89857.4)")
    assert ran.err.endswith("(choose a wider output.dtype, or smaller weights)\n")


def test_no_arc_leads_to_a_zero_tensor(family: Path, tmp_path: Path) -> None:
    changed(family, tmp_path, NORM, all=0.0)
    ran = merged(tmp_path, "{method: slerp, t: 0.5}", base=False)
    file = tmp_path / "a" / "model.safetensors"
    assert (ran.code, ran.err) == (3, (
        f"fuse: {file}: slerp cannot merge tensor '{NORM}': it is all zeros in b and not in a, so no arc joins the two "
        "(another method, or other parameters for it by a pattern table)\n"
    ))  # fmt: skip
    assert merged(tmp_path, "{method: slerp, t: {'*norm*': 0, '*': 0.5}}", base=False).code == 0


def test_opposite_tensors_are_joined_by_any_arc(family: Path, tmp_path: Path) -> None:
    changed(family, tmp_path, MATRIX, all=-load_file(family / "a" / "model.safetensors")[MATRIX])
    ran = merged(tmp_path, "{method: slerp, t: 0.5}", base=False)
    file = tmp_path / "a" / "model.safetensors"
    assert (ran.code, ran.err) == (3, (
        f"fuse: {file}: slerp cannot merge tensor '{MATRIX}': it points in opposite directions in a and b (cosine "
        "-1.000000), so any arc fits (another method, or other parameters for it by a pattern table)\n"
    ))  # fmt: skip
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


OUTSIDE = {
    "{method: ties, weights: 1, density: 0}": "density: should be greater than 0, not 0",
    "{method: dare_ties, weights: 1, density: {a: 1.5, b: 1}}": "density.a: should be at most 1, not 1.5",
    "{method: linear, weights: {a: 1, b: -1}}": "linear: the weights sum to zero, so normalize cannot divide by their sum",
    "{method: linear, weights: 0}": "linear: the weights sum to zero, so normalize cannot divide by their sum",
    "{method: slerp, t: 1.5}": "t: should be at most 1, not 1.5",
    "{method: task_arithmetic, weights: {a: 1, b: -1}, normalize: true}": "task_arithmetic: the weights sum to zero, so normalize cannot divide by their sum, at lm_head.weight",
    "{method: ties, weights: {a: [1, 2], b: -1}}": "ties: the weights sum to zero, so normalize cannot divide by their sum, at ",
    "{method: breadcrumbs, weights: {a: 1, b: -1}, density: 0.5, normalize: true}": "breadcrumbs: the weights sum to zero, so",
    "{method: della, weights: {a: 1, b: -1}, density: 0.5}": "della: the weights sum to zero, so normalize cannot divide by",
}  # fmt: skip


@pytest.mark.parametrize("language", OUTSIDE)
def test_parameters_out_of_bounds_are_refused_by_the_plan(family: Path, tmp_path: Path, language: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {family / 'base'}\nmembers: {{a: {family / 'a'}, b: {family / 'b'}}}\nlanguage: {language}\n"
    )
    ran = fuse_here("plan", recipe)
    assert ran.code == 2 and ran.err.startswith("fuse: recipe.yaml:3:") and ran.err.count("\n") == 1
    assert OUTSIDE[language] in ran.err


def test_a_weight_may_be_zero_somewhere(family: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for weights in ("{'*norm*': 0, '*': 1}", "[0, 1]", "{a: 0, b: 1}"):
        recipe.write_text(
            f"base: {family / 'base'}\nmembers: {{a: {family / 'a'}, b: {family / 'b'}}}\n"
            f"language: {{method: ties, weights: {weights}}}\n"
        )
        assert fuse_here("plan", recipe).code == 0
