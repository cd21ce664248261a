"""Every recipe under recipes/ runs, with tiny members in place of the big ones."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from fuse.ask import load
from tests import tiny_vlm
from tests.cli import fuse_here
from tests.members import TEMPLATE, perturbed, save_member, words

ROOT = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.yaml"))
TEXT = {k: v for k, v in tiny_vlm.GROUPED.items() if k != "pad_token_id"}
LLMS = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
}
# recipe -> kind of tiny model by member ("base" for the base)
KINDS = {
    "demo/two_skills.yaml": {"base": "llama", "dates": "llama", "extract": "llama"},
    "llm_slerp.yaml": {"left": "mistral", "right": "mistral"},
    "llm_task_arithmetic.yaml": {"base": "mistral", "zephyr": "mistral", "hermes": "mistral"},
    "llm_ties_over_depth.yaml": {"base": "qwen2", "chat": "qwen2", "math": "qwen2"},
    "two_vlm_classes.yaml": {"qwen": "qwen2_vl", "onevision": "llava_onevision"},
    "vlm_all_parts.yaml": {"general": "qwen2_vl", "ocr": "qwen2_vl"},
    "vlm_and_math_llm.yaml": {"base": "llama", "vlm": "llava_next", "math": "llama"},
    "vlm_language_only.yaml": {"base": "llama", "llava": "llava", "sharegpt": "llava"},
}


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind in LLMS:
        model, config = LLMS[kind]
        rope = {"rope_type": "default", "rope_theta": 1e6} if kind == "qwen2" else None
        return model(config(**TEXT, rope_parameters=rope) if rope else config(**TEXT))
    model = tiny_vlm.build(kind)
    if kind == "llava_onevision":
        model.config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
        model.config.text_config.rms_norm_eps = 1e-5  # Qwen2-VL's default
    return model


def test_every_recipe_is_here() -> None:
    assert set(KINDS) == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_runs(tmp_path: Path, recipe: str) -> None:
    text = (ROOT / recipe).read_text()
    assert text.startswith("# yaml-language-server: $schema=../")
    assert ((ROOT / recipe).parent / text.split("=", 1)[1].split("\n")[0]).exists()
    for seed, (name, kind) in enumerate(KINDS[recipe].items()):
        save_member(
            perturbed(build(kind), seed), tmp_path / name, words(tiny_vlm.VOCAB), template=f"{TEMPLATE}{{# {name} #}}"
        )
    lines = [
        f"{line.split(':')[0]}: {line.split(':')[0].strip()}" if line.split(":")[0].strip() in KINDS[recipe]
        and "/" in line.split("#")[0] else line for line in text.splitlines()
    ]  # fmt: skip
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    load(tmp_path / "out")  # with nothing missing, unexpected or of another shape
